"""What a job says before it starts, in which order, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ttsvar_ray.cli.progress import fact_lines
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.errors import ConfigurationError, OutputError
from ttsvar_ray.job import preflight, prepare
from ttsvar_ray.job.preflight import (
    Device,
    Fact,
    OutputFact,
    TimeFact,
    WeightsFact,
    check_memory,
    device_named,
    free_bytes,
    profile_of,
    time_fact,
    trace_bytes,
    with_trace,
)
from ttsvar_ray.job.prepare import prepared
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.workload import expected_workload
from ttsvar_ray.storage.location import locate


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ring"}\n{\n' + '{"prompt": "a disc"}\n' * 3)
    return load_config(None, [f"prompts.path={tmp_path / 'p.jsonl'}", f"output.path={tmp_path / 'out'}"])


def facts_of(config: JobConfig) -> tuple[list[Fact], prepare.PreparedJob]:
    facts: list[Fact] = []
    with prepared(config, tell=facts.append) as job:
        return facts, job


def test_everything_is_said_in_order(config: JobConfig, tmp_path: Path) -> None:
    facts, job = facts_of(config)
    lines = [line for fact in facts for line in fact_lines(fact)]
    warning = lines.pop(2)
    assert warning.startswith("prompts   warning: ") and "max_failed (1%)" in warning
    assert [line.split()[0] for line in lines] == ["job", "prompts", "plan", "weights", "output", "time"]
    assert lines[0] == f"job       shapes, tts-var N=1, seed 0 -> {tmp_path / 'out'}"
    assert lines[1].startswith(f"prompts   4 in {tmp_path / 'p.jsonl'}, 1 bad lines")
    assert "line 2: expected a JSON object" in lines[1]
    assert lines[2] == "plan      8 -> 1 trajectories over 13 scales: top-k at 6"
    assert "4 images to make, about 13.8 kB (" in lines[4]
    assert "about " in lines[5] and " on CPU" in lines[5]
    assert job.in_process
    assert not (tmp_path / "out").exists()


PROGRAM = """
import sys
from ttsvar_ray.config.load import load_config
from ttsvar_ray.job import prepare
from ttsvar_ray.job.preflight import OutputFact

def tell(fact):
    print(type(fact).__name__, "torch" in sys.modules)

with prepare.prepared(load_config(None, sys.argv[1:]), tell=tell):
    pass
