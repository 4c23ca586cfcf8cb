"""Dead letters: prompts that were given up, and lines that hold no prompt. JSON lines."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ttsvar_ray.errors import OutputError, escape_controls
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.storage.location import Location


def write_failed_part(location: Location, failed: Sequence[PromptFailure]) -> None:
    """Write the given-up prompts of one chunk, or remove what an unfinished try of it left."""
    ordered = sorted(failed, key=lambda outcome: outcome.prompt.row)
    write_letters(location, [_letter(outcome) for outcome in ordered])


def replace_letters(location: Location, failed: Sequence[PromptFailure], *, ran: Collection[int]) -> None:
    """Write what became of rows that ran again; the letters of other rows stay."""
    kept = [letter for letter in read_letters(location) if letter["row"] not in ran]
    letters = [*kept, *(_letter(outcome) for outcome in failed)]
    write_letters(location, sorted(letters, key=lambda letter: int(letter["row"])))


def write_letters(location: Location, letters: Sequence[dict[str, Any]]) -> None:
    """Write the dead letters of one chunk, or remove the file if there are none."""
    if letters:
        write_lines(location, letters)
    else:
        location.delete()


def write_lines(location: Location, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write dead letters, or what `BadLine.to_json` says of bad lines, whole or not at all."""
    with location.replacing() as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in lines:
            # What is left as it is may be read in a terminal, to which some of it would be commands.
            file.write(escape_controls(json.dumps(line, ensure_ascii=False, default=as_text)) + "\n")


def read_letters(location: Location) -> list[dict[str, Any]]:
    """Return the dead letters of one chunk; none if there is no file. People edit them.

    Raises:
        OutputError: a line is none.
    """
    with contextlib.suppress(FileNotFoundError), location.open() as file:
        return [
            _read(line, f"{location}: line {number}") for number, line in enumerate(file, 1) if line.strip()
        ]
    return []


def count_lines(location: Location) -> int:
    """Return the lines of a file that are not blank; 0 if there is none."""
    try:
        with location.open() as file:
            return sum(bool(line.strip()) for line in file)
    except FileNotFoundError:
        return 0


def _read(line: bytes, where: str) -> dict[str, Any]:
    try:
        letter = json.loads(line)
        return {**letter, "row": int(letter["row"])}
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise OutputError(f"{where} is no dead letter ({type(error).__name__}: {error}); mend it") from None


def _letter(outcome: PromptFailure) -> dict[str, Any]:
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


def as_text(value: Any) -> str:
    """Return what JSON does not have as text: bytes in base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
