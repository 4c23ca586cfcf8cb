"""What makes a batch schedule and its selections runnable, said in sentences a person can act on."""

from __future__ import annotations

import numbers
from collections.abc import Sequence


def is_whole_number(value: object) -> bool:
    """Return whether `value` is an integer; true and false are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def selection_scale_problems(
    num_scales: int, cluster_scales: Sequence[int], resample_scales: Sequence[int]
) -> list[str]:
    """Return what is wrong with the selection scales: range, repetition, two selections at one scale."""
    problems: list[str] = []
    for name, scales in (
        ("cluster_scales", cluster_scales),
        ("resample_scales", resample_scales),
    ):
        lowest = 1 if name == "cluster_scales" else 0
        for position, scale in enumerate(scales):
            where = f"{name}[{position}]"
            if not is_whole_number(scale):
                problems.append(f"{where}: expected a scale index, got {scale!r}; use a whole number.")
            elif scale == num_scales - 1:
                problems.append(
                    f"{where}: scale {scale} is the last scale, where the best image is chosen by reward; "
                    f"a selection there would choose twice: use a scale below {scale}."
                )
            elif not 0 <= scale < num_scales:
                problems.append(
                    f"{where}: expected a scale from {lowest} to {num_scales - 2} "
                    f"(the model has {num_scales} scales), got {scale}; correct or remove it."
                )
            elif scale < lowest:
                problems.append(
                    f"{where}: clustering at scale 0 cannot drop anything, because batch_schedule[0] is the "
                    f"population both before and after it; use scale 1 or later."
                )
            elif scale in scales[:position]:
                problems.append(f"{where}: scale {scale} is listed twice; remove one.")
    problems += [
        f"cluster_scales and resample_scales: both name scale {scale}, and a scale has at most one "
        f"selection; remove it from one of them."
        for scale in sorted({s for s in cluster_scales if is_whole_number(s)} & set(resample_scales))
    ]
    return problems


def batch_schedule_problems(
    num_scales: int,
    batch_schedule: Sequence[int],
    cluster_scales: Sequence[int],
    resample_scales: Sequence[int],
) -> list[str]:
    """Return what is wrong with a schedule of survivors.

    Entry k is the population after scale k's selection, so it may be lower than entry k - 1 only
    where scale k has a selection, and never higher. Entry 0 is also the population before scale 0.
    """
    if len(batch_schedule) != num_scales:
        missing = num_scales - len(batch_schedule)
        remedy = f"add {missing}" if missing > 0 else f"remove {-missing}"
        found = f"expected {num_scales} entries (one a scale), got {len(batch_schedule)}"
        return [f"batch_schedule: {found}; {remedy}."]
    unusable = [
        f"batch_schedule[{scale}]: expected a whole number of at least 1, got {entry!r}; correct it."
        for scale, entry in enumerate(batch_schedule)
        if not is_whole_number(entry) or entry < 1
    ]
    if unusable:
        return unusable
    problems: list[str] = []
    selection_scales = {*cluster_scales, *resample_scales}
    for scale in range(1, num_scales):
        before, after = batch_schedule[scale - 1], batch_schedule[scale]
        if after > before:
            problems.append(
                f"batch_schedule[{scale}]: expected at most {before} (population before scale {scale}), "
                f"got {after}; a population never grows: lower it, or raise the entries before it."
            )
        elif after < before and scale not in selection_scales:
            problems.append(
                f"batch_schedule[{scale}]: expected {before} (no selection at scale {scale} could drop any), "
                f"got {after}; raise it to {before} or add a selection at scale {scale}."
            )
        elif after == before and scale in cluster_scales:
            problems.append(
                f"batch_schedule[{scale}]: expected fewer than {before} (population before the clustering at "
                f"scale {scale}), got {after}; clustering into as many would drop nothing: lower it or "
                f"remove {scale} from cluster_scales."
            )
    return problems
