"""Lineage: ancestor indices composed back to the first population."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ttsvar_ray.types import Int64Array


def compose(earlier: npt.ArrayLike, later: npt.ArrayLike) -> Int64Array:
    """Return the ancestors of two selections in a row.

    Args:
        earlier: int [middle] slots in the first population, one per trajectory between the selections.
        later: int [survivors] slots in that middle population.

    Returns:
        int64 [survivors] slots in the first population. Composition is associative.
    """
    return np.asarray(earlier, dtype=np.int64)[np.asarray(later, dtype=np.int64)]


def trace(ancestor_indices: Sequence[npt.ArrayLike], num_final: int) -> Int64Array:
    """Return every final trajectory's slot in the population of every segment.

    Args:
        ancestor_indices: one int [survivors] array per selection, in the order they happened.
        num_final: trajectories in the last segment.

    Returns:
        int64 [len(ancestor_indices) + 1, num_final]; column j is the lineage of final slot j: row s
        its ancestor's slot in the population of segment s, the last row j itself.
    """
    rows = [np.arange(num_final, dtype=np.int64)]
    for ancestor_index in reversed(ancestor_indices):
        rows.append(compose(ancestor_index, rows[-1]))
    return np.stack(rows[::-1])
