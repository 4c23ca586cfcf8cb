"""Answers of simulated workers: valid for the population that they are for, and as small as that allows."""

from __future__ import annotations

import numpy as np

from ttsvar_ray.coordination.actions import RunBatch
from ttsvar_ray.coordination.messages import SegmentReport
from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.types import Float32Array, SelectionKind

_POOL_ROWS = 4096
_BITS = b"\x00"
_PATCHES = (8, 32)
"""Patches and their width where the selection itself reduces them; real ones are larger."""


class ReportMaker:
    """Makes the reports of a plan's segments out of fixed pools of random numbers."""

    def __init__(self, plan: Plan, *, seed: int, feature_dim: int, most_rows: int) -> None:
        """Draw the pools.

        Args:
            plan: whose segments are reported.
            seed: of the pools.
            feature_dim: numbers of one image's features, where they arrive as one vector.
            most_rows: most slots of one report.
        """
        random = np.random.default_rng(seed)
        pool_rows = _POOL_ROWS + most_rows
        shape = (feature_dim,) if plan.joint_component is None else _PATCHES
        self._features = random.normal(size=(pool_rows, *shape)).astype(np.float32)
        rewards = random.random((pool_rows, len(plan.scored_scales) * plan.reward_members), dtype=np.float32)
        self._segments = tuple(
            _SegmentPart.of(segment, rewards[:, : len(segment.scored_scales) * plan.reward_members])
            for segment in plan.segments
        )
        self._next_row = 0

    def answer(self, batch: RunBatch, row_seconds: float) -> tuple[SegmentReport, ...]:
        """Return the report of each shard of a micro-batch.

        Args:
            batch: what was asked.
            row_seconds: time of the micro-batch that each of its trajectories took part in to some use.
        """
        reports = []
        for task in batch.tasks:
            part = self._segments[task.segment_index]
            count = len(task.slots)
            first = self._next_row
            self._next_row = (first + count) % _POOL_ROWS
            reports.append(
                SegmentReport(
                    prompt_key=task.prompt.key,
                    attempt=task.attempt,
                    segment_index=task.segment_index,
                    slots=task.slots,
                    features=self._features[first : first + count] if part.clusters else None,
                    rewards=part.rewards[first : first + count],
                    bits=(part.bits,) * count,
                    images=(_IMAGE,) * count if part.is_last else (),
                    seconds=row_seconds * count,
                )
            )
        return tuple(reports)


_IMAGE = FinalImage(payload=b"", width=1, height=1, image_format="none")


class _SegmentPart:
    """What all reports of one segment have in common."""

    def __init__(self, *, clusters: bool, is_last: bool, bits: PackedBits, rewards: Float32Array) -> None:
        self.clusters = clusters
        self.is_last = is_last
        self.bits = bits
        self.rewards = rewards

    @classmethod
    def of(cls, segment: Segment, rewards: Float32Array) -> _SegmentPart:
        selection = segment.selection
        return cls(
            clusters=selection is not None and selection.kind is SelectionKind.CLUSTER,
            is_last=segment.is_last,
            bits=(_BITS,) * (segment.last_scale - segment.first_scale + 1),
            rewards=rewards,
        )
