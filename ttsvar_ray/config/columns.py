"""Which of the caller's columns go through to the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """All columns but some, or some and no others.

    Attributes:
        keep: these alone; None: all but `drop`.
        drop: not these.
    """

    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()


def read_columns(value: Any) -> Any:
    """Read a list of names (those to keep), `{keep: [...]}` or `{drop: [...]}`.

    Raises:
        ValueError: something else.
    """
    if value is None or isinstance(value, ColumnChoice):
        return value
    given = {"keep": value} if isinstance(value, list | tuple) else value
    if isinstance(given, dict) and len(given) == 1:
        ((key, names),) = given.items()
        if isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names):
            if key == "keep":
                return ColumnChoice(keep=tuple(names))
            if key == "drop":
                return ColumnChoice(drop=tuple(names))
    raise ValueError(f"expected [name, ...], {{keep: [name, ...]}} or {{drop: [name, ...]}}, got {value!r}")


def columns_text(columns: ColumnChoice | None) -> dict[str, list[str]] | None:
    """Return a choice as a job file has it."""
    if columns is None:
        return None
    return {"drop": list(columns.drop)} if columns.keep is None else {"keep": list(columns.keep)}
