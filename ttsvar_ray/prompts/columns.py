"""One type for each of the caller's columns: what its file says, or what all of its values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsvar_ray.columns import ColumnType

_INT64_LIMIT = 1 << 63
_FLOAT64_LIMIT = 1 << 53
"""Up to this all whole numbers are float64s, too."""


class ColumnTypes:
    """Collects column types over a whole prompt set: explicit types keep all parts alike.

    Of columns whose type no file says: integers and floats together are float64, unless a float64 cannot
    hold one of the integers; any other mix, and nested values, are JSON. A column without a single value is
    a string column.
    """

    def __init__(self, declared: Mapping[str, ColumnType]) -> None:
        """Start with the columns whose type is known."""
        self._declared = declared
        self._found: dict[str, ColumnType | None] = dict(declared)
        self._has_large: set[str] = set()

    def observe(self, columns: Mapping[str, Any]) -> None:
        """Take in the values of one prompt."""
        for name, value in columns.items():
            if name in self._declared:
                continue
            known = self._found.setdefault(name, None)
            if value is None or known is ColumnType.JSON:
                continue
            found = _type_of(value)
            if found is ColumnType.INT64 and abs(value) > _FLOAT64_LIMIT:
                self._has_large.add(name)
            if known is None:
                self._found[name] = found
            elif found is not known:
                numbers = {found, known} == {ColumnType.INT64, ColumnType.FLOAT64}
                fit = numbers and name not in self._has_large
                self._found[name] = ColumnType.FLOAT64 if fit else ColumnType.JSON

    @property
    def count(self) -> int:
        """How many columns there are so far."""
        return len(self._found)

    def result(self) -> dict[str, ColumnType]:
        """Return the type of each column, in order of first appearance."""
        return {name: found or ColumnType.STRING for name, found in self._found.items()}


def _type_of(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return ColumnType.BOOL
    if isinstance(value, int):
        return ColumnType.INT64 if -_INT64_LIMIT <= value < _INT64_LIMIT else ColumnType.JSON
    if isinstance(value, float):
        return ColumnType.FLOAT64
    return ColumnType.STRING if isinstance(value, str) else ColumnType.JSON
