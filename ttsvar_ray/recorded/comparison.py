"""What `verify` found: one comparison per recorded array, a table for people, a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import CheckpointError

EXACT = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One compared array: its largest absolute `error` is judged against `tolerance`."""

    case: str
    array: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # A NaN is not <= anything, so it fails.
        return self.error <= self.tolerance


@dataclass(slots=True, kw_only=True)
class Case:
    """Collects the comparisons of one recorded folder.

    Attributes:
        name: the folder's name.
        comparisons: in the order they were made.
        notes: what could not be compared here, and why.
    """

    name: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, array: str, got: npt.ArrayLike, recorded: npt.ArrayLike, tolerance: float) -> None:
        """Compare what was computed with what was recorded.

        Raises:
            CheckpointError: their shapes differ.
        """
        mine = np.asarray(got, np.float64)
        try:
            theirs = np.asarray(recorded, np.float64)
        except (ValueError, TypeError) as problem:
            message = f"{self.name}: {array}: expected an array of numbers among the recorded values"
            raise CheckpointError(message) from problem
        if mine.shape != theirs.shape:
            raise CheckpointError(
                f"{self.name}: {array}: recorded with shape {theirs.shape}, computed with {mine.shape}; "
                "the folder's files do not belong together"
            )
        error = float(np.abs(mine - theirs).max()) if mine.size else float("nan")
        self.comparisons.append(Comparison(case=self.name, array=array, error=error, tolerance=tolerance))


@dataclass(slots=True, kw_only=True)
class ComparisonReport:
    """All cases of one folder, on one device, in float32."""

    device: str
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def comparisons(self) -> list[Comparison]:
        return [comparison for case in self.cases for comparison in case.comparisons]

    @property
    def passed(self) -> bool:
        """Whether something was compared in every case, and all of it agrees."""
        return bool(self.cases) and all(
            case.comparisons and all(comparison.passed for comparison in case.comparisons)
            for case in self.cases
        )

    def lines(self) -> list[str]:
        """Return a table for people, what was left out, and the verdict as the last line."""
        lines = [f"{'case':<14} {'array':<44} {'largest error':>13} {'tolerance':>9}"]
        for comparison in self.comparisons:
            mark = "ok" if comparison.passed else "FAILED"
            lines.append(
                f"{comparison.case:<14} {comparison.array:<44} {comparison.error:>13.2e} "
                f"{comparison.tolerance:>9.0e} {mark}"
            )
        lines += [f"{case.name}: {note}" for case in self.cases for note in case.notes]
        lines += self.notes
        failed = sum(not comparison.passed for comparison in self.comparisons)
        count = len(self.comparisons)
        verdict = (
            "all agree" if self.passed else f"{failed} of {count} differ" if failed else "nothing compared"
        )
        lines.append(f"{self.device} float32: {len(self.cases)} cases, {count} arrays compared, {verdict}")
        return lines


def aligned(values: npt.NDArray[np.floating], recorded: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return rows of `values` [n, k] turned to the sign of the recorded rows: a direction has no sign."""
    turned: npt.NDArray[np.floating] = values * np.sign((values * recorded).sum(axis=-1, keepdims=True))
    return turned


def required(content: Mapping[str, object], key: str, where: str) -> object:
    """Return `content[key]`, or say which key of which file is missing."""
    if key not in content:
        raise CheckpointError(f"{where}: expected the key {key!r}, found {', '.join(sorted(content))}")
    return content[key]
