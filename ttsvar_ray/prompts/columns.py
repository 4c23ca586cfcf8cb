"""One type for each of the caller's columns, found by looking at every value once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsvar_ray.types import ColumnType

_INT64_LIMIT = 1 << 63


class ColumnTypes:
    """Collects column types over a whole prompt set: explicit types keep all parts alike.

    Integers and floats together are float64; any other mix, and nested values, are JSON.
    A column without a single value is a string column.
    """

    def __init__(self) -> None:
        self._types: dict[str, ColumnType | None] = {}

    def observe(self, columns: Mapping[str, Any]) -> None:
        """Take in the values of one prompt."""
        for name, value in columns.items():
            known = self._types.setdefault(name, None)
            if value is None or known is ColumnType.JSON:
                continue
            found = _type_of(value)
            if known is None:
                self._types[name] = found
            elif found is not known:
                numbers = {found, known} == {ColumnType.INT64, ColumnType.FLOAT64}
                self._types[name] = ColumnType.FLOAT64 if numbers else ColumnType.JSON

    @property
    def count(self) -> int:
        """How many columns there are so far."""
        return len(self._types)

    def result(self) -> dict[str, ColumnType]:
        """Return the type of each column, in order of first appearance."""
        return {name: found or ColumnType.STRING for name, found in self._types.items()}


def _type_of(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return ColumnType.BOOL
    if isinstance(value, int):
        return ColumnType.INT64 if -_INT64_LIMIT <= value < _INT64_LIMIT else ColumnType.JSON
    if isinstance(value, float):
        return ColumnType.FLOAT64
    if isinstance(value, str):
        return ColumnType.STRING
    if isinstance(value, bytes):
        return ColumnType.BINARY
    return ColumnType.JSON
