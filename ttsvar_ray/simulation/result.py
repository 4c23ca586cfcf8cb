"""What a simulated run showed, as values and as JSON; quantiles of many numbers in constant memory."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.simulation.settings import SimulationSettings

RESOLUTION = 0.01
"""Relative width of a bin: a quantile is off by at most half of it."""

_STEP = math.log1p(RESOLUTION)
_SMALLEST = 1e-6


class LogHistogram:
    """Counts in bins of equal relative width; the largest and the mean are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._sum = 0.0
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one number of at least 0."""
        self.count += 1
        self._sum += value
        self.largest = max(self.largest, value)
        self._bins[int(math.log(max(value, _SMALLEST)) // _STEP)] += 1

    @property
    def mean(self) -> float:
        """Mean, NaN without numbers."""
        return self._sum / self.count if self.count else float("nan")

    def quantile(self, share: float) -> float:
        """Return the number that a share (0..1) of all does not exceed; NaN without numbers."""
        if not self.count:
            return float("nan")
        wanted = max(1, math.ceil(share * self.count))
        seen = 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= wanted:
                return min(math.exp((index + 0.5) * _STEP), self.largest)
        raise AssertionError("the bins count every number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds from a prompt's first order to its last answer; quantiles to 1 %, `most` exact."""

    p50: float
    p95: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorLoad:
    """How busy the coordinators were.

    Attributes:
        decisions: events that all of them took in.
        mean, most: share of the run that one was busy, over all cells, 0..1.
        wait_mean, wait_p95: seconds that an event waited for its coordinator; the cell that is worst.
    """

    decisions: int
    mean: float
    most: float
    wait_mean: float
    wait_p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesMoved:
    """Bytes over the network, by kind.

    Attributes:
        bits_reported: tokens that workers reported.
        bits_sent: tokens sent along to rebuild parents elsewhere.
        features: what selections look at.
        images: final images that are kept.
    """

    bits_reported: int
    bits_sent: int
    features: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """One simulated run.

    Attributes:
        settings, spread, strategy, workload_source: what was simulated.
        makespan_seconds: until the last part was written.
        prompts, failed, images: finished prompts, those of them that were given up, and images kept.
        prompts_per_second, images_per_second: over the whole run, its start and its tail included.
        ideal_prompts_per_second: if every GPU ran full micro-batches from the first second to the last,
            without noise, stragglers, losses, replays or waiting.
        steady_prompts_per_second: between the time when all workers should have started and the lease of
            the last prompt; NaN where the run is too short for that.
        utilisation: computing of any kind, as a share of all GPU time (GPUs times makespan), 0..1.
        goodput_utilisation: the same without replays and without work that was lost or done twice.
        steady_utilisation: computing of any kind between start and tail, as above.
        seconds: GPU seconds by reason; they add up to GPUs times makespan.
        batches, rows_per_batch: micro-batches, and their mean trajectories.
        replays: parents rebuilt from bits.
        moved, survivors: survivors that left their parent's worker, of all.
        workers_lost: losses of workers, those with a whole node included.
        writer_load: share of the makespan that the writer was busy.
        late_outcomes: prompts that two cells finished.
        measured_decision_seconds: real time that the coordinators took for one event on the machine that
            simulated; NaN where nobody measured.
        bin_seconds, timeline: GPU seconds of each stretch of the run, by reason.
    """

    settings: SimulationSettings
    spread: int | str
    strategy: str
    workload_source: str
    makespan_seconds: float
    prompts: int
    failed: int
    images: int
    prompts_per_second: float
    images_per_second: float
    ideal_prompts_per_second: float
    steady_prompts_per_second: float
    utilisation: float
    goodput_utilisation: float
    steady_utilisation: float
    seconds: Mapping[str, float]
    latency: Latency
    coordinator: CoordinatorLoad
    bytes_moved: BytesMoved
    batches: int
    rows_per_batch: float
    replays: int
    moved: int
    survivors: int
    workers_lost: int
    writer_load: float
    late_outcomes: int
    measured_decision_seconds: float
    bin_seconds: float
    timeline: Mapping[str, list[float]]

    def to_json(self, *, timeline: bool = True) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become null."""
        values = dataclasses.asdict(self)
        if not timeline:
            del values["timeline"], values["bin_seconds"]
        cleaned = _finite(values)
        assert isinstance(cleaned, dict)
        return cleaned


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
