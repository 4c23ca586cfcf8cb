"""The tree of one prompt's search, to look at: which trajectories lived, which were dropped, what won.

Comes in: the trace of a search and the lineages of its kept images, whether of a run in this process or of a
data set. Goes out: text, or one SVG picture, scales from left to right: a picture per trajectory where its
bits are known and there is something to draw them with, a dot else.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ttsvar_ray.dataset.rows import picture_of
from ttsvar_ray.results import PackedBits, ResultImage, SelectionRecord
from ttsvar_ray.types import UInt8Array

if TYPE_CHECKING:
    from PIL import Image

_COLUMN, _ROW, _LEFT, _TOP, _RADIUS, _LABEL = 148, 26, 60, 46, 8, 34
_SIDE = 56
"""Of a picture in the tree; it is kept at twice as many pixels."""
_QUALITY = 80

Painter = Callable[[Sequence[PackedBits]], Sequence[UInt8Array]]
"""Draws each trajectory of a population after its last scale: `Replayer.latest` of one text."""
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
        bits: of each slot, all scales up to this one; empty where they were not kept.
        pictures: of each slot, WebP, b"" where there is none; empty where nothing was drawn.
    """

    scale_index: int | None
    operator: str
    parents: tuple[int, ...]
    kept: tuple[int, ...]
    rewards: tuple[float, ...]
    labels: tuple[int, ...]
    population: int
    bits: tuple[PackedBits, ...] = field(default=(), repr=False)
    pictures: tuple[bytes, ...] = field(default=(), repr=False)

    def told(self, slot: int) -> str:
        """Return what is known of a trajectory, in words."""
        reward = self.rewards[slot] if slot < len(self.rewards) else math.nan
        scored = "" if math.isnan(reward) else f", reward {reward:.4f}"
        return f"trajectory {slot}, {'kept' if slot in self.kept else 'dropped'}{scored}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTree:
    """The search of one prompt, or a round of an adaptive one.

    Attributes:
        levels: one per selection, and the final images where the round was not abandoned.
        winner: slot of the best image in each level; -1 where another round has it.
        round_index: of the round that these levels are of, from 0.
        others: the other rounds of an adaptive search that the trace or an image tells of, in their order.
        painter: draws the populations whose bits are known; None where nothing is to be drawn.
    """

    levels: tuple[Level, ...]
    winner: tuple[int, ...]
    round_index: int = 0
    others: tuple[SearchTree, ...] = ()
    painter: Painter | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, trace: Sequence[SelectionRecord], images: Sequence[ResultImage]) -> SearchTree:
        """Build the tree; of an adaptive search that of the round of the best image, beside the others.

        Args:
            trace: the selections, in the order of their scales, round after round.
            images: the kept images by rank, at least one.
        """
        best = images[0]
        told = {best.round_index, *(one.round_index for one in trace), *(one.round_index for one in images)}
        others = tuple(cls._round(at, trace, images, None) for at in sorted(told - {best.round_index}))
        return replace(cls._round(best.round_index, trace, images, best), others=others)

    @classmethod
    def _round(
        cls,
        index: int,
        trace: Sequence[SelectionRecord],
        images: Sequence[ResultImage],
        best: ResultImage | None,
    ) -> SearchTree:
        """Return one round, which may have the best image."""
        images = [image for image in images if image.round_index == index]
        levels: list[Level] = []
        parents: tuple[int, ...] = ()
        for record in (record for record in trace if record.round_index == index):
            # A round that was abandoned, and finished after all, went on from one trajectory.
            finished = () if best is None else (best.lineage[len(levels)],)
            kept = record.ancestor_index or finished
            labels = tuple(int(label) for label in record.numbers.get("labels", ()))
            seen = (len(parents), len(record.rewards), len(labels), max(kept, default=-1) + 1)
            levels.append(
                Level(
                    scale_index=record.scale_index,
                    operator=record.kind,
                    parents=parents,
                    kept=kept,
                    rewards=record.rewards,
                    labels=labels,
                    population=max(seen),
                    bits=record.bits,
                )
            )
            parents = kept
        if levels and not parents:
            return cls(levels=tuple(levels), winner=(-1,) * len(levels), round_index=index)
        finals = {image.lineage[-1]: image.reward for image in images}
        files = {image.lineage[-1]: image.image.payload for image in images}
        population = max(len(parents), max(finals, default=-1) + 1)
        levels.append(
            Level(
                scale_index=None,
                operator="",
                parents=parents,
                kept=tuple(range(population)),
                rewards=tuple(finals.get(slot, math.nan) for slot in range(population)),
                labels=(),
                population=population,
                pictures=tuple(files.get(slot, b"") for slot in range(population)),
            )
        )
        # Without a trace, which may have been deleted, only the ends are known.
        winner = (-1,) * len(levels) if best is None else tuple(best.lineage[-len(levels) :])
        return cls(levels=tuple(levels), winner=winner, round_index=index)

    @property
    def rounds(self) -> list[SearchTree]:
        """All rounds in their order, this one among them."""
        alone = [replace(one, painter=self.painter, others=()) for one in (self, *self.others)]
        return sorted(alone, key=lambda one: one.round_index)

    @property
    def title(self) -> str:
        """What became of the round, in words."""
        last = self.levels[-1]
        end = "" if last.kept else f": abandoned at scale {last.scale_index}"
        return f"round {self.round_index + 1}{': the best image' if self.winner[-1] >= 0 else end}"

    def __str__(self) -> str:
        if self.others:
            return "\n".join(f"{one.title}\n{one}" for one in self.rounds)
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
            if numbers and not all(map(math.isnan, level.rewards)):
                lines.append(f"    rewards  {'  '.join(numbers)}")
            if level.labels:
                lines.append(f"    clusters {'  '.join(map(str, level.labels))}")
        slots = [f"winner: slots {' > '.join(map(str, self.winner))}"] if self.winner[-1] >= 0 else []
        return "\n".join([*lines, *slots])

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
        """Return the picture: a column per population, the winner's line bold, round under round.

        A trajectory is a picture where it can be drawn, else a dot.
        """
        if not self.others:
            return _svg(*self._drawing())
        parts, width, y = [], 0, 0
        for one in self.rounds:
            inner, wide, high = one._drawing()
            parts.append(f'<text x="8" y="{y + 18}" font-weight="bold">{one.title}</text>')
            parts.append(f'<g transform="translate(0 {y + 24})">{inner}</g>')
            width, y = max(width, wide), y + high + 32
        return _svg("".join(parts), width, y)

    def _drawing(self) -> tuple[str, int, int]:
        """Return the elements of one round, and its size."""
        levels, is_drawn = self._drawn()
        half, row = (_SIDE // 2, _SIDE + 8) if is_drawn else (_RADIUS, _ROW)
        column = _COLUMN + 2 * (half - _RADIUS)
        rows = max(level.population for level in levels)
        width = _LEFT * 2 + column * (len(levels) - 1)
        height = _TOP + row * rows
        parts = []
        for at, (level, best) in enumerate(zip(levels, self.winner, strict=True)):
            x = _LEFT + column * at
            head = "final" if level.scale_index is None else f"scale {level.scale_index}"
            parts.append(f'<text x="{x}" y="14" text-anchor="middle">{head}</text>')
            parts.append(f'<text x="{x}" y="28" text-anchor="middle">{html.escape(level.operator)}</text>')
            # Lines begin behind the rewards that are written beside the dots.
            beside = _LABEL if at and any(not math.isnan(r) for r in levels[at - 1].rewards) else 0
            for slot, parent in enumerate(level.parents):
                is_winning = slot == best and parent == self.winner[at - 1]
                start, end = (_TOP + row * place + half for place in (parent, slot))
                parts.append(
                    f'<line x1="{x - column + half + beside}" y1="{start}" x2="{x - half}" y2="{end}" '
                    f'stroke="currentColor" stroke-width="{3 if is_winning else 1}" '
                    f'opacity="{1 if is_winning else 0.45}"/>'
                )
            parts.extend(
                _mark(level, slot, x, _TOP + row * slot + half, half, is_best=slot == best)
                for slot in range(level.population)
            )
        return "".join(parts), width, height

    def _drawn(self) -> tuple[tuple[Level, ...], bool]:
        """Return the levels with their pictures, and whether one before the last has any."""
        painter = self.painter
        if painter is None or not any(level.bits for level in self.levels):
            return self.levels, False
        from PIL import Image

        def drawn(level: Level) -> tuple[bytes, ...]:
            if level.bits:
                return tuple(_encoded(Image.fromarray(image)) for image in painter(level.bits))
            return tuple(_encoded(picture_of(file)) if file else b"" for file in level.pictures)

        return tuple(replace(level, pictures=drawn(level)) for level in self.levels), True

    def _repr_svg_(self) -> str:
        return self.svg()


def _svg(elements: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="search tree" font-family="sans-serif" font-size="11" '
        f'fill="currentColor">{elements}</svg>'
    )


def _encoded(picture: Image.Image) -> bytes:
    """Return a picture, reduced, as WebP."""
    picture.thumbnail((2 * _SIDE, 2 * _SIDE))
    written = io.BytesIO()
    picture.save(written, format="WEBP", quality=_QUALITY)
    return written.getvalue()


def _mark(level: Level, slot: int, x: int, y: int, half: int, *, is_best: bool) -> str:
    """Return a trajectory: its picture in a frame of its cluster's colour, or a dot; dropped ones fainter."""
    is_kept = slot in level.kept
    colour = _COLOURS[level.labels[slot] % len(_COLOURS)] if slot < len(level.labels) else "#0072b2"
    reward = level.rewards[slot] if slot < len(level.rewards) else math.nan
    weight = "bold" if is_best else "normal"
    text = f'<text x="{x + half + 4}" y="{y + 4}" font-weight="{weight}">{reward:.2f}</text>'
    label = "" if math.isnan(reward) else text
    stroke = f'stroke="{colour}" stroke-width="{3 if is_best else 1}"'
    title = f"<title>{level.told(slot)}</title>"
    if half > _RADIUS and slot < len(level.pictures) and level.pictures[slot]:
        data = base64.b64encode(level.pictures[slot]).decode()
        box = f'x="{x - half}" y="{y - half}" width="{2 * half}" height="{2 * half}"'
        return (
            f'<g opacity="{1 if is_kept else 0.5}"><image {box} href="data:image/webp;base64,{data}"/>'
            f'<rect {box} fill="none" {stroke}>{title}</rect></g>{label}'
        )
    return (
        f'<circle cx="{x}" cy="{y}" r="{_RADIUS}" fill="{colour if is_kept else "none"}" {stroke}>'
        f"{title}</circle>{label}"
    )
