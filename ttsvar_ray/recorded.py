"""Recorded arrays and what `verify` finds: one comparison per array, a table for people, a verdict.

Models, rewards and feature extractors compare with recordings through the one `Case`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ttsvar_ray.errors import CheckpointError, reading_weights
from ttsvar_ray.types import UInt8Array


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what libraries raise over a missing or damaged file into a CheckpointError that names it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the recorded folder is incomplete")
    with reading_weights(path, kind="a recorded file"):
        yield


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_images(folder: Path, names: list[str]) -> list[UInt8Array]:
    """Return uint8 RGB [height, width, 3] images of any sizes."""
    images = []
    for name in names:
        path = folder / Path(name).name
        with reading(path), Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return images


EXACT = 0.0
"""The tolerance of what must be equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One compared array.

    Attributes:
        case: the recorded folder or file.
        array: its name there.
        kind: what the table gathers: arrays of one kind are shown by the worst of them.
        error: the largest absolute difference, or a relative one; see `Case`.
        tolerance: what `error` may be.
    """

    case: str
    array: str
    kind: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # A NaN is not <= anything, so it fails.
        return self.error <= self.tolerance


@dataclass(slots=True, kw_only=True)
class Case:
    """Collects the comparisons of one recorded folder or file.

    Attributes:
        recorded: its arrays by name: tensors, numpy arrays or lists of numbers.
        kind_of: from an array's name to its kind.
        relative: where given, what need not be exact is judged by its root-mean-square difference relative to
            the recorded root mean square, and this is the most it may be.
        comparisons: in the order they were made.
        notes: what could not be compared here, and why.
        is_left_out: whether that is all of it, on purpose.
        used: names of the arrays that were compared.
    """

    name: str
    recorded: Mapping[str, Any] = field(default_factory=dict)
    kind_of: Callable[[str], str] = str
    relative: float | None = None
    comparisons: list[_Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_left_out: bool = False
    used: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        return self.is_left_out or (
            bool(self.comparisons) and all(comparison.passed for comparison in self.comparisons)
        )

    def compare(
        self, key: str, got: Any, tolerance: float, *, view: Callable[[Any], Any] = lambda recorded: recorded
    ) -> None:
        """Compare with the recorded array `key`, seen through `view`; a recording may leave it out.

        Raises:
            CheckpointError: their shapes differ.
        """
        if key in self.recorded:
            self.used.add(key)
            self.between(key, got, view(self.recorded[key]), tolerance)

    def between(self, name: str, got: Any, expected: Any, tolerance: float) -> None:
        """Compare two arrays under a name of their own.

        Raises:
            CheckpointError: their shapes differ, or what was recorded are no numbers.
        """
        mine = _float64(got)
        try:
            theirs = _float64(expected)
        except (ValueError, TypeError) as problem:
            message = f"{self.name}: {name}: expected an array of numbers among the recorded values"
            raise CheckpointError(message) from problem
        if mine.shape != theirs.shape:
            raise CheckpointError(
                f"{self.name}: {name}: recorded with shape {theirs.shape}, computed with {mine.shape}; "
                "the recorded files do not belong together"
            )
        error, tolerance = self._judge(mine, theirs, tolerance)
        self.comparisons.append(
            _Comparison(case=self.name, array=name, kind=self.kind_of(name), error=error, tolerance=tolerance)
        )

    def leave_out(self, why: str) -> None:
        """Say that nothing of this case can be compared here."""
        self.is_left_out = True
        self.used.update(self.recorded)
        self.notes.append(f"not compared; {why}")

    def note_the_rest(self, *, inputs: str = "") -> None:
        """Say which recorded arrays were not compared.

        Args:
            inputs: regular expression found in the names of inputs, and of what is left out on purpose.
        """
        rest = [
            key for key in self.recorded if key not in self.used and not (inputs and re.search(inputs, key))
        ]
        if rest:
            self.notes.append(f"recorded but not compared: {', '.join(sorted(rest))}")

    def _judge(
        self, mine: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], tolerance: float
    ) -> tuple[float, float]:
        """Return the error and what it may be."""
        if not mine.size:
            return float("nan"), tolerance
        difference = mine - theirs
        if self.relative is None or tolerance == EXACT:
            return float(np.abs(difference).max()), tolerance
        scale = max(float(np.sqrt(np.square(theirs).mean())), 1e-6)
        return float(np.sqrt(np.square(difference).mean())) / scale, self.relative


@dataclass(slots=True, kw_only=True)
class ComparisonReport:
    """All cases of one folder, on one device, in one number format."""

    device: str
    dtype: str = "float32"
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def comparisons(self) -> list[_Comparison]:
        return [comparison for case in self.cases for comparison in case.comparisons]

    @property
    def passed(self) -> bool:
        """Whether something was compared, in every case that is not left out, and all of it agrees."""
        return bool(self.comparisons) and all(case.passed for case in self.cases)

    def lines(self) -> list[str]:
        """Return a table for people, what was left out, and the verdict as the last line.

        The table has one line per case and kind of array, with the worst error among them.
        """
        grouped: dict[tuple[str, str], list[_Comparison]] = {}
        for comparison in self.comparisons:
            grouped.setdefault((comparison.case, comparison.kind), []).append(comparison)
        width = max([28, *(len(kind) for _, kind in grouped)])
        lines = [f"{'case':<16} {'array':<{width}} {'count':>5} {'largest error':>13} {'tolerance':>9}"]
        for (case, kind), group in grouped.items():
            worst = max(group, key=lambda comparison: (not comparison.passed, comparison.error))
            mark = "ok" if worst.passed else f"FAILED ({worst.array})"
            found = f"{len(group):>5} {worst.error:>13.2e} {worst.tolerance:>9.0e} {mark}"
            lines.append(f"{case:<16} {kind:<{width}} {found}")
        lines += [f"{case.name}: {note}" for case in self.cases for note in case.notes]
        lines += self.notes
        failed = sum(not comparison.passed for comparison in self.comparisons)
        count = len(self.comparisons)
        verdict = (
            "all agree" if self.passed else f"{failed} of {count} differ" if failed else "nothing compared"
        )
        lines.append(
            f"{self.device} {self.dtype}: {len(self.cases)} cases, {count} arrays compared, {verdict}"
        )
        return lines


def _float64(values: Any) -> npt.NDArray[np.float64]:
    """Return numbers as float64: of a tensor on any device and in any format, of an array or of lists."""
    if hasattr(values, "detach"):
        # numpy has no bfloat16.
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)


def aligned(values: npt.NDArray[np.floating], recorded: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return rows of `values` [n, k] turned to the sign of the recorded rows: a direction has no sign."""
    turned: npt.NDArray[np.floating] = values * np.sign((values * recorded).sum(axis=-1, keepdims=True))
    return turned


def required(content: Mapping[str, object], key: str, where: str) -> object:
    """Return `content[key]`, or say which key of which file is missing."""
    if key not in content:
        raise CheckpointError(f"{where}: expected the key {key!r}, found {', '.join(sorted(content))}")
    return content[key]
