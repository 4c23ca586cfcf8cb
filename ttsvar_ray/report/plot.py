"""Small charts of points and lines, drawn twice from one list of marks: as SVG and, with PIL, as PNG.

No plotting library is needed for them; numbers go beside every chart as a CSV file.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 20, 58, 56
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#666666", "#a08500")
_TICKS = 5
_LETTER = 5.6
"""Width of a letter of a label, about."""
_ZOOM = 2
"""Pixels of the PNG for each of the SVG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one name.

    Attributes:
        name: in the legend; "" leaves it out.
        x, y: finite numbers.
        error: half of each vertical bar; empty for none, NaN for one that is not known.
        labels: beside each point; empty for none.
        joined: whether a line goes through the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()
    labels: Sequence[str] = ()
    joined: bool = True

    @property
    def bars(self) -> list[float]:
        """Half of each vertical bar as it is drawn; 0 draws none."""
        return [half if math.isfinite(half) else 0.0 for half in self.error] or [0.0] * len(self.x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        title, x_label, y_label: in words and units.
        series: at least one point in all.
        logarithmic: whether x is shown in powers of two.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    logarithmic: bool = False

    def write(self, path: Path) -> list[Path]:
        """Write PATH.svg, PATH.png and PATH.csv; return them."""
        marks = _Marks(self)
        svg, png, csv = (path.with_suffix(suffix) for suffix in (".svg", ".png", ".csv"))
        svg.write_text(marks.svg(), encoding="utf-8")
        marks.png().save(png)
        rows = ["series,x,y,error,label"]
        for one in self.series:
            errors = one.error or [math.nan] * len(one.x)
            labels = one.labels or [""] * len(one.x)
            rows += [
                f"{_quoted(one.name)},{x:.6g},{y:.6g},{'' if math.isnan(e) else f'{e:.6g}'},{_quoted(label)}"
                for x, y, e, label in zip(one.x, one.y, errors, labels, strict=True)
            ]
        csv.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return [svg, png, csv]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text


class _Marks:
    """Lines, circles and texts in pixels of the SVG."""

    def __init__(self, chart: Chart) -> None:
        self.lines: list[tuple[float, float, float, float, str, float]] = []
        self.circles: list[tuple[float, float, float, str]] = []
        self.texts: list[tuple[float, float, str, str, int]] = []
        xs = [x for one in chart.series for x in one.x]
        ends = [
            y + sign * e
            for one in chart.series
            for y, e in zip(one.y, one.bars, strict=True)
            for sign in (-1, 1)
        ]
        if not xs:
            raise ValueError(f"chart {chart.title!r}: expected points, got none")
        scale = math.log2 if chart.logarithmic else float
        x_low, x_high = _widened(min(map(scale, xs)), max(map(scale, xs)))
        y_low, y_high = _widened(min(ends), max(ends))

        def place(x: float, y: float) -> tuple[float, float]:
            across = (scale(x) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
            up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
            return _LEFT + across, _HEIGHT - _BOTTOM - up

        grid = "#d8d8d8"
        for y in _ticks(y_low, y_high):
            _, at = place(xs[0], y)
            self.lines.append((_LEFT, at, _WIDTH - _RIGHT, at, grid, 1))
            self.texts.append((_LEFT - 8, at + 4, f"{y:g}", "end", 12))
        for x in _octaves(x_low, x_high) if chart.logarithmic else _ticks(x_low, x_high):
            at, _ = place(x, y_low)
            self.lines.append((at, _TOP, at, _HEIGHT - _BOTTOM, grid, 1))
            self.texts.append((at, _HEIGHT - _BOTTOM + 18, f"{x:g}", "middle", 12))
        self.texts.append((_WIDTH / 2, _HEIGHT - 12, chart.x_label, "middle", 13))
        self.texts.append((12, _TOP - 14, chart.y_label, "start", 13))
        self.texts.append((_WIDTH / 2, 18, chart.title, "middle", 14))
        shown = 0
        for index, one in enumerate(chart.series):
            colour = _COLOURS[index % len(_COLOURS)]
            points = [place(x, y) for x, y in zip(one.x, one.y, strict=True)]
            if one.joined:
                for (x0, y0), (x1, y1) in itertools.pairwise(points):
                    self.lines.append((x0, y0, x1, y1, colour, 2))
            for (x, y), value, half in zip(points, one.y, one.bars, strict=True):
                if half:
                    tops = [place(one.x[0], value + sign * half)[1] for sign in (-1, 1)]
                    self.lines.append((x, tops[0], x, tops[1], colour, 1))
                self.circles.append((x, y, 4, colour))
            self._label(points, one.labels)
            if one.name:
                self.circles.append((_LEFT + 14, _TOP + 12 + 17 * shown, 4, colour))
                self.texts.append((_LEFT + 24, _TOP + 16 + 17 * shown, one.name, "start", 12))
                shown += 1

    def _label(self, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
        """Write each label beside its point, at the first of some places where nothing else is."""
        taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
        for (x, y), label in zip(points, labels, strict=False):
            width = _LETTER * len(label)
            places = [
                (x + 9 if side == "start" else x - 9, y + lower, side)
                for lower in (-6, 15, -20, 29, -34, 43)
                for side in ("start", "end")
            ]
            boxes = [
                (
                    at if side == "start" else at - width,
                    low - 10,
                    at + width if side == "start" else at,
                    low + 2,
                )
                for at, low, side in places
            ]
            best = min(
                range(len(places)),
                key=lambda index: (
                    sum(_overlap(boxes[index], other) for other in taken),
                    boxes[index][0] < _LEFT or boxes[index][2] > _WIDTH,
                    index,
                ),
            )
            taken.append(boxes[best])
            at, low, side = places[best]
            self.texts.append((at, low, label, side, 11))

    def svg(self) -> str:
        """Return the chart as SVG."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            'font-family="sans-serif"><rect width="100%" height="100%" fill="#ffffff"/>'
        )
        parts = [head]
        parts += [
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{c}" stroke-width="{w}"/>'
            for x0, y0, x1, y1, c, w in self.lines
        ]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{c}"/>' for x, y, r, c in self.circles]
        parts += [
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{side}" font-size="{size}">{html.escape(t)}</text>'
            for x, y, t, side, size in self.texts
        ]
        return "".join([*parts, "</svg>\n"])

    def png(self) -> Image.Image:
        """Return the chart as a picture of pixels."""
        page = Image.new("RGB", (_WIDTH * _ZOOM, _HEIGHT * _ZOOM), "#ffffff")
        draw = ImageDraw.Draw(page)
        for x0, y0, x1, y1, colour, width in self.lines:
            draw.line([x0 * _ZOOM, y0 * _ZOOM, x1 * _ZOOM, y1 * _ZOOM], fill=colour, width=int(width * _ZOOM))
        for x, y, r, colour in self.circles:
            box = [(x - r) * _ZOOM, (y - r) * _ZOOM, (x + r) * _ZOOM, (y + r) * _ZOOM]
            draw.ellipse(box, fill=colour)
        for x, y, text, side, size in self.texts:
            font = ImageFont.load_default(size * _ZOOM)
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[side]
            draw.text((x * _ZOOM, y * _ZOOM), text, font=font, fill="#1e1e1e", anchor=anchor)
        return page


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """Return the area that two boxes (left, top, right, bottom) share."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(width, 0.0) * max(height, 0.0)


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _octaves(low: float, high: float) -> list[float]:
    """Return powers of two between two exponents, or round numbers where there are too few."""
    found = [float(2**k) for k in range(math.ceil(low), math.floor(high) + 1)]
    return found if len(found) > 2 else _ticks(2**low, 2**high)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(step * index, 10) for index in range(first, last + 1)]
