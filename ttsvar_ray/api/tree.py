"""The tree of one prompt's search, to look at: which trajectories lived, which were dropped, what won.

Comes in: the trace of a search and the lineages of its kept images, whether of a run in this process or of a
data set. Goes out: text, or one SVG picture, scales from left to right.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttsvar_ray.results import ResultImage, SelectionRecord

_COLUMN, _ROW, _LEFT, _TOP, _RADIUS, _LABEL = 148, 26, 60, 46, 8, 34
# Distinct in light and dark, also to most colour-blind eyes: Okabe and Ito's palette.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One population, and the selection after it.

    Attributes:
        scale_index: the selection's scale; None for the final images.
        operator: its name; "" for the final images.
        parents: of each slot, its slot in the level before; empty in the first level.
        kept: slots that the selection chose, with repeats; of the final images, all.
        rewards: of each slot at this scale; empty where none were taken.
        labels: cluster of each slot; empty where nothing was clustered.
    """

    scale_index: int | None
    operator: str
    parents: tuple[int, ...]
    kept: tuple[int, ...]
    rewards: tuple[float, ...]
    labels: tuple[int, ...]
    population: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTree:
    """The search of one prompt.

    Attributes:
        levels: one per selection, and the final images.
        winner: slot of the best image in each level.
    """

    levels: tuple[Level, ...]
    winner: tuple[int, ...]

    @classmethod
    def of(cls, trace: Sequence[SelectionRecord], images: Sequence[ResultImage]) -> SearchTree:
        """Build the tree; of an adaptive search that of the round of the best image.

        Args:
            trace: the selections, in the order of their scales, round after round.
            images: the kept images by rank, at least one.
        """
        best = images[0]
        images = [image for image in images if image.round_index == best.round_index]
        levels: list[Level] = []
        parents: tuple[int, ...] = ()
        for record in (record for record in trace if record.round_index == best.round_index):
            # A round that was abandoned, and finished after all, went on from one trajectory.
            kept = record.ancestor_index or (best.lineage[len(levels)],)
            labels = tuple(int(label) for label in record.numbers.get("labels", ()))
            seen = (len(parents), len(record.rewards), len(labels), max(kept) + 1)
            levels.append(
                Level(
                    scale_index=record.scale_index,
                    operator=record.kind,
                    parents=parents,
                    kept=kept,
                    rewards=record.rewards,
                    labels=labels,
                    population=max(seen),
                )
            )
            parents = kept
        finals = {image.lineage[-1]: image.reward for image in images}
        population = max(len(parents), max(finals) + 1)
        levels.append(
            Level(
                scale_index=None,
                operator="",
                parents=parents,
                kept=tuple(range(population)),
                rewards=tuple(finals.get(slot, math.nan) for slot in range(population)),
                labels=(),
                population=population,
            )
        )
        return cls(levels=tuple(levels), winner=tuple(best.lineage))

    def __str__(self) -> str:
        lines = []
        for level, best in zip(self.levels, self.winner, strict=True):
            if level.scale_index is None:
                head = f"final: {level.population} image{'' if level.population == 1 else 's'}"
            else:
                head = (
                    f"scale {level.scale_index}: {level.operator}, {level.population} to {len(level.kept)}, "
                    f"keeps {' '.join(map(str, level.kept))}"
                )
            numbers = [
                f"{'*' if slot == best else ''}{value:.3g}" for slot, value in enumerate(level.rewards)
            ]
            lines.append(head)
            if numbers:
                lines.append(f"    rewards  {'  '.join(numbers)}")
            if level.labels:
                lines.append(f"    clusters {'  '.join(map(str, level.labels))}")
        return "\n".join([*lines, f"winner: slots {' > '.join(map(str, self.winner))}"])

    def show(self) -> None:
        """Show it: the picture in a notebook, the text in a terminal."""
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            print(self)
            return
        if get_ipython() is None:
            print(self)
        else:
            display(self)

    def svg(self) -> str:
        """Return the picture: a column per population, a dot per trajectory, the winner's line bold."""
        rows = max(level.population for level in self.levels)
        width = _LEFT * 2 + _COLUMN * (len(self.levels) - 1)
        height = _TOP + _ROW * rows
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="search tree" font-family="sans-serif" font-size="11" '
            'fill="currentColor">'
        )
        parts = [start]
        for at, (level, best) in enumerate(zip(self.levels, self.winner, strict=True)):
            x = _LEFT + _COLUMN * at
            head = "final" if level.scale_index is None else f"scale {level.scale_index}"
            parts.append(f'<text x="{x}" y="14" text-anchor="middle">{head}</text>')
            parts.append(f'<text x="{x}" y="28" text-anchor="middle">{html.escape(level.operator)}</text>')
            # Lines begin behind the rewards that are written beside the dots.
            beside = _LABEL if at and any(not math.isnan(r) for r in self.levels[at - 1].rewards) else 0
            for slot, parent in enumerate(level.parents):
                is_winning = slot == best and parent == self.winner[at - 1]
                parts.append(
                    f'<line x1="{x - _COLUMN + _RADIUS + beside}" y1="{_y(parent)}" x2="{x - _RADIUS}" '
                    f'y2="{_y(slot)}" stroke="currentColor" stroke-width="{3 if is_winning else 1}" '
                    f'opacity="{1 if is_winning else 0.45}"/>'
                )
            parts.extend(_dot(level, slot, x, is_best=slot == best) for slot in range(level.population))
        return "".join([*parts, "</svg>"])

    def _repr_svg_(self) -> str:
        return self.svg()


def _y(slot: int) -> int:
    return _TOP + _ROW * slot + _RADIUS


def _dot(level: Level, slot: int, x: int, *, is_best: bool) -> str:
    is_kept = slot in level.kept
    colour = _COLOURS[level.labels[slot] % len(_COLOURS)] if slot < len(level.labels) else "#0072b2"
    reward = level.rewards[slot] if slot < len(level.rewards) else math.nan
    told = f"trajectory {slot}, {'kept' if is_kept else 'dropped'}"
    if not math.isnan(reward):
        told += f", reward {reward:.4f}"
    text = (
        f'<text x="{x + _RADIUS + 4}" y="{_y(slot) + 4}" '
        f'font-weight="{"bold" if is_best else "normal"}">{reward:.2f}</text>'
        if not math.isnan(reward)
        else ""
    )
    return (
        f'<circle cx="{x}" cy="{_y(slot)}" r="{_RADIUS}" fill="{colour if is_kept else "none"}" '
        f'stroke="{colour}" stroke-width="{3 if is_best else 1}"><title>{told}</title></circle>{text}'
    )