"""


def test_what_needs_no_torch_is_said_before_it_is_imported(config: JobConfig, tmp_path: Path) -> None:
    given = [f"prompts.path={config.prompts.path}", f"output.path={config.output.path}"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=200, check=True
    )
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["OutputFact"] == "False"
    assert list(said)[-1] == "TimeFact"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux' file system of no size")
def test_nobody_counts_the_space_of_a_file_system_without_any(tmp_path: Path) -> None:
    assert free_bytes(locate("/proc/x")) is None
    assert free_bytes(locate(str(tmp_path / "new"))) is not None


def test_a_reward_without_its_directory_is_refused_at_once(config: JobConfig) -> None:
    reward = config.reward.model_copy(update={"name": "image-reward"})
    with pytest.raises(ConfigurationError, match=r"reward\.path: the reward 'image-reward' needs"):
        facts_of(config.model_copy(update={"reward": reward}))


def test_a_reward_without_one_of_its_files_is_refused_at_once(config: JobConfig, tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "ImageReward.pt").write_bytes(b"")
    reward = config.reward.model_copy(update={"name": "image-reward", "path": str(tmp_path / "reward")})
    with pytest.raises(
        ConfigurationError, match=r"reward\.path: expected vocab\.txt in .*reward, found none"
    ):
        facts_of(config.model_copy(update={"reward": reward}))


def test_a_disk_that_is_too_small_is_refused_and_a_tight_one_is_said(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four images of 3456 bytes are expected, and half of that at least.
    for free, outcome in ((6_000, "refused"), (8_000, "said"), (20_000, "fine")):
        monkeypatch.setattr(
            preflight.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(total=10**12, free=free)
        )
        if outcome == "refused":
            with pytest.raises(OutputError, match=r"4 images take about .* GB are free"):
                facts_of(config)
            continue
        (output,) = (fact for fact in facts_of(config)[0] if isinstance(fact, OutputFact))
        assert (len(fact_lines(output)) == 2) == (outcome == "said")


def test_parts_of_ones_own_go_by_their_import_paths() -> None:
    parts = ("weights.text_encoder", "code.reward.my_rewards:Green", "weights.reward.my_rewards:Green")
    assert fact_lines(WeightsFact(parts=parts)) == ["weights   found: text encoder, my_rewards:Green"]


def test_hours_and_gigabytes_of_a_large_job() -> None:
    job = resolve(load_config(None, ["model.name=infinity-2b", "strategy.n=2"], needs_files=False))
    image = preflight.expected_image_bytes(job.config, job.description)
    assert 200_000 * image == pytest.approx(314e9, rel=0.01)
    (line,) = fact_lines(
        OutputFact(
            root="out",
            parts_there=0,
            parts=782,
            prompts_left=200_000,
            images=200_000,
            image_bytes=200_000 * image,
            free_bytes=10**12,
        )
    )
    assert line == "output    200,000 images to make, about 315 GB (1 TB free)"
    (line,) = fact_lines(TimeFact(seconds=40_000.0, workers=8, device="NVIDIA H200", source="counted"))
    assert line == "time      about 11 h 6 min on 8 x NVIDIA H200, without the start (an estimate: counted)"


def test_a_gpu_that_is_too_small_is_refused_with_what_is_taken() -> None:
    job = resolve(load_config(None, ["model.name=infinity-8b"], needs_files=False))
    with pytest.raises(
        ConfigurationError, match=r"does not fit a GPU of 24 GB: the weights take \d+\.\d of 24"
    ):
        check_memory(job, device_named("rtx4090", 1).known)
    check_memory(job, device_named("h200", 1).known)


@pytest.mark.parametrize(
    ("title", "profile"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-PCIE-40GB", "a100-40g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_gpu_is_known_by_the_name_of_its_driver(title: str, profile: str | None) -> None:
    assert profile_of(title) == profile


@pytest.mark.parametrize(
    ("settings", "gpus", "here"),
    [
        ([], 0, True),
        ([], 1, True),
        ([], 2, False),
        (["cluster.workers=2"], 0, False),
        (["cluster.spread=2"], 0, False),
        (["cluster.in_process=false"], 0, False),
        (["output.keep=all", "strategy.name=best-of-n", "strategy.n=25"], 0, False),
        (["output.keep=all", "strategy.name=best-of-n", "strategy.n=25", "cluster.in_process=true"], 0, True),
    ],
)
def test_small_jobs_run_in_this_process(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, settings: list[str], gpus: int, here: bool
) -> None:
    cpu = Device(profile="cpu", title="CPU", count=8)
    gpu = Device(profile="h100", title="H100", count=gpus, memory_bytes=80e9)
    monkeypatch.setattr(prepare, "devices_here", lambda *_: gpu if gpus else cpu)
    given = [f"prompts.path={config.prompts.path}", f"output.path={config.output.path}", *settings]
    _, job = facts_of(load_config(None, given))
    assert job.in_process is here
    assert job.device is not None
    assert not here or job.device.count == 1


def test_a_cluster_of_somebody_else_says_its_hours_later(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    facts, job = facts_of(config)
    assert job.device is None and not job.in_process
    assert not any(isinstance(fact, TimeFact) for fact in facts)
    time = job.time_on(device_named("h100", 4))
    assert time.workers == 4 and time.seconds is not None
    assert job.time_on(replace(device_named("h100", 4), count=8)).seconds == pytest.approx(time.seconds / 2)


@pytest.mark.parametrize(
    ("settings", "trace", "size"),
    [
        (["model.name=infinity-2b"], "bits", 35_536),
        (["model.name=infinity-2b", "output.image_format=jpeg"], "selections", 35_536),
        (["model.name=infinity-2b", "output.trace=selections"], "selections", 35_536),
        (["model.name=infinity-2b", "strategy.name=best-of-n"], "selections", 0),
        ([], "selections", None),
        (["output.trace=bits"], "bits", None),
    ],
)
def test_the_trace_keeps_bits_where_they_cost_little(
    settings: list[str], trace: str, size: int | None
) -> None:
    job = resolve(load_config(None, settings, needs_files=False))
    assert with_trace(job.config, job.description, job.plan).output.trace == trace
    if size is not None:
        assert trace_bytes(job.description, job.plan) == size


def test_what_the_trace_keeps_is_recorded_and_changes_no_content(config: JobConfig) -> None:
    _, job = facts_of(config)
    assert job.config.output.trace == job.manifest.config["output"]["trace"] == "selections"
    assert not any(name.startswith("output.trace") for name in job.manifest.content)
    asked = config.model_copy(update={"output": config.output.model_copy(update={"trace": "bits"})})
    _, other = facts_of(asked)
    assert other.manifest.config["output"]["trace"] == "bits"
    assert other.manifest.config_digest == job.manifest.config_digest
    assert other.parts.image_bytes is not None and job.parts.image_bytes is not None
    assert other.parts.image_bytes > job.parts.image_bytes


def test_rows_that_are_left_open_are_numbers_in_the_manifest(config: JobConfig) -> None:
    _, job = facts_of(config)
    assert job.config.engine.micro_batch_rows == 32
    assert job.manifest.config["engine"]["micro_batch_rows"] == 32
    assert "engine.micro_batch_rows" not in job.manifest.content, "rows change nothing that is generated"


def on_gpu(config: JobConfig, monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> prepare.PreparedJob:
    """A deterministic job that leaves its rows open, prepared beside a GPU of so much memory."""
    engine = config.engine.model_copy(update={"deterministic": True})
    gpu = Device(profile="h100", title="H100", count=1, memory_bytes=gigabytes * 1e9)
    monkeypatch.setattr(prepare, "devices_here", lambda *_: gpu)
    return facts_of(config.model_copy(update={"engine": engine}))[1]


def test_a_deterministic_run_keeps_its_rows_on_another_gpu(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The built-in model fits where hardly anything is.
    begun, setting = on_gpu(config, monkeypatch, 0.69), "engine.micro_batch_rows"
    rows = begun.manifest.content[setting]
    assert rows == begun.manifest.config["engine"]["micro_batch_rows"]
    assert on_gpu(config, monkeypatch, 80).manifest.content[setting] != rows
    open_output(begun.layout, begun.manifest)
    continued = on_gpu(config, monkeypatch, 80)
    assert continued.manifest.content[setting] == rows
    assert continued.manifest.config_digest == begun.manifest.config_digest


def test_rows_of_a_deterministic_run_that_do_not_fit_another_gpu_are_refused(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = on_gpu(config, monkeypatch, 80)
    open_output(begun.layout, begun.manifest)
    with pytest.raises(ConfigurationError, match=r"does not fit .* passes of 32, 4 rows"):
        on_gpu(config, monkeypatch, 0.69)


def test_a_deterministic_job_on_a_cluster_names_its_rows(config: JobConfig) -> None:
    engine = config.engine.model_copy(update={"deterministic": True})
    cluster = config.cluster.model_copy(update={"address": "ray://elsewhere:10001"})
    away = config.model_copy(update={"engine": engine, "cluster": cluster})
    with pytest.raises(ConfigurationError, match=r"micro_batch_rows: expected numbers with .* on a cluster"):
        facts_of(away)
    on_cpus = away.model_copy(update={"model": config.model.model_copy(update={"device": "cpu"})})
    assert facts_of(on_cpus)[1].manifest.content["engine.micro_batch_rows"] == 32


def test_a_run_takes_at_least_what_its_verifiers_take(config: JobConfig) -> None:
    networks = {"reward": {"name": "image-reward", "path": "."}, "model": {"name": "infinity-2b"}}
    job = resolve(JobConfig.model_validate({**networks, "verifiers": {"replicas": 2}}))
    workload = expected_workload(job, load_profile("h200"))
    assert workload is not None
    few, many, more = (
        time_fact(job.plan, device_named("h200", count), workload, rows=(8,) * 5, prompts=100).seconds
        for count in (1, 1000, 2000)
    )
    assert few is not None and many is not None and few > many == more
    assert many == pytest.approx(100 * workload.verifier_seconds)
    inside = expected_workload(resolve(JobConfig.model_validate(networks)), load_profile("h200"))
    assert inside is not None and inside.verifier_seconds == 0
