"""Prompt files as streams of prompts: one pass to scan, one to read."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ttsvar_ray.columns import ColumnType, ColumnTypes
from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.files import PromptFile, prompt_files
from ttsvar_ray.prompts.identity import Ordinals, SetDigest, chunk_digest, prompt_id_of
from ttsvar_ray.prompts.lines import is_blank
from ttsvar_ray.prompts.records import read_records
from ttsvar_ray.prompts.rewrite import SETTING, RewriteError, rewriter_of
from ttsvar_ray.prompts.source import BadLine, PromptFormat, PromptSource, excerpt
from ttsvar_ray.prompts.tables import table_columns
from ttsvar_ray.types import Prompt

logger = logging.getLogger(__name__)

_KEYS_SHOWN = 20

MAX_COLUMNS = 1000
"""Each is a column of every part: far more of them make small parts large and slow."""

ROWS_PER_CHUNK = 256

_MARK = "\ufeff"
"""A byte-order mark, which text has at its beginning by accident."""

_HALF_PAIR = "expected text, got half of a surrogate pair, which no encoding can write"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScan:
    """What one pass over a prompt set found, without holding its texts.

    Attributes:
        count: usable prompts.
        bad_lines: lines that hold none.
        first_bad_line: the first of these.
        digest: sha256 over ids, texts and columns in order: equal digests are equal prompt sets,
            whatever the file format, and of their column types where a text file could not have them.
        rows_per_chunk: prompts of a chunk; the last one may have fewer.
        chunk_digests: of each chunk, so that a change of the file is found where it is.
        column_types: the caller's columns that are carried through.
        ordinals: which occurrence of its id each prompt is.
    """

    count: int
    bad_lines: int
    first_bad_line: BadLine | None
    digest: str
    rows_per_chunk: int
    chunk_digests: tuple[str, ...]
    column_types: Mapping[str, ColumnType]
    ordinals: Ordinals


def scan_prompts(source: PromptSource, *, rows_per_chunk: int = ROWS_PER_CHUNK) -> PromptScan:
    """Read a prompt set once to count and name it.

    Args:
        source: files or URIs.
        rows_per_chunk: prompts that have a digest together, and that `read_prompts` holds at a time.

    Raises:
        InputError: the file cannot be used at all, or holds no usable prompt.
    """
    ordinals, columns, bad = Ordinals(), ColumnTypes(_declared_columns(source)), _FirstBadLine()
    digest = SetDigest(rows_per_chunk)
    count = 0
    for item in _usable(source, bad):
        ordinals.observe(item.prompt_id)
        columns.observe(item.columns)
        if columns.count > MAX_COLUMNS:
            some = ", ".join(map(repr, itertools.islice(columns.result(), _KEYS_SHOWN)))
            raise InputError(
                f"{source.name}: expected at most {MAX_COLUMNS} columns beside the prompt, got more by "
                f"prompt {count + 1} ({some}, ...); keys that differ from line to line belong into one column"
            )
        digest.add(item.canonical)
        count += 1
    if not count:
        raise InputError(bad.nothing_usable(source))
    column_types = columns.result()
    _check_names(source, column_types)
    absent = [name for name in source.keep or () if source.carries(name) and name not in column_types]
    if absent:
        found = ", ".join(map(repr, column_types)) or "none"
        raise InputError(
            f"{source.name}: prompts.columns: no column {absent[0]!r}; columns found beside the prompt: "
            f"{found}"
        )
    whole, chunks = digest.result()
    return PromptScan(
        count=count,
        bad_lines=bad.count,
        first_bad_line=bad.first,
        digest=_with_types(whole, column_types),
        rows_per_chunk=rows_per_chunk,
        chunk_digests=chunks,
        column_types=column_types,
        ordinals=ordinals,
    )


def read_prompts(
    source: PromptSource,
    on_bad_line: Callable[[BadLine], None] = lambda bad: None,
    *,
    scan: PromptScan | None = None,
) -> Iterator[Prompt]:
    """Yield the prompts of a file in order, a chunk in memory at a time; bad lines go to `on_bad_line`.

    No prompt is yielded whose chunk is not what the scan saw. Prompts that were added at the end since are
    no part of the set.

    Args:
        source: a file or URI (for standard input see `spool_standard_input`).
        on_bad_line: called with each line that holds no usable prompt.
        scan: the result of `scan_prompts` for this source; None scans first.

    Raises:
        InputError: as `scan_prompts`; also at the first chunk that is no longer what was scanned.
    """
    scan = scan if scan is not None else scan_prompts(source)
    items, ordinals = _usable(source, on_bad_line), iter(scan.ordinals)
    for chunk, expected in enumerate(scan.chunk_digests):
        first = chunk * scan.rows_per_chunk
        rows = range(first, min(first + scan.rows_per_chunk, scan.count))
        found = list(itertools.islice(items, len(rows)))
        if chunk_digest(item.canonical for item in found) != expected:
            raise InputError(_changed(source, rows, found))
        for row, item in zip(rows, found, strict=True):
            yield Prompt(
                row=row,
                prompt_id=item.prompt_id,
                ordinal=next(ordinals),
                text=item.text,
                rewritten=item.rewritten,
                columns=MappingProxyType(dict(item.columns)),
            )
    if next(items, None) is not None:
        logger.warning(
            "%s: prompts were added at the end since this run was started; it has the first %d alone",
            source.name,
            scan.count,
        )


def _changed(source: PromptSource, rows: range, found: Sequence[_Item]) -> str:
    """Return what to say of a chunk that is no longer what was scanned."""
    if len(found) < len(rows):
        ends = f"it ends after prompt {rows.start + len(found)}, where more were before"
    else:
        ends = f"the change is in or around lines {found[0].line} to {found[-1].line}"
    return (
        f"{source.name}: the prompt file was changed while the job was reading it: prompts {rows.start + 1} "
        f"to {rows.stop} are no longer those that it began with ({ends}). None of them was used; put the "
        "file back as it was, or give the changed set an --output of its own"
    )


def bad_lines(source: PromptSource) -> Iterator[BadLine]:
    """Yield the bad lines of a file in order, streaming."""
    found: list[BadLine] = []
    for _ in _usable(source, found.append):
        yield from found
        found.clear()
    yield from found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    line: int
    prompt_id: str
    text: str
    rewritten: str | None
    columns: Mapping[str, Any]
    canonical: bytes


class _FirstBadLine:
    """Counts bad lines and keeps the first, for the message when nothing else is there."""

    def __init__(self) -> None:
        self.count = 0
        self.first: BadLine | None = None

    def __call__(self, bad: BadLine) -> None:
        self.count += 1
        self.first = self.first or bad

    def nothing_usable(self, source: PromptSource) -> str:
        if self.first is None:
            return f"{source.name}: the prompt file holds no prompt"
        return (
            f"{source.name}: none of its {self.count} lines holds a usable prompt; "
            f"line {self.first.line}: {self.first.reason}"
        )


def _usable(source: PromptSource, on_bad_line: Callable[[BadLine], None]) -> Iterator[_Item]:
    return itertools.islice(_items(prompt_files(source), source, on_bad_line), source.limit)


def _items(
    files: Sequence[PromptFile], source: PromptSource, on_bad_line: Callable[[BadLine], None]
) -> Iterator[_Item]:
    for file in files:

        def report(bad: BadLine, name: str = str(file.location)) -> None:
            on_bad_line(bad if len(files) == 1 else replace(bad, file=name))

        for line, fields, raw in read_records(file.location, file.format, source, report):
            item = _item_of(line, fields, raw, source, report)
            if item is not None:
                yield item


def _declared_columns(source: PromptSource) -> dict[str, ColumnType]:
    """Return the types of the caller's columns, where the files say them."""
    declared: dict[str, ColumnType] = {}
    for file in prompt_files(source):
        if file.format is not PromptFormat.PARQUET:
            continue
        for name, kind in table_columns(file.location, source).items():
            if declared.setdefault(name, kind) != kind:
                raise InputError(
                    f"{file.location}: column {name!r}: expected {declared[name]} as in the files before, "
                    f"got {kind}; write them alike, or leave it out by prompts.columns"
                )
    return declared


