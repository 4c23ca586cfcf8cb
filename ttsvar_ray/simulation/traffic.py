"""What travels between coordinator and workers, counted."""

from __future__ import annotations

from ttsvar_ray.coordination.actions import RunBatch
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.settings import PayloadSizes
from ttsvar_ray.types import SelectionKind


class Traffic:
    """Counts of micro-batches, trajectories, replays, and bytes by kind.

    Attributes:
        batches: micro-batches that were sent.
        shards: shards in them.
        rows: trajectories in them.
        replays: distinct parents whose bits were sent along, to be rebuilt.
        bits_reported, feature_bytes: bytes to the coordinator.
        bits_sent: bytes to workers, for replays.
    """

    def __init__(self, plan: Plan, workload: Workload, payload: PayloadSizes) -> None:
        self.batches = 0
        self.shards = 0
        self.rows = 0
        self.replays = 0
        self.bits_reported = 0
        self.bits_sent = 0
        self.feature_bytes = 0
        self._segment_bits = [load.tokens * payload.bits_per_token // 8 for load in workload.segments]
        self._past_bits = [sum(self._segment_bits[:index]) for index in range(len(self._segment_bits))]
        self._feature_bytes = [
            4 * payload.feature_dim
            if segment.selection is not None and segment.selection.kind is SelectionKind.CLUSTER
            else 0
            for segment in plan.segments
        ]

    def sent(self, batch: RunBatch, segment_index: int, rows: int, replayed: int) -> None:
        """Count a micro-batch and the answer that it will get."""
        self.batches += 1
        self.shards += len(batch.tasks)
        self.rows += rows
        self.replays += replayed
        self.bits_sent += replayed * self._past_bits[segment_index]
        self.bits_reported += rows * self._segment_bits[segment_index]
        self.feature_bytes += rows * self._feature_bytes[segment_index]
