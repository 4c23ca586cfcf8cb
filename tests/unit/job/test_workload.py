"""The loads that a coordinator plans with: order, growth, and the memory that is left for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.costs.seconds import chord
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import (
    CONTEXT_BYTES,
    RESERVED_SHARE,
    available_bytes,
    memory_plan,
    trajectory_bytes,
)
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.workload import build_workload


def job(*settings: str) -> JobConfig:
    return load_config(None, ["model.name=infinity-2b", *settings], needs_files=False)


def workload(config: JobConfig, profile: str = "h200") -> Workload:
    return build_workload(resolve(config), load_profile(profile))


def test_segments_of_infinity_2b() -> None:
    loads = workload(job()).segments
    assert [load.tokens for load in loads] == [21, 244, 256, 2000, 8000]
    # KV cache of one trajectory after scales 2, 5, 6 and 9, and little beside it.
    kv = [11.0e6, 139e6, 273e6, 1322e6]
    text = [269e6 / population for population in (8, 6, 4, 2)]
    for load, cache, share in zip(loads, kv, text, strict=False):
        assert load.held_bytes == pytest.approx(cache + share, rel=0.02)
    assert loads[-1].held_bytes == 0, "images leave at once"
    assert all(load.running_bytes > load.held_bytes for load in loads)
    assert [load.running_bytes for load in loads] == sorted(load.running_bytes for load in loads)
    assert loads[0].replay_seconds == 0
    replays = [load.replay_seconds for load in loads]
    assert replays == sorted(replays)


def test_small_selector_images_save_time_and_memory() -> None:
    full, small = workload(job()), workload(job("engine.selector_decode=selector"))
    for index in range(4):
        assert small.seconds(index, 4) < full.seconds(index, 4)
        assert small.segments[index].running_bytes < full.segments[index].running_bytes
    assert small.segments[4] == full.segments[4], "final images are always decoded in full"


def test_faster_devices_take_less_time() -> None:
    config = job()
    totals = [
        sum(workload(config, name).seconds(i, 4) for i in range(5)) for name in ("h200", "a100-80g", "cpu")
    ]
    assert totals == sorted(totals)
    assert workload(config, "h200").source == "counted, rates of h200"


def test_on_a_cpu_numbers_are_wide() -> None:
    wide, narrow = workload(job(), "cpu").segments[3], workload(job(), "h200").segments[3]
    assert wide.held_bytes == pytest.approx(2 * narrow.held_bytes, rel=0.01)


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize("floor", [0.0, 0.5, 4.0, 100.0])
def test_a_line_is_never_below_its_curve(rows: int, floor: float) -> None:
    def curve(count: int) -> float:
        return max(floor, 0.7 * count)

    line = chord(curve, rows)
    assert line.fixed >= 0
    assert line.per_row >= 0
    for count in {1, rows}:
        assert line.fixed + count * line.per_row == pytest.approx(curve(count))
    assert all(line.fixed + count * line.per_row >= curve(count) - 1e-12 for count in range(1, rows + 1))


def test_only_a_setting_limits_a_cpu() -> None:
    assert available_bytes("cpu") is None
    assert available_bytes("cpu", memory_gb=1.5) == 1_500_000_000
    config = load_config(None, ["engine.memory_gb=2"], needs_files=False)
    resolved = resolve(config)
    assert trajectory_bytes(config, resolved.description, resolved.plan, "cpu") == 2_000_000_000


def test_a_gpu_gives_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    free, total, cached = 100e9, 140e9, 5e9

    def of(value: Any) -> Any:
        return lambda *_: value

    monkeypatch.setattr(torch.cuda, "mem_get_info", of((int(free), int(total))))
    monkeypatch.setattr(torch.cuda, "memory_reserved", of(int(cached) + 7))
    monkeypatch.setattr(torch.cuda, "memory_allocated", of(7))
    left = available_bytes("cuda", workspace=1_000_000_000)
    assert left == pytest.approx(free + cached - RESERVED_SHARE * total - 1e9)
    assert available_bytes("cuda", memory_gb=3) == 3_000_000_000
    assert available_bytes("cuda", workspace=10**12) == 0


def test_what_fits_grows_with_the_device() -> None:
    config = job()
    resolved = resolve(config)
    plan = resolved.plan
    networks = job_networks(config, resolved.description, plan, on_gpu=True)
    memory = memory_plan(networks, plan, selector_decode="full")
    under_way = [memory.prompts_under_way(size * 1e9) for size in (12, 24, 40, 80, 141)]
    assert under_way == sorted(under_way)
    assert under_way[0] == 0
    assert under_way[-1] > 20
    for size in (24e9, 80e9):
        side_by_side = memory.prompts_side_by_side(size)
        assert side_by_side <= memory.prompts_under_way(size)
        needed = memory.peak_bytes - memory.weight_bytes
        assert side_by_side * needed <= size - memory.weight_bytes - CONTEXT_BYTES


def test_a_reward_whose_costs_are_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttsvar_ray.rewards.registry import REWARDS

    # Out of a copy: put back into the table itself, it would be its last entry for all tests that follow.
    others = {name: entry for name, entry in REWARDS.items() if name != "image-reward"}
    monkeypatch.setattr("ttsvar_ray.job.footprint.REWARDS", others)
    with pytest.raises(ValueError, match=r"reward\.name: costs are known for hps-v2\.1, .*, or from"):
        workload(job())


def test_a_reward_that_is_misspelt_is_told_the_nearest_name() -> None:
    config = load_config(None, ["model.name=infinity-2b", "reward.name=hps-v3-plus"], needs_files=False)
    job = resolve(config)
    with pytest.raises(ValueError, match=r"qwen3-vl-2b, .*; did you mean 'hps-v3-plus-plus'\?"):
        job_networks(job.config, job.description, job.plan, on_gpu=False)


def test_recorded_passes_are_counted_on_a_gpu() -> None:
    def recorded(*settings: str, on_gpu: bool = True) -> int:
        config = load_config(None, ["model.name=infinity-2b", *settings], needs_files=False)
        job = resolve(config)
        return job_networks(job.config, job.description, job.plan, on_gpu=on_gpu).recorded_bytes

    # Scale 10 of one trajectory: 4,121 tokens of two sequences, 32 blocks, keys and values of 2048 numbers.
    assert recorded() == pytest.approx(2 * 4121 * 32 * 2 * 2048 * 2, rel=0.25)
    assert recorded("engine.micro_batch_rows=1") <= recorded()
    assert recorded("engine.cuda_graphs=never") == recorded(on_gpu=False) == 0
    fixed = ("engine.cuda_graphs=never", "engine.deterministic=true")
    assert recorded(*fixed, "engine.micro_batch_rows=8") > 1e9, "texts of full length are packed"
    assert recorded(*fixed, "engine.micro_batch_rows=64") == 0, "too many of them are not"
