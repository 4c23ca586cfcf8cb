"""Types of the caller's columns, and their values as Python holds them without loss.

A value travels as a Python object from the prompt file to the part. Python has none for most of what a column
may hold: its dates end with the year 9999, and its times have no nanoseconds. So dates, times and durations
travel as the whole numbers that Arrow stores, and become what they were when the part is written:

    file --carried_type--> type of the output --held_type--> type whose values are Python's
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ColumnType:
    """Type of a caller's column, fixed once for a whole prompt set.

    Attributes:
        arrow: in the output.
        is_json: whether values are written as JSON text: nested ones, and mixed ones, of text files.
    """

    arrow: Any
    is_json: bool = False

    BOOL: ClassVar[ColumnType]
    INT64: ClassVar[ColumnType]
    FLOAT64: ClassVar[ColumnType]
    STRING: ClassVar[ColumnType]
    BINARY: ClassVar[ColumnType]
    JSON: ClassVar[ColumnType]

    def __str__(self) -> str:
        return "json" if self.is_json else "float64" if self.arrow == pa.float64() else str(self.arrow)


ColumnType.BOOL = ColumnType(pa.bool_())
ColumnType.INT64 = ColumnType(pa.int64())
ColumnType.FLOAT64 = ColumnType(pa.float64())
ColumnType.STRING = ColumnType(pa.string())
ColumnType.BINARY = ColumnType(pa.binary())
ColumnType.JSON = ColumnType(pa.string(), is_json=True)


def carried_type(given: Any) -> Any:
    """Return the type that a column of this Arrow type has in the output.

    The same, but for what readers of data sets do not read: dictionaries and extensions become what they
    stand for, views what they are views of, maps lists of pairs, columns without a type text.
    """
    if pa.types.is_dictionary(given) or pa.types.is_run_end_encoded(given):
        return carried_type(given.value_type)
    if isinstance(given, pa.BaseExtensionType):
        return carried_type(given.storage_type)
    if pa.types.is_null(given) or pa.types.is_string_view(given):
        return pa.string()
    if pa.types.is_binary_view(given):
        return pa.binary()
    if pa.types.is_map(given):
        pair = [("key", carried_type(given.key_type)), ("value", carried_type(given.item_type))]
        return pa.list_(pa.struct(pair))
    return _rebuilt(given, carried_type)


def held_type(given: Any) -> Any:
    """Return the type of the same layout whose values are Python's own."""
    if pa.types.is_temporal(given):
        return pa.int32() if given.bit_width == 32 else pa.int64()
    return _rebuilt(given, held_type)


def held(array: Any, carried: Any) -> Any:
    """Return a column of a file in the type whose values Python holds.

    Args:
        carried: its `carried_type`.
    """
    if array.type != carried:
        array = array.cast(carried)
    holding = held_type(carried)
    return array if holding == carried else array.view(holding)


def from_held(values: Iterable[Any], carried: Any) -> Any:
    """Return values that Python holds as a column of the output."""
    holding = held_type(carried)
    array = pa.array(values, type=holding)
    return array if holding == carried else array.view(carried)


def _rebuilt(given: Any, inner: Any) -> Any:
    """Return a nested type with other inner types; any other type as it is."""
    if pa.types.is_struct(given):
        return pa.struct([pa.field(each.name, inner(each.type)) for each in given])
    if pa.types.is_fixed_size_list(given):
        return pa.list_(inner(given.value_type), given.list_size)
    if pa.types.is_large_list(given) or pa.types.is_large_list_view(given):
        return pa.large_list(inner(given.value_type))
    if pa.types.is_list(given) or pa.types.is_list_view(given):
        return pa.list_(inner(given.value_type))
    return given


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
