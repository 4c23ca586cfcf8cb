"""What a prompt file is, and what a bad line in one is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.errors import InputError
from ttsvar_ray.storage import Location, without_secrets

STANDARD_INPUT = "-"

EXCERPT_LENGTH = 200
"""Characters of a bad line that its dead letter quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        path: .txt, .jsonl, .csv or .parquet file, as a path or URI, or "-" for standard input.
        column: key or column that holds the prompt (not used by .txt).
        id_column: key or column to use as prompt_id; None digests the text.
        limit: stop after so many prompts.
    """

    path: str
    column: str = "prompt"
    id_column: str | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        """The path for people: without the credentials that a URI may hold."""
        return without_secrets(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line (or, in Parquet, a row) that holds no usable prompt; the rest of the file is fine.

    Attributes:
        line: 1-based line number; in Parquet the 1-based row number.
        reason: what was expected and what was found.
        excerpt: the beginning of the line as it stands in the file.
    """

    line: int
    reason: str
    excerpt: str


class PromptFormat(str, enum.Enum):
    """Prompt file formats, named by their suffix."""

    TXT = ".txt"
    JSONL = ".jsonl"
    CSV = ".csv"
    PARQUET = ".parquet"


def format_of(file: Location) -> PromptFormat:
    """Return the format that the suffix of a file names, or raise `InputError`."""
    suffix = file.suffix.lower()
    try:
        return PromptFormat(suffix)
    except ValueError:
        known = ", ".join(member.value for member in PromptFormat)
        hint = "; write one JSON object a line and name it .jsonl" if suffix == ".json" else ""
        found = f"suffix {suffix!r}" if suffix else "no suffix"
        raise InputError(f"{file}: expected a prompt file of {known}, got {found}{hint}") from None


def check_readable(file: Location) -> None:
    """Raise `InputError` unless there is a file with something in it."""
    if file.is_folder():
        raise InputError(f"{file}: expected a prompt file, got a folder")
    if not file.is_file():
        where = f" (looked from {Path.cwd()})" if file.local_path is not None else ""
        raise InputError(f"{file}: no such prompt file{where}")
    try:
        with file.open() as stream:
            first = stream.read(1)
    except OSError as error:
        raise InputError(f"{file}: the prompt file cannot be read ({error.strerror})") from None
    if not first:
        raise InputError(f"{file}: the prompt file is empty")


def excerpt(raw: bytes | str) -> str:
    """Return the beginning of a line for people: undecodable bytes escaped, long lines cut."""
    head = raw[: EXCERPT_LENGTH + 1]
    text = head.decode("utf-8", errors="backslashreplace") if isinstance(head, bytes) else head
    return text if len(text) <= EXCERPT_LENGTH else f"{text[:EXCERPT_LENGTH]}..."
