"""What a run tells Ray's own metrics: each node serves them to Prometheus, and the dashboard draws them.

The driver counts prompts, images and parts; each cell says what waits, runs, fails and is replayed. Numbers
are only sent, never read: nothing in a run depends on them. docs/cluster.md has them in a table.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from ttsvar_ray.coordination.decisions import View
from ttsvar_ray.coordination.messages import RunBatch, SegmentReport, ShardFailure
from ttsvar_ray.results import PromptFailure, PromptResult

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"ttsvar_{name}", description=description, tag_keys=("run", *tags))


def _gauge(name: str, description: str, *tags: str) -> Gauge:
    return Gauge(f"ttsvar_{name}", description=description, tag_keys=("run", *tags))


class RunMetrics:
    """The driver's share.

    Args:
        run: what tells this run from others of its cluster.
    """

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._prompts = _counter("prompts", "Prompts that are done in this session, by outcome.", "outcome")
        self._images = _counter("images", "Images of the prompts that are done in this session.")
        self._parts = _counter("parts", "Parts that this session committed.")
        self._left = _gauge("prompts_left", "Prompts that are not done yet.")

    def outcome(self, outcome: PromptResult | PromptFailure, *, left: int) -> None:
        """Count an outcome."""
        is_done = isinstance(outcome, PromptResult)
        self._prompts.inc(1, {**self._run, "outcome": "finished" if is_done else "failed"})
        if isinstance(outcome, PromptResult):
            self._images.inc(len(outcome.images), self._run)
        self._left.set(left, self._run)

    def committed(self) -> None:
        """Count a part."""
        self._parts.inc(1, self._run)


class CellMetrics:
    """One cell's share."""

    def __init__(self, run: str, cell: str) -> None:
        self._tags = {"run": run, "cell": cell}
        self._seconds = Histogram(
            "ttsvar_segment_seconds",
            description="Seconds that workers computed micro-batches, by segment.",
            boundaries=_SECONDS,
            tag_keys=("run", "cell", "segment"),
        )
        self._trajectories = _counter("trajectories", "Trajectories run, by segment.", "cell", "segment")
        self._replays = _counter("replays", "Trajectories rebuilt from their bits.", "cell")
        self._failures = _counter("shard_failures", "Shards that failed, by kind.", "cell", "kind")
        self._lost = _counter("workers_lost", "Workers that died or were given up.", "cell")
        self._waiting = _gauge("prompts_waiting", "Prompts leased and not begun.", "cell")
        self._live = _gauge("prompts_live", "Prompts begun and not done.", "cell")
        self._workers = _gauge("workers", "Workers that are up, by state: busy or idle.", "cell", "state")
        self._reserved = _gauge(
            "reserved_bytes",
            "Device memory reserved for trajectories, KV caches above all; 0 where bytes are not known.",
            "cell",
        )

    def answered(self, sent: RunBatch, results: Sequence[SegmentReport | ShardFailure]) -> None:
        """Count a micro-batch that was answered."""
        segment = {**self._tags, "segment": str(sent.tasks[0].segment_index)}
        reports = [result for result in results if isinstance(result, SegmentReport)]
        if reports:
            self._seconds.observe(max(report.seconds for report in reports), segment)
            self._trajectories.inc(sum(len(report.slots) for report in reports), segment)
        if replayed := sum(len(task.parent_bits) for task in sent.tasks):
            self._replays.inc(replayed, self._tags)
        for result in results:
            if isinstance(result, ShardFailure):
                self._failures.inc(1, {**self._tags, "kind": result.kind.value})

    def lost(self) -> None:
        """Count a worker that is lost."""
        self._lost.inc(1, self._tags)

    def look(self, view: View) -> None:
        """Say how the coordinator stands."""
        workers = list(view.workers)
        idle = sum(worker.is_idle for worker in workers)
        self._waiting.set(len(view.waiting), self._tags)
        self._live.set(len(view.live), self._tags)
        self._workers.set(idle, {**self._tags, "state": "idle"})
        self._workers.set(len(workers) - idle, {**self._tags, "state": "busy"})
        in_bytes = [worker.reserved for worker in workers if not worker.memory.children_replace_parents]
        self._reserved.set(sum(in_bytes), self._tags)
