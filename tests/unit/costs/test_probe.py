"""Rates of a CPU, measured as it is now."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ttsvar_ray.config.load import load_config
from ttsvar_ray.costs.profile import DeviceProfile, load_profile, measured_cpu
from ttsvar_ray.job.preflight import TimeFact
from ttsvar_ray.job.prepare import prepared

MEASURED = ("narrow_flops", "float32_flops", "attention_flops", "conv_flops", "memory_bytes_per_second")


def ticking(step: float) -> Any:
    return itertools.count(0.0, step).__next__


def test_a_processor_that_takes_twice_as_long_has_half_the_rates() -> None:
    file, threads = load_profile("cpu"), torch.get_num_threads()
    quick, slow = (measured_cpu(file, threads=1, clock=ticking(step)) for step in (0.001, 0.002))
    for field in dataclasses.fields(DeviceProfile):
        before, one, other = (getattr(each, field.name) for each in (file, quick, slow))
        if field.name in MEASURED:
            assert one == pytest.approx(2 * other)
            assert quick.sources[field.name] == "measured just now"
        elif field.name not in ("name", "sources"):
            assert one == other == before
    assert quick.narrow_flops == pytest.approx(2 * 256 * 192 * 768 / 0.001)
    assert torch.get_num_threads() == threads


def test_this_processor_has_rates_of_a_processor() -> None:
    rates = measured_cpu(load_profile("cpu"), threads=1)
    for name in MEASURED:
        assert 1e7 < getattr(rates, name) < 1e13


@pytest.mark.parametrize("settings", [["strategy.name=best-of-n", "strategy.n=7"], []])
def test_the_time_of_a_job_is_by_the_rates_of_this_processor(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a star\n" * 90)
    given = [f"prompts.path={tmp_path / 'p.txt'}", f"output.path={tmp_path / 'out'}", "model.device=cpu"]
    config = load_config(None, [*given, "cluster.in_process=true", *settings])
    file = load_profile("cpu")

    def seconds(slower: float) -> float:
        rates = {name: getattr(file, name) / slower for name in MEASURED}
        monkeypatch.setattr(
            "ttsvar_ray.costs.profile.measured_cpu",
            lambda profile, threads: dataclasses.replace(file, **rates),
        )
        facts: list[Any] = []
        with prepared(config, tell=facts.append):
            pass
        (fact,) = [fact for fact in facts if isinstance(fact, TimeFact)]
        assert fact.workers == 1
        assert fact.seconds is not None
        return fact.seconds

    assert 3.5 < seconds(5.0) / seconds(1.0) < 5.0, "all but what the host does beside"
