"""Variants of a job beside each other: means, paired differences to a control, and the table of them.

One number a prompt enters, the mean over its repetitions: images of one prompt are not independent, and no
more are those of prompts that say the same, which enter the spread as one. Where an evaluator puts prompts
into groups, as GenEval does by its tags, a score is the mean of the groups' means; one that asks of some
prompts alone, as T2I-CompBench's do, counts those.
"""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ttsvar_ray.rng import stream
from ttsvar_ray.types import Float64Array, Int64Array

RESAMPLES = 2000
COVERED = 0.95
"""Of a bootstrap interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimate:
    """A mean over prompts with its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with a bootstrap interval over prompts."""

    mean: float
    low: float
    high: float

    def __format__(self, number: str) -> str:
        """Return "0.712 [0.690, 0.733]", each number in the given format."""
        return f"{self.mean:{number}} [{self.low:{number}}, {self.high:{number}}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """What became of the prompts of one variant.

    Attributes:
        scores: by evaluator, float64 [prompts], the mean over repetitions of the best image's score.
        reward: float64 [prompts], of the reward that steered; NaN where there is no image.
        images: what a prompt costs in raw images, everything counted; NaN where nobody knows.
        seconds: of generating, all repetitions; NaN where it was not measured.
        device_seconds: of all workers and verifiers, times the devices that each has; likewise.
        failed: prompts without an image in any repetition; they count as the worst score, 0.
    """

    name: str
    scores: Mapping[str, Float64Array]
    reward: Float64Array
    images: float
    seconds: float
    device_seconds: float = math.nan
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table.

    Attributes:
        name, images, seconds, device_seconds, failed: as of `Outcomes`.
        differences: by evaluator, to the control; empty of the control itself.
        published: by evaluator, where there is such a number.
    """

    name: str
    images: float
    seconds: float
    device_seconds: float
    failed: int
    scores: Mapping[str, _Estimate]
    differences: Mapping[str, Interval]
    reward: _Estimate
    published: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a row as JSON has it."""
        return {
            "variant": self.name,
            "images": _known(self.images),
            "seconds": _known(self.seconds),
            "device_seconds": _known(self.device_seconds),
            "failed": self.failed,
            "scores": {name: _plain(one) for name, one in self.scores.items()},
            "minus_control": {name: _plain(one) for name, one in self.differences.items()},
            "reward": _plain(self.reward),
            "published": dict(self.published),
        }


def text_numbers(texts: Iterable[Hashable]) -> Int64Array:
    """Return a number for each text, equal for equal ones, from 0 by their first places."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(text, len(first)) for text in texts], dtype=np.int64)


def grouped_mean(
    values: Float64Array, groups: Int64Array | None = None, texts: Int64Array | None = None
) -> _Estimate:
    """Return the mean of the groups' means, with its standard error; NaN where a group has one text.

    Arguments are those of `interval`.
    """
    means, variances = [], []
    for sums, counts in _by_text(values, groups, texts):
        means.append(sums.sum() / counts.sum())
        off, texts_seen = sums - counts * means[-1], len(sums)
        known = texts_seen / (texts_seen - 1) if texts_seen > 1 else math.nan
        variances.append(known * (off @ off) / counts.sum() ** 2)
    return _Estimate(mean=float(np.mean(means)), standard_error=math.sqrt(sum(variances)) / len(means))


def interval(
    values: Float64Array,
    *,
    random: np.random.Generator,
    groups: Int64Array | None = None,
    texts: Int64Array | None = None,
) -> Interval:
    """Return the mean of the groups' means with its bootstrap interval; NaN where a group has one text.

    Args:
        values: float64 [prompts]; of two variants, their paired differences.
        random: draws the same prompts again within their groups, with repeats.
        groups: int64 [prompts]; None: all are one.
        texts: `text_numbers` of the prompts: those that say the same are drawn together, because they are
            hard together, and four images of one text are not four texts. None: no two say the same.
    """
    means, totals = [], np.zeros(RESAMPLES)
    for sums, counts in _by_text(values, groups, texts):
        means.append(sums.sum() / counts.sum())
        drawn = random.integers(0, len(sums), size=(RESAMPLES, len(sums)))
        totals += sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1) if len(sums) > 1 else math.nan
    tail = (1 - COVERED) / 2
    low, high = np.quantile(totals / len(means), [tail, 1 - tail])
    return Interval(mean=float(np.mean(means)), low=float(low), high=float(high))