def _check_names(source: PromptSource, columns: Mapping[str, ColumnType]) -> None:
    """Raise `InputError` for a column name that readers of Parquet take for a shorter one."""
    for name in columns:
        if "\0" in name:
            raise InputError(
                f"{source.name}: column {name!r}: expected a name without NUL, which no reader of the output "
                "could find; rename it, or leave it out by prompts.columns"
            )


def _with_types(digest: str, columns: Mapping[str, ColumnType]) -> str:
    """Return the digest of a set whose column types are part of it, where a text file has no such types."""
    plain = {str(each) for each in (ColumnType.BOOL, ColumnType.INT64, ColumnType.FLOAT64, ColumnType.STRING)}
    named = {name: str(kind) for name, kind in columns.items() if str(kind) not in {*plain, "json"}}
    if not named:
        return digest
    return hashlib.sha256(f"{digest} {json.dumps(named, sort_keys=True)}".encode()).hexdigest()


def _item_of(
    line: int,
    fields: Mapping[str, Any],
    raw: str,
    source: PromptSource,
    on_bad_line: Callable[[BadLine], None],
) -> _Item | None:
    try:
        prompt_id, text = named_prompt(fields, source.column, source.id_column)
        columns = {name: value for name, value in fields.items() if source.carries(name)}
        rewritten = None if source.rewrite is None else _rewritten(source.rewrite, text, columns)
        return _Item(
            line=line,
            prompt_id=prompt_id,
            text=text,
            rewritten=rewritten,
            columns=columns,
            canonical=_canonical(prompt_id, text, columns, rewritten),
        )
    except _UnusableError as problem:
        shown = raw or json.dumps(dict(fields), ensure_ascii=True, default=str)
        on_bad_line(BadLine(line=line, reason=str(problem), excerpt=excerpt(shown)))
        return None


