"""What is simulated: how many GPUs, how they behave, what everything around them takes; and variants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.errors import ConfigurationError

ONE_IN_A_HUNDRED = 0.01
"""Losses per GPU and hour: one an hour in a hundred GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorCosts:
    """Seconds that one coordinator, which does one thing at a time, spends.

    The defaults were measured on one core of a shared x86 server: decisions and selections with this
    coordinator, TTS-VAR with N=1 (`benchmarks.coordinator_rate`); messages as what is left of the CPU time
    of a cell's process on Ray 2.60, its background threads included (`benchmarks.orchestration`).

    Attributes:
        message_seconds: to take in one event and send what follows from it.
        shard_seconds: for each shard that an event reports, beyond the message.
        cluster_seconds, resample_seconds: for each selection over a whole population that reads features, and
            for each other one.
    """

    message_seconds: float = 5e-3
    shard_seconds: float = 0.3e-3
    cluster_seconds: float = 0.9e-3
    resample_seconds: float = 0.07e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadSizes:
    """Sizes of what travels.

    Attributes:
        bits_per_token: bits that name one token.
        feature_dim: float32 numbers of one image's features.
        image_bytes: one encoded image.
    """

    bits_per_token: int = 32
    feature_dim: int = 256
    image_bytes: int = 1_500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """One simulated run.

    Attributes:
        gpus: workers, one GPU each.
        prompts: prompts of the whole run.
        rows: most trajectories of a worker's micro-batch; one number, or one per segment.
        memory_bytes: what a worker can give to trajectories; None: only `rows` limits it.
        workers_per_cell: workers that one coordinator has.
        gpus_per_node: workers that a node's end takes along.
        seed: of everything random here; the same seed gives the same run, number for number.
        noise: relative standard deviation of a micro-batch's time (log-normal, mean 1).
        stragglers: share of the workers that are slow all the time, 0..1.
        straggler_factor: how many times longer these take.
        failures_per_gpu_hour: losses of one worker with its state.
        failures_per_node_hour: losses of a whole node.
        detection_seconds: until a coordinator learns of a loss.
        restart_seconds: from there until another worker is ready in its place.
        start_seconds: until the first worker is ready.
        start_spread_seconds: the others are ready at random times in this interval after it.
        call_seconds: one way of a message between coordinator and worker.
        driver_seconds: one way between coordinator and driver, which polls.
        tick_seconds: between two looks of a coordinator at the time.
        rows_per_part: prompts of one output part.
        sink_bytes_per_second: what the writer sustains, which is one process; infinite: writing is free.
        selections: "real" runs the selections of the search over random features and rewards; "cheap" draws
            random ancestors instead: parents are as many and as mixed, and the run takes half the time. The
            simulated seconds of a selection are those of `coordinator` either way.
    """

    gpus: int
    prompts: int
    rows: int | tuple[int, ...]
    memory_bytes: int | None = None
    workers_per_cell: int = 64
    gpus_per_node: int = 8
    seed: int = 0
    noise: float = 0.05
    stragglers: float = 0.0
    straggler_factor: float = 2.0
    failures_per_gpu_hour: float = 0.0
    failures_per_node_hour: float = 0.0
    detection_seconds: float = 1.0
    restart_seconds: float = 60.0
    start_seconds: float = 30.0
    start_spread_seconds: float = 30.0
    call_seconds: float = 1e-3
    driver_seconds: float = 5e-3
    tick_seconds: float = 1.0
    rows_per_part: int = 256
    sink_bytes_per_second: float = math.inf
    coordinator: CoordinatorCosts = field(default_factory=CoordinatorCosts)
    payload: PayloadSizes = field(default_factory=PayloadSizes)
    selections: Literal["real", "cheap"] = "cheap"

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected {expected}, got {getattr(self, name)!r}"
            for names, is_fine, expected in _EXPECTED
            for name in names
            if not is_fine(getattr(self, name))
        ]
        problems += [
            f"{name}: expected at least 0, got {value}"
            for part in (self.coordinator, self.payload)
            for name, value in dataclasses.asdict(part).items()
            if value < 0
        ]
        if problems:
            raise ConfigurationError([f"simulation: {problem}" for problem in problems])

    @property
    def num_cells(self) -> int:
        """Coordinators of the run: as few as their most workers allow."""
        return -(-self.gpus // self.workers_per_cell)

    def cell_of(self, gpu: int) -> int:
        """Return which cell a worker belongs to; cells are as even as can be."""
        return ((gpu + 1) * self.num_cells - 1) // self.gpus


_EXPECTED: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("gpus", "prompts", "workers_per_cell", "gpus_per_node", "rows_per_part"),
        lambda count: count >= 1,
        "at least 1",
    ),
    (
        ("rows",),
        lambda rows: min((rows,) if isinstance(rows, int) else rows, default=0) >= 1,
        "numbers of at least 1",
    ),
    (
        ("noise", "failures_per_gpu_hour", "failures_per_node_hour"),
        lambda value: 0 <= value < math.inf,
        "a finite number of at least 0",
    ),
    (
        tuple(
            f"{what}_seconds" for what in ("detection", "restart", "start", "start_spread", "call", "driver")
        ),
        lambda value: 0 <= value < math.inf,
        "a finite number of at least 0",
    ),
    (("stragglers",), lambda share: 0 <= share <= 1, "a share in 0..1"),
    (("straggler_factor",), lambda factor: 1 <= factor < math.inf, "at least 1"),
    (("tick_seconds", "sink_bytes_per_second"), lambda value: value > 0, "more than 0"),
    (("memory_bytes",), lambda count: count is None or count >= 1, "at least 1 or None"),
    (("selections",), lambda name: name in ("real", "cheap"), '"real" or "cheap"'),
)
"""Settings by name, whether a value is possible, and what is expected of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One run of a comparison; `name` says what differs from the first."""

    name: str
    settings: SimulationSettings
    coordinator: CoordinatorSettings


