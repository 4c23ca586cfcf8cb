"""What a prompt set is, what its files are, and what a bad line in one is."""

from __future__ import annotations

import enum
import fnmatch
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ttsvar_ray.errors import InputError
from ttsvar_ray.storage.location import Location
from ttsvar_ray.storage.uris import without_secrets

STANDARD_INPUT = "-"

EXCERPT_LENGTH = 200
"""Characters of a bad line that its dead letter quotes."""


class PromptFormat(str, enum.Enum):
    """Formats of prompt files, named by their suffix."""

    TXT = ".txt"
    JSONL = ".jsonl"
    JSON = ".json"
    CSV = ".csv"
    TSV = ".tsv"
    PARQUET = ".parquet"


_SUFFIXES = {**{each.value: each for each in PromptFormat}, ".ndjson": PromptFormat.JSONL}

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed text, after the suffix of its format, and pyarrow's names for what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        path: a path or URI, a pattern such as `set/*.jsonl`, a folder, "-" for standard input, or several of
            the first three, which are read in that order.
        column: key or column that holds the prompt (not used by .txt).
        id_column: key or column to use as prompt_id; None digests the text.
        limit: stop after so many prompts.
        format: of all files; None: what their suffixes say.
        split, subset: of a data set of the hub; None: its only one or train, its default one.
        keep: columns that are carried through; None: all others than `drop`.
        drop: columns that are left out.
        rewrite: what the model reads in place of a prompt (`prompts.rewrite`); None: the prompt.
    """

    path: str | tuple[str, ...]
    column: str = "prompt"
    id_column: str | None = None
    limit: int | None = None
    format: PromptFormat | None = None
    split: str | None = None
    subset: str | None = None
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    rewrite: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """What is read, in order."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """The paths for people: without the credentials that a URI may hold."""
        return ", ".join(map(without_secrets, self.paths))

    def carries(self, column: str) -> bool:
        """Whether a column of the files is one of the caller's that are carried through."""
        if column in (self.column, self.id_column):
            return False
        return column in self.keep if self.keep is not None else column not in self.drop


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line (or, in Parquet and JSON arrays, a row) that holds no usable prompt; the rest is fine.

    Attributes:
        line: 1-based line number, of its first line where it has several; elsewhere the 1-based row number.
        reason: what was expected and what was found.
        excerpt: the beginning of the line as it stands in the file.
        file: its name, where the prompt set has several files.
    """

    line: int
    reason: str
    excerpt: str
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as its line of `bad_lines.jsonl` holds it."""
        told = {"line": self.line, "reason": self.reason, "excerpt": self.excerpt}
        return told if self.file is None else {"file": self.file, **told}


def format_of(file: Location) -> PromptFormat:
    """Return the format that the suffix of a file names, before one of compression, or raise `InputError`."""
    given = suffixes_of(file)
    suffix = given[0] if given else ""
    if suffix in _SUFFIXES and (len(given) == 1 or _SUFFIXES[suffix] is not PromptFormat.PARQUET):
        return _SUFFIXES[suffix]
    known = ", ".join(_SUFFIXES)
    found = f"suffix {''.join(given)!r}" if suffix else "no suffix"
    raise InputError(
        f"{file}: expected a prompt file of {known} (text may be compressed: {', '.join(CODECS)}), "
        f"got {found}; rename it, or set prompts.format"
    )


def is_prompt_file(file: Location) -> bool:
    """Whether the suffix of a file names a format."""
    try:
        format_of(file)
    except InputError:
        return False
    return True


def fits_pattern(path: str, pattern: str) -> bool:
    """Whether a path of a store fits a pattern: `*` for what has no slash, `**` for what may have."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def suffixes_of(file: Location) -> list[str]:
    """Return the suffix of a file's format and that of its compression, as far as it has them, lower case."""
    name = PurePosixPath(file.path if file.is_local else file.path.partition("?")[0])
    endings = [each.lower() for each in name.suffixes]
    return endings[-2:] if endings and endings[-1] in CODECS else endings[-1:]


def check_readable(file: Location) -> None:
    """Raise `InputError` unless there is a file with something in it, which can be read twice."""
    if file.is_folder():
        raise InputError(f"{file}: expected a prompt file, got a folder")
    if not file.is_file():
        where = f" (looked from {Path.cwd()})" if file.local_path is not None else ""
        where = ", or its server does not answer" if str(file).startswith("http") else where
        raise InputError(f"{file}: no such prompt file{where}")
    if file.local_path is not None and not stat.S_ISREG(file.local_path.stat().st_mode):
        raise InputError(
            f"{file}: expected a file, got a pipe or device, which can be read only once; "
            "use - and standard input instead"
        )
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
