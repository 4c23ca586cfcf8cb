"""How a session of a job ends when its storage fails; without Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ttsvar_ray.cluster import driver as driver_module
from ttsvar_ray.cluster import stats as stats_module
from ttsvar_ray.cluster.driver import Driver
from ttsvar_ray.cluster.stats import RunStats
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import ConfigurationError, InputError, RunFailedError, StorageError
from ttsvar_ray.job.preflight import Device


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A driver whose storage of prompts fails in the loop; what it did at the end is in `calls`."""

    @contextlib.contextmanager
    def nothing(*_given: Any, **_named: Any) -> Any:
        yield None

    def loop(_self: Driver, _stop: Any) -> None:
        raise StorageError("s3://bucket/prompts.txt: the storage refused or failed (timeout)")

    for name in ("ray_session", "stop_on_signals", "demanded"):
        monkeypatch.setattr(driver_module, name, nothing)
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 2.0}}]
    cluster = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0}, nodes=lambda: nodes)
    monkeypatch.setattr(driver_module, "ray", cluster)
    device = Device(profile="cpu", title="CPU", count=2)
    monkeypatch.setattr(driver_module, "device_of", lambda *_given: device)
    monkeypatch.setattr(Driver, "_start_actors", lambda *_given: None)
    monkeypatch.setattr(Driver, "_loop", loop)
    made = object.__new__(Driver)
    made.config = JobConfig()
    made.parts = SimpleNamespace(expect=lambda profile: None)  # type: ignore[assignment]
    made.layout = OutputLayout(tmp_path)
    made.ledger = SimpleNamespace(chunks=range(3))  # type: ignore[assignment]
    made.is_pressed = False
    made.verifiers = None
    made.info = None
    made.tell_device = lambda device: None
    calls: list[str] = []
    made.cells = SimpleNamespace(stop=lambda in_order: calls.append("stop cells"))  # type: ignore[assignment]

    def flush(_seconds: float) -> list[Any]:
        calls.append("flush")
        return []

    made.writer = SimpleNamespace(flush=flush, stop=lambda: calls.append("stop writer"))  # type: ignore[assignment]
    return SimpleNamespace(run=made.run, calls=calls)


def test_a_storage_of_prompts_that_fails_ends_a_run_in_good_order(driver: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError) as ended:
        driver.run()
    assert str(ended.value) == (
        "s3://bucket/prompts.txt: the storage refused or failed (timeout). "
        f"0 of 3 parts are committed in {tmp_path}; the same command goes on from there"
    )
    assert driver.calls == ["flush", "stop cells", "stop writer"]


def test_a_prompt_file_that_was_changed_ends_a_run_in_good_order(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loop(_self: Driver, _stop: Any) -> None:
        raise InputError("p.txt: the prompt file was changed")

    monkeypatch.setattr(Driver, "_loop", loop)
    with pytest.raises(InputError, match=r"was changed\. 0 of 3 parts are committed .* goes on from"):
        driver.run()
    assert driver.calls == ["flush", "stop cells", "stop writer"]


def test_an_output_that_cannot_be_read_hides_no_reason(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_layout: OutputLayout) -> frozenset[int]:
        raise StorageError("s3://bucket/x: the storage refused or failed (503)")

    monkeypatch.setattr(stats_module, "committed_chunks", fail)
    with pytest.raises(RunFailedError, match=r"prompts.txt: .* \(timeout\)\. Of its 3 parts .* \(503\)\)"):
        driver.run()


def test_how_much_ray_may_still_write_is_told_where_its_processes_die(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They die of a full disk without a word of it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=9_400_000))
    made = driver.run.__self__
    made.cells = SimpleNamespace(failure="the last coordinator is given up: ActorDiedError")
    told = rf"is given up: ActorDiedError; {tmp_path}, where Ray writes, has 9\.4 MB free\. 0 of 3 parts"
    with pytest.raises(RunFailedError, match=told):
        made._check_workers(0.0)
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", f"/{'long' * 30}")  # too long for Ray's sockets
    with pytest.raises(RunFailedError, match="; /tmp/ray, where Ray writes, has"):
        made._check_workers(0.0)


def test_a_folder_of_ray_that_is_not_on_this_machine_hides_no_reason(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "on-the-nodes"))
    made = driver.run.__self__
    made.cells = SimpleNamespace(failure="the last coordinator is given up: ActorDiedError")
    with pytest.raises(RunFailedError, match=r"is given up: ActorDiedError\. 0 of 3 parts"):
        made._check_workers(0.0)


@pytest.mark.parametrize(
    ("asked", "each"),
    [
        ({"cpus_per_worker": 2}, ""),
        ({"cpus_per_worker": 3}, "3 CPUs, 0 GPUs"),  # the sum of the nodes holds it, none of them does
        ({"gpus_per_worker": 1}, "1 CPU, 1 GPU"),
    ],
)
def test_a_cluster_that_holds_no_worker_is_told_at_once(
    asked: dict[str, int], each: str, driver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that does may join, by hand or by an autoscaler: the run waits, and says for what."""
    driver.run.__self__.config = JobConfig.model_validate({"cluster": {"workers": 1, **asked}})
    driver.run.__self__.stats = RunStats(prompts_total=3, prompts_resumed=0)
    with pytest.raises(RunFailedError, match="timeout"):
        driver.run()
    told = f"no node has room for a worker of {each}; nothing begins before one joins that has: waiting"
    assert (told in caplog.text) == bool(each) == ("1800 s (cluster.start_timeout_s)" in caplog.text)


def test_a_cluster_without_gpus_is_no_place_for_recorded_passes(driver: Any) -> None:
    driver.run.__self__.config = JobConfig.model_validate({"engine": {"cuda_graphs": "always"}})
    with pytest.raises(ConfigurationError, match=r"engine\.cuda_graphs: 'always' needs a CUDA device"):
        driver.run()
    assert driver.calls == [], "refused before a worker is started"