def variants(settings: SimulationSettings, coordinator: CoordinatorSettings) -> Iterator[Variant]:
    """Yield the run as it is, and then with one thing changed at a time."""
    usual = settings.failures_per_gpu_hour or ONE_IN_A_HUNDRED
    changes: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("as given", {}, {}),
        ("no noise", {"noise": 0.0}, {}),
        ("20 % noise", {"noise": 0.2}, {}),
        ("no losses", {"failures_per_gpu_hour": 0.0}, {}),
        *(
            (f"{text} losses an hour per 100 GPUs", {"failures_per_gpu_hour": times * usual}, {})
            for text, times in (
                (f"{100 * usual:g}", 1),
                (f"{1000 * usual:g}", 10),
                (f"{10_000 * usual:g}", 100),
            )
        ),
        (
            f"one in ten nodes of {settings.gpus_per_node} lost an hour",
            {"failures_per_node_hour": 0.1},
            {},
        ),
        ("1 % stragglers, twice as slow", {"stragglers": 0.01}, {}),
        ("5 % stragglers, twice as slow", {"stragglers": 0.05}, {}),
        ("1 % stragglers, ten times as slow", {"stragglers": 0.01, "straggler_factor": 10.0}, {}),
        *((f"spread {spread}", {}, {"spread": spread}) for spread in ("auto", 1, 2, 4)),
        *(
            (f"{workers} workers a cell", {"workers_per_cell": workers}, {})
            for workers in (8, 16, 32, 64)
            if workers <= settings.gpus
        ),
    ]
    if math.isinf(settings.sink_bytes_per_second):
        changes.append(("one writer of 1 GB/s", {"sink_bytes_per_second": 1e9}, {}))
    seen: list[tuple[SimulationSettings, CoordinatorSettings]] = []
    for name, of_settings, of_coordinator in changes:
        changed = replace(settings, **of_settings), replace(coordinator, **of_coordinator)
        if changed not in seen:
            seen.append(changed)
            yield Variant(name=name, settings=changed[0], coordinator=changed[1])
