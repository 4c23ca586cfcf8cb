"""A worker that joins: what it is charged in, what it has, how large its batches may be."""

from __future__ import annotations

from collections.abc import Sequence

from ttsvar_ray.coordination.fleet import Worker
from ttsvar_ray.coordination.messages import Refuse, WorkerJoined
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.tariff import Tariff, byte_tariff, row_tariff
from ttsvar_ray.coordination.workload import Workload, rows_by_segment
from ttsvar_ray.search.plan import Plan


def take_measure(
    event: WorkerJoined, *, plan: Plan, settings: CoordinatorSettings, workload: Workload | None
) -> Worker | Refuse:
    """Return the worker as its memory, the settings and the workload allow, or why it can run nothing."""
    rows = rows_by_segment(event.rows, plan)
    if workload is None or event.memory_bytes is None:
        tariff = row_tariff(plan)
        # In trajectories, every worker can finish a prompt on its own.
        least = max(segment.population for segment in plan.segments)
        capacity = max(settings.live_rows or (settings.batches_in_flight + 2) * max(rows), least)
    else:
        tariff = byte_tariff(workload)
        least = tariff.least
        capacity = event.memory_bytes
        if capacity < least:
            return Refuse(
                worker_id=event.worker_id,
                reason=f"{capacity / 1e9:.3g} GB for trajectories: expected at least {least / 1e9:.3g} GB to "
                f"hold one trajectory and its parent and to run {_pass_text(workload)} ({workload.source}); "
                "use a device with more memory, or a smaller model or image",
            )
    return Worker(
        worker_id=event.worker_id,
        tariff=tariff,
        capacity=capacity,
        least=least,
        peak=tariff.peak(plan),
        limits=_batch_limits(rows, capacity, tariff, plan, settings.batch_tokens),
        weights=(1.0,) * len(plan.segments)
        if workload is None
        else tuple(load.row_seconds for load in workload.segments),
    )


def _pass_text(workload: Workload) -> str:
    rows = [load.pass_rows for load in workload.segments]
    if not any(rows):
        return "it"
    return f"passes of {', '.join(map(str, rows))} rows, which engine.deterministic keeps full: lower them"


def _batch_limits(
    rows: Sequence[int], capacity: int, tariff: Tariff, plan: Plan, batch_tokens: int | None
) -> list[int]:
    """Return the trajectories that fill a batch, by segment: at least one, whatever the budgets."""
    limits = list(rows)
    if batch_tokens is not None:
        sides = plan.scale_schedule
        tokens = [sum(h * w for h, w in sides[s.first_scale : s.last_scale + 1]) for s in plan.segments]
        limits = [min(r, batch_tokens // t) for r, t in zip(limits, tokens, strict=True)]
    # Half of the memory is for what runs: a batch that takes more would have to wait for room.
    limits = [min(r, capacity // 2 // p) if p else r for r, p in zip(limits, tariff.running, strict=True)]
    return [max(1, limit) for limit in limits]
