"""The same run under other conditions: what noise, faults, slow workers, spread and cells cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.simulation.settings import SimulationSettings

ONE_IN_A_HUNDRED = 0.01
"""Losses per GPU and hour: one an hour in a hundred GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One run of a comparison; `name` says what differs from the first."""

    name: str
    settings: SimulationSettings
    coordinator: CoordinatorSettings


def variants(settings: SimulationSettings, coordinator: CoordinatorSettings) -> Iterator[Variant]:
    """Yield the run as it is, and then with one thing changed at a time."""
    usual = settings.failures_per_gpu_hour or ONE_IN_A_HUNDRED
    changes: list[tuple[str, SimulationSettings, CoordinatorSettings]] = [
        ("as given", settings, coordinator),
        ("no noise", replace(settings, noise=0.0), coordinator),
        ("20 % noise", replace(settings, noise=0.2), coordinator),
        ("no losses", replace(settings, failures_per_gpu_hour=0.0), coordinator),
        (
            f"{100 * usual:g} losses an hour per 100 GPUs",
            replace(settings, failures_per_gpu_hour=usual),
            coordinator,
        ),
        (
            f"{1000 * usual:g} losses an hour per 100 GPUs",
            replace(settings, failures_per_gpu_hour=10 * usual),
            coordinator,
        ),
        (
            f"{10_000 * usual:g} losses an hour per 100 GPUs",
            replace(settings, failures_per_gpu_hour=100 * usual),
            coordinator,
        ),
        (
            f"one in ten nodes of {settings.gpus_per_node} lost an hour",
            replace(settings, failures_per_node_hour=0.1),
            coordinator,
        ),
        ("1 % stragglers, twice as slow", replace(settings, stragglers=0.01), coordinator),
        ("5 % stragglers, twice as slow", replace(settings, stragglers=0.05), coordinator),
        (
            "1 % stragglers, ten times as slow",
            replace(settings, stragglers=0.01, straggler_factor=10.0),
            coordinator,
        ),
    ]
    changes += [
        (f"spread {spread}", settings, replace(coordinator, spread=spread)) for spread in ("auto", 1, 2, 4)
    ]
    changes += [
        (f"{workers} workers a cell", replace(settings, workers_per_cell=workers), coordinator)
        for workers in (8, 16, 32, 64)
        if workers <= settings.gpus
    ]
    if math.isinf(settings.sink_bytes_per_second):
        changes.append(("one writer of 1 GB/s", replace(settings, sink_bytes_per_second=1e9), coordinator))
    seen: list[tuple[SimulationSettings, CoordinatorSettings]] = []
    for name, changed, policies in changes:
        if (changed, policies) not in seen:
            seen.append((changed, policies))
            yield Variant(name=name, settings=changed, coordinator=policies)
