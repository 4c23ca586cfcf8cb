"""The compiled plan: survivors per scale, selections, segments."""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.types import PotentialKind, ResamplingScheme, ScaleSchedule, SelectionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """An operator population -> survivors after one scale."""

    scale_index: int
    kind: SelectionKind
    survivors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of scales that ends at a selection scale, or at the last scale (`selection` None)."""

    index: int
    first_scale: int
    last_scale: int
    population: int
    selection: Selection | None
    scored_scales: tuple[int, ...]

    @property
    def is_last(self) -> bool:
        """Whether the final images come out of this segment."""
        return self.selection is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Algorithm 1 for one model and one strategy; everything in it is used, nothing else is.

    Attributes:
        survivors_after: trajectories that remain after scale k's selection.
        selections: in ascending scale order, at most one a scale.
        scored_scales: scales after which every live trajectory is decoded and scored; always
            includes the last one.
        potential, lambda_, scheme: how rewards become survivors.
        cluster_restarts: k-means n_init.
    """

    strategy: str
    scale_schedule: ScaleSchedule
    survivors_after: tuple[int, ...]
    selections: tuple[Selection, ...]
    scored_scales: tuple[int, ...]
    potential: PotentialKind = PotentialKind.VALUE
    lambda_: float = 10.0
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL
    cluster_restarts: int = 10

    @property
    def num_scales(self) -> int: ...

    @property
    def population_before(self) -> tuple[int, ...]:
        """Trajectories that run scale k: `survivors_after` shifted by one scale."""
        ...

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The plan cut after each selection."""
        ...