def _by_text(
    values: Float64Array, groups: Int64Array | None, texts: Int64Array | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each group's sums over the prompts of each text, and how many these are."""
    groups = np.zeros(len(values), dtype=np.int64) if groups is None else groups
    texts = np.arange(len(values)) if texts is None else texts
    for group in np.unique(groups):
        _, own = np.unique(texts[groups == group], return_inverse=True)
        yield np.bincount(own, values[groups == group]), np.bincount(own)


def by_prompt(
    rows: Sequence[Mapping[str, Any]], column: str, prompts: int, *, repetitions: int | None = None
) -> Float64Array:
    """Return the mean of a column of outcomes for each prompt, over so many repetitions.

    A prompt without an image is no success: with `repetitions`, its score is 0. Without, as for a reward, the
    mean is over the images that there are, and NaN where there are none.
    """
    totals, seen = np.zeros(prompts), np.zeros(prompts)
    for row in rows:
        totals[row["row"]] += row[column] or 0.0  # one that is not judged counts nowhere
        seen[row["row"]] += 1
    return totals / (np.where(seen == 0, np.nan, seen) if repetitions is None else repetitions)


def compare(
    outcomes: Sequence[Outcomes],
    *,
    control: str,
    groups: Mapping[str, Int64Array],
    published: Mapping[str, Mapping[str, float]],
    texts: Int64Array | None = None,
) -> list[Line]:
    """Return the rows of the table, in the order of the variants.

    Args:
        outcomes: of all variants, their prompts in one order.
        groups: by evaluator, int64 [prompts]; -1 of prompts that it does not judge.
        published: by variant, then evaluator.
        texts: int64 [prompts], as of `interval`.
    """
    reference = next(one for one in outcomes if one.name == control)
    texts = np.arange(len(reference.reward)) if texts is None else texts
    judged = {name: own >= 0 for name, own in groups.items()}
    among = {name: {"groups": groups[name][own], "texts": texts[own]} for name, own in judged.items()}
    return [
        Line(
            name=one.name,
            images=one.images,
            seconds=one.seconds,
            device_seconds=one.device_seconds,
            failed=one.failed,
            scores={name: grouped_mean(own[judged[name]], **among[name]) for name, own in one.scores.items()},
            differences={}
            if one is reference
            else {
                name: interval(
                    (values - reference.scores[name])[judged[name]],
                    random=stream(0, f"{one.name}/{name}", 0, 0, "bootstrap"),
                    **among[name],
                )
                for name, values in one.scores.items()
            },
            reward=grouped_mean(one.reward[seen], texts=texts[seen]),
            published=published.get(one.name, {}),
        )
        for one in outcomes
        for seen in [np.isfinite(one.reward)]
    ]


def table(lines: Sequence[Line], *, control: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the cells of the table."""
    evaluators = list(lines[0].scores)
    head = ["variant", "cost in images", "seconds", "device seconds"]
    has_published = {name: any(name in line.published for line in lines) for name in evaluators}
    for name in evaluators:
        head += [name, f"{name} minus {control}"]
        head += [f"{name} published"] if has_published[name] else []
    head += ["reward that steered", *(["failed"] if any(line.failed for line in lines) else [])]
    rows = []
    for line in lines:
        cells = [line.name, _number(line.images, ".2f")]
        cells += [_number(line.seconds, ".0f"), _number(line.device_seconds, ".0f")]
        for name in evaluators:
            difference = line.differences.get(name)
            cells += [str(line.scores[name]), "" if difference is None else f"{difference:+.4f}"]
            cells += [_number(line.published.get(name, math.nan), ".4f")] if has_published[name] else []
        cells += [str(line.reward), *([str(line.failed)] if "failed" in head else [])]
        rows.append(cells)
    return head, rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def as_csv(lines: Sequence[Line]) -> str:
    """Return the numbers of a table as CSV, one column each."""
    flat = pa.Table.from_pylist([line.to_json() for line in lines])
    while any(map(pa.types.is_struct, flat.schema.types)):
        flat = flat.flatten()
    file = io.BytesIO()
    pyarrow.csv.write_csv(flat, file, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return file.getvalue().decode()


def _plain(value: _Estimate | Interval) -> dict[str, float | None]:
    return {name: _known(number) for name, number in asdict(value).items()}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float, how: str) -> str:
    return format(value, how) if math.isfinite(value) else ""