class _UnusableError(ValueError):
    """Why one record holds no usable prompt."""


def named_prompt(fields: Mapping[str, Any], column: str, id_column: str | None) -> tuple[str, str]:
    """Return the id and the text of a record; `id_column` None makes the id of the text.

    Raises:
        ValueError: why it holds no usable prompt.
    """
    text = _prompt_text(fields, column)
    return prompt_id_of(text) if id_column is None else _caller_id(fields, id_column), text


def _prompt_text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        keys = ", ".join(repr(key) for key in list(fields)[:_KEYS_SHOWN]) or "none"
        raise _UnusableError(f"no key {column!r}; keys found: {keys}")
    value = fields[column]
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise _UnusableError(f"{column}: expected text, got {found}")
    if is_blank(value):
        raise _UnusableError(f"{column}: expected text, got a blank")
    if "\0" in value:
        raise _UnusableError(f"{column}: expected text, got a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _UnusableError(f"{column}: {_HALF_PAIR}") from None
    return value.strip().strip(_MARK).strip()


def _rewritten(setting: str, text: str, columns: Mapping[str, Any]) -> str:
    try:
        return rewriter_of(setting)(text, columns)
    except RewriteError as problem:
        raise _UnusableError(f"{SETTING}: {problem}") from None


def _caller_id(fields: Mapping[str, Any], id_column: str) -> str:
    value = fields.get(id_column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        found = "nothing" if value is None or value == "" else repr(value)
        raise _UnusableError(f"{id_column}: expected an id (text or a whole number), got {found}")
    prompt_id = str(value).strip()
    if not prompt_id.isprintable():
        raise _UnusableError(f"{id_column}: expected an id of printable characters, got {value!r}")
    return prompt_id


def _canonical(prompt_id: str, text: str, columns: Mapping[str, Any], rewritten: str | None) -> bytes:
    try:
        content = json.dumps(
            [prompt_id, text, columns, *([] if rewritten is None else [rewritten])],
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
            default=_canonical_value,
        )
        return content.encode()
    except UnicodeEncodeError:
        raise _UnusableError(_HALF_PAIR) from None
    except RecursionError:
        raise _UnusableError("expected columns of moderate depth, got nesting too deep to write") from None


def _canonical_value(value: Any) -> str:
    return f"bytes {hashlib.sha256(value).hexdigest()}" if isinstance(value, bytes) else repr(value)
