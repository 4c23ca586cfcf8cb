"""How many workers a cluster makes, and when that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ttsvar_ray.cluster.resources import (
    WorkerLayout,
    bundles,
    describe_resources,
    device_of,
    divide_workers,
    fits,
    lay_out_workers,
)
from ttsvar_ray.errors import ConfigurationError

CPU_ONLY = {"CPU": 4.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}
DEFAULTS: dict[str, Any] = {
    "device": "auto",
    "workers": None,
    "cpus_per_worker": None,
    "gpus_per_worker": None,
    "threads": 1,
}


@pytest.mark.parametrize(
    ("resources", "changes", "expected"),
    [
        (CPU_ONLY, {}, (4, 1.0, 0.0)),
        (CPU_ONLY, {"threads": 2}, (2, 2.0, 0.0)),
        (CPU_ONLY, {"workers": 3}, (3, 1.0, 0.0)),
        (CPU_ONLY, {"workers": 9}, (9, 1.0, 0.0)),
        (GPU_NODE, {}, (4, 1.0, 1.0)),
        (GPU_NODE, {"gpus_per_worker": 0.5}, (8, 1.0, 0.5)),
        (GPU_NODE, {"device": "cuda", "cpus_per_worker": 8.0}, (2, 8.0, 1.0)),
        (GPU_NODE, {"device": "cpu"}, (16, 1.0, 0.0)),
        (GPU_NODE, {"gpus_per_worker": 0.0}, (16, 1.0, 0.0)),
        (CPU_ONLY, {"device": "cuda", "workers": 2}, (2, 1.0, 1.0)),
    ],
)
def test_layout(
    resources: dict[str, float], changes: dict[str, Any], expected: tuple[int, float, float]
) -> None:
    layout = lay_out_workers(resources, **{**DEFAULTS, **changes})
    assert layout == WorkerLayout(count=expected[0], cpus=expected[1], gpus=expected[2])


@pytest.mark.parametrize(
    ("resources", "changes", "message"),
    [
        (CPU_ONLY, {"device": "cuda"}, "4 CPUs, 0 GPUs"),
        (CPU_ONLY, {"cpus_per_worker": 8.0}, r"cluster\.cpus_per_worker"),
        (GPU_NODE, {"device": "cpu", "gpus_per_worker": 1.0}, r"gpus_per_worker: expected none"),
        (GPU_NODE, {"device": "cuda", "gpus_per_worker": 0.0}, r"gpus_per_worker: expected more than 0"),
        (CPU_ONLY, {"cpus_per_worker": 0.0}, r"cluster\.workers: expected a number"),
    ],
)
def test_refusals(resources: dict[str, float], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lay_out_workers(resources, **{**DEFAULTS, **changes})


def test_resources_in_words() -> None:
    assert describe_resources({"CPU": 1.0, "GPU": 0.5}) == "1 CPU, 0.5 GPUs"


@pytest.mark.parametrize(
    ("workers", "per_cell", "sizes"), [(1, 64, [1]), (64, 64, [64]), (65, 64, [32, 33]), (7, 2, [1, 2, 2, 2])]
)
def test_workers_are_divided_evenly_among_few_cells(workers: int, per_cell: int, sizes: list[int]) -> None:
    cells = divide_workers(workers, per_cell)
    assert [len(cell) for cell in cells] == sizes
    assert [worker for cell in cells for worker in cell] == list(range(workers))


def test_only_what_is_missing_is_asked_for() -> None:
    layout = WorkerLayout(count=3, cpus=1.0, gpus=1.0)
    assert fits(layout, {"CPU": 3.0, "GPU": 3.0})
    assert not fits(layout, GPU_NODE | {"GPU": 2.0})
    assert not fits(layout, CPU_ONLY)
    assert bundles(layout) == [{"CPU": 1.0, "GPU": 1.0}] * 3
    assert bundles(WorkerLayout(count=3, cpus=2.0, gpus=0.0)) == [{"CPU": 2.0}] * 3
    assert bundles(WorkerLayout(count=3, cpus=0.0, gpus=0.0)) == []


@pytest.mark.parametrize(
    ("gpus", "resources", "expected"),
    [
        (0.0, {"accelerator_type:H200": 1.0}, "cpu"),
        (1.0, {"accelerator_type:H200": 1.0}, "h200"),
        (1.0, {"accelerator_type:A100": 1.0}, "a100-40g"),
        (1.0, {"accelerator_type:B999": 1.0}, "h100"),
        (1.0, {}, "h100"),
    ],
)
def test_the_profile_is_that_of_the_cluster(gpus: float, resources: dict[str, float], expected: str) -> None:
    assert device_of(WorkerLayout(count=1, cpus=1.0, gpus=gpus), resources).profile == expected
