"""Dead letters: prompts that were given up, and lines that hold no prompt. JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ttsvar_ray.dataset.atomic import replacing
from ttsvar_ray.dataset.outcomes import GivenUpPrompt


class UnusableLine(Protocol):
    """A line of the prompt file that holds no prompt."""

    @property
    def line(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def excerpt(self) -> str: ...


def write_failed_part(path: Path, failed: Sequence[GivenUpPrompt]) -> None:
    """Write the given-up prompts of one chunk, or remove what an unfinished try of it left."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    ordered = sorted(failed, key=lambda outcome: outcome.prompt.row)
    _write(path, (_letter(outcome) for outcome in ordered))


def write_bad_lines(path: Path, lines: Iterable[UnusableLine]) -> None:
    """Write all bad lines of the prompt file, whole or not at all."""
    _write(path, ({"line": bad.line, "reason": bad.reason, "excerpt": bad.excerpt} for bad in lines))


def _letter(outcome: GivenUpPrompt) -> dict[str, Any]:
    prompt = outcome.prompt
    return {
        "row": prompt.row,
        "prompt_id": prompt.prompt_id,
        "ordinal": prompt.ordinal,
        "prompt": prompt.text,
        "attempts": outcome.attempts,
        "errors": list(outcome.errors),
        "columns": dict(prompt.columns),
    }


def _write(path: Path, letters: Iterator[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for letter in letters:
            file.write(json.dumps(letter, ensure_ascii=False, default=str) + "\n")
