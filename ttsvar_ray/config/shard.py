"""One of several runs that share a prompt set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shard:
    """Part k of the data set is made by shard k mod `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """Its own folder in the output's."""
        return f"shard-{self.index}-of-{self.count}"


def read_shard(value: Any) -> Any:
    """Read `i/n`.

    Raises:
        ValueError: something else, or i beyond n - 1.
    """
    if value is None or isinstance(value, Shard):
        return value
    index, slash, count = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(
            f"expected i/n with i from 0 to n-1, such as 0/8 for the first of eight, got {value!r}"
        )
    return Shard(int(index), int(count))


def shard_text(shard: Shard | None) -> str | None:
    """Write `i/n`."""
    return None if shard is None else str(shard)
