"""How many rows a device is given where a job leaves that open: never more than there is memory for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.costs.profile import DeviceProfile, load_profile
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import CONTEXT_BYTES, RESERVED_SHARE
from ttsvar_ray.job.plan import USUAL_ROWS
from ttsvar_ray.job.preflight import check_memory
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.job.sizing import MOST_ROWS, sized, sized_memory

H200 = load_profile("h200")


def job_of(n: int = 1, *, selector: str = "selector", dtype: str = "tf32", **engine: Any) -> ResolvedJob:
    sections = {
        "model": {"name": "infinity-2b", "path": "weights"},
        "reward": {"name": "image-reward", "path": "weights/image-reward", "dtype": dtype},
        "features": {"extractor": "pca", "backbone": "weights/dinov2", "dtype": dtype},
        "strategy": {"name": "tts-var", "plan": "published", "n": n},
        "engine": {"selector_decode": selector, **engine},
    }
    return resolve(JobConfig.model_validate(sections))


def of_gb(gigabytes: float, profile: DeviceProfile = H200) -> DeviceProfile:
    return replace(profile, memory_bytes=gigabytes * 1e9)


def rows_on(job: ResolvedJob, device: DeviceProfile) -> tuple[int, ...]:
    rows = sized(job, device).config.engine.micro_batch_rows
    assert isinstance(rows, tuple)
    return rows


def needed(job: ResolvedJob) -> int:
    """The bytes of a GPU that a job takes by its plan, with what is kept free."""
    networks = job_networks(job.config, job.description, job.plan, on_gpu=True)
    return sized_memory(job, networks).peak_bytes + CONTEXT_BYTES


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("selector", ["full", "selector"])
def test_the_plans_peak_is_never_more_than_the_memory_given(selector: str, deterministic: bool) -> None:
    fitting = 0
    for n, graphs in itertools.product((1, 2, 8), ("auto", "always", "never")):
        job = job_of(n, selector=selector, deterministic=deterministic, cuda_graphs=graphs)
        for gigabytes in (10, 20, 23, 24, 26, 28, 32, 40, 60, 80, 141):
            device = of_gb(gigabytes)
            chosen = sized(job, device)
            assert chosen.config.engine.micro_batch_rows != "auto"
            try:
                check_memory(job, device)
            except ConfigurationError:
                continue
            fitting += 1
            assert needed(chosen) <= (1 - RESERVED_SHARE) * device.memory_bytes, (n, graphs, gigabytes)
    assert fitting > 30


def test_coarse_segments_get_many_rows_and_the_last_ones_a_few() -> None:
    rows = rows_on(job_of(2), H200)
    assert rows[0] > 32 and rows[-1] <= 4
    assert list(rows) == sorted(rows, reverse=True)
    assert max(rows) <= MOST_ROWS
    # Half the memory is no reason for fewer where nothing is crowded, a small card is.
    assert rows_on(job_of(2), of_gb(80)) == rows
    assert rows_on(job_of(2, cuda_graphs="never"), of_gb(28))[-2] < rows[-2]


def test_a_device_that_starts_kernels_sooner_needs_fewer_rows() -> None:
    quick = replace(H200, layer_seconds=H200.layer_seconds / 4, network_seconds=0.0)
    slow, fast = rows_on(job_of(1), H200), rows_on(job_of(1), quick)
    assert all(fewer < more for fewer, more in zip(fast[:3], slow[:3], strict=True))


def test_passes_are_not_recorded_where_that_leaves_no_room() -> None:
    job, card = job_of(1), load_profile("rtx4090")
    assert sized(job, card).config.engine.cuda_graphs == "never"
    assert sized(job, of_gb(80)).config.engine.cuda_graphs == "auto"
    check_memory(job, card)
    with pytest.raises(ConfigurationError, match="does not fit a GPU of 24 GB"):
        check_memory(job_of(1, cuda_graphs="always"), card)


def test_two_images_of_a_prompt_fit_a_small_card_without_a_number_given() -> None:
    card, job = load_profile("rtx4090"), job_of(2, dtype="float16")
    check_memory(job, card)
    assert min(rows_on(job, card)) == 1 < max(rows_on(job, card))
    with pytest.raises(ConfigurationError, match="does not fit a GPU of 24 GB"):
        check_memory(job_of(2), card)


def test_full_passes_are_in_proportion_to_the_populations_and_never_rise() -> None:
    job = job_of(1, deterministic=True)
    assert rows_on(job, H200) == (32, 24, 16, 8, 4)
    for gigabytes in (22, 24, 28, 32, 40):
        rows = rows_on(job, of_gb(gigabytes))
        assert list(rows) == sorted(rows, reverse=True)
    assert sized(job, of_gb(40)).pass_rows == rows_on(job, of_gb(40))


def test_numbers_and_processors_are_left_alone() -> None:
    given = job_of(1, micro_batch_rows=7)
    assert sized(given, H200) is given
    on_cpu = sized(job_of(1), load_profile("cpu"))
    assert on_cpu.config.engine.micro_batch_rows == USUAL_ROWS


def test_a_limit_on_memory_is_one_on_rows() -> None:
    rows = rows_on(job_of(1, memory_gb=10.0), H200)
    assert rows[0] < rows_on(job_of(1), H200)[0]
