"""A run as a page to look through: summary, rewards, a gallery, and the search tree of each prompt.

Comes in: prompts one by one. Goes out: one HTML file that needs nothing else, or, above `INLINE_PROMPTS`,
that file and a folder of scripts beside it, each with the pictures and trees of some prompts, read when they
are looked at. No server, no network; what prompts say is shown as text, never run.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttsvar_ray.dataset.rows import picture_of

INLINE_PROMPTS = 300
"""Up to as many prompts the page holds everything itself."""
_PROMPTS_PER_SCRIPT = 60
_PIXELS = 256
_QUALITY = 82
_EFFORT = 2
"""Of WebP: a third of the time of its usual 4, and 4 % more bytes."""
_MOST_THREADS = 16
_BINS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One prompt of the report.

    Attributes:
        rewards: of the kept images by rank, at least one.
        histories: reward of each image's lineage at each scored scale; NaN where none was taken.
        images: the kept images' files, by rank.
        tree: the search as SVG; "" where nothing was selected.
        columns: what else is known of it; shown, and found by the search.
    """

    prompt_id: str
    prompt: str
    rewards: Sequence[float]
    histories: Sequence[Sequence[float]]
    images: Sequence[bytes]
    tree: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the page says of the whole run.

    Attributes:
        title: name of the run.
        facts: (what, value) in the order shown first.
        settings: every setting that decides content, and the versions, by name.
        failures: (prompt, reason) of prompts that were given up, of many the first.
        failed: how many were.
        prompts: how many entries there will be.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    settings: Mapping[str, Any]
    failures: Sequence[tuple[str, str]]
    failed: int
    prompts: int


def write_page(path: Path, summary: Summary, entries: Iterable[Entry]) -> list[Path]:
    """Write the page; return the files written.

    Args:
        path: of the HTML file; scripts go to a folder of its name with "_files".
        entries: in the order of the prompt set; two scripts' worth are in memory at a time.
    """
    is_inline = summary.prompts <= INLINE_PROMPTS
    folder = path.with_name(f"{path.stem}_files")
    written: list[Path] = []
    scripts: list[str] = []
    rows: list[list[Any]] = []
    best: list[float] = []
    for number, (some, thumbnails) in enumerate(_drawn(entries)):
        rows += [
            [
                entry.prompt_id,
                entry.prompt,
                _finite(entry.rewards[0]),
                {name: str(value) for name, value in entry.columns.items() if value is not None},
            ]
            for entry in some
        ]
        best += [entry.rewards[0] for entry in some if math.isfinite(entry.rewards[0])]
        script = f"ttsvarScript({number},{_json(list(map(_details, some, thumbnails)))});"
        if is_inline:
            scripts.append(f"<script>{script}</script>")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"prompts-{number:05d}.js"
            file.write_text(script, encoding="utf-8")
            written.append(file)
    data = {"rows": rows, "perScript": _PROMPTS_PER_SCRIPT, "folder": None if is_inline else folder.name}
    text = _TEMPLATE.read_text(encoding="utf-8")
    filled = {
        "TITLE": html.escape(summary.title),
        "FACTS": "".join(
            f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>"
            for what, value in summary.facts
        ),
        "HISTOGRAM": histogram(best),
        "SETTINGS": _table(summary.settings.items()),
        "FAILURES": _failures(summary.failures, summary.failed),
        "DATA": _json(data),
        "SCRIPTS": "".join(scripts),
    }
    head, *pieces = text.split("{{")
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        head += filled[name] + rest
    path.write_text(head, encoding="utf-8")
    return [path, *written]


def histogram(rewards: Sequence[float]) -> str:
    """Return the distribution of rewards as SVG; empty where there are none."""
    if not rewards:
        return ""
    low, high = min(rewards), max(rewards)
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for reward in rewards:
        counts[min(int((reward - low) / width), _BINS - 1)] += 1
    bars = "".join(
        f'<rect x="{20 * at + 1}" y="{110 - round(100 * count / max(counts))}" width="18" '
        f'height="{round(100 * count / max(counts))}"><title>{low + width * at:.3g} to '
        f"{low + width * (at + 1):.3g}: {count}</title></rect>"
        for at, count in enumerate(counts)
        if count
    )
    return (
        f'<svg viewBox="0 0 {20 * _BINS} 130" role="img" aria-label="rewards of the best images" '
        f'class="histogram">{bars}<text x="0" y="126">{low:.3g}</text>'
        f'<text x="{20 * _BINS}" y="126" text-anchor="end">{high:.3g}</text></svg>'
    )


_TEMPLATE = importlib.resources.files("ttsvar_ray.report") / "page.html"


def _drawn(entries: Iterable[Entry]) -> Iterator[tuple[list[Entry], list[list[str]]]]:
    """Yield batches with their thumbnails, which threads draw while the next batch is read."""
    before: tuple[list[Entry], list[list[Future[str]]]] | None = None
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    with ThreadPoolExecutor(threads, thread_name_prefix="report") as pool:

        def finished(
            batch: list[Entry], futures: list[list[Future[str]]]
        ) -> tuple[list[Entry], list[list[str]]]:
            return batch, [[one.result() for one in each] for each in futures]

        remaining = iter(entries)
        while batch := list(itertools.islice(remaining, _PROMPTS_PER_SCRIPT)):
            futures = [[pool.submit(_thumbnail, image) for image in entry.images] for entry in batch]
            if before is not None:
                yield finished(*before)
            before = (batch, futures)
        if before is not None:
            yield finished(*before)


def _details(entry: Entry, thumbnails: list[str]) -> dict[str, Any]:
    return {
        "images": thumbnails,
        "rewards": [_finite(reward) for reward in entry.rewards],
        "histories": [[_finite(reward) for reward in history] for history in entry.histories],
        "tree": entry.tree,
    }


def _thumbnail(encoded: bytes) -> str:
    file = io.BytesIO()
    picture_of(encoded, within=_PIXELS).save(file, format="WEBP", quality=_QUALITY, method=_EFFORT)
    return base64.b64encode(file.getvalue()).decode()


def _finite(value: float) -> float | None:
    """Return a number that JSON has; five digits are enough to look at."""
    return round(value, 5) if math.isfinite(value) else None


def _json(value: Any) -> str:
    """Return JSON that cannot end the script it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _failures(failures: Sequence[tuple[str, str]], failed: int) -> str:
    if not failures:
        return ""
    some = f", the first {len(failures):,}" if len(failures) < failed else ""
    return (
        f"<details><summary>{failed:,} prompts without an image{some}</summary>{_table(failures)}</details>"
    )
