"""Sorting more pairs of numbers than memory should hold: sorted runs in a temporary file.

    add --buffer full--> sort, append a run --blocks()--> for each key range, the runs' slices, merged

In memory are one buffer and one block, both of `capacity` pairs. The file has no name: it is gone when the
process is, however it ends.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from ttsvar_ray.types import UInt64Array

CAPACITY = 1 << 18
"""Pairs in memory: 4 MB for the buffer, and a few times that while a run is sorted or a block is read."""

_KEY_LIMIT = 1 << 64
_ITEM_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Run:
    """Where one sorted run is in the file: all its keys, then all its values."""

    offset: int
    length: int


class ExternalSort:
    """(key, value) pairs of uint64 in, in any order of keys; sorted by key, in order of arrival, out."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._keys = array("Q")
        self._values = array("Q")
        self._runs: list[_Run] = []
        self._file: IO[bytes] | None = None

    def add(self, key: int, value: int) -> None:
        """Take in one pair. Values must not fall: the order of arrival is the order of values."""
        self._keys.append(key)
        self._values.append(value)
        if len(self._keys) >= self._capacity:
            self._spill()

    def blocks(self) -> Iterator[tuple[UInt64Array, UInt64Array]]:
        """Yield all pairs as arrays of keys and values, at most about `capacity` at a time.

        Keys ascend over all blocks, and among equal keys the values. Equal keys may be in several blocks,
        if there are more than `capacity` of them. May be called again, and nothing be added after it.
        """
        if not self._runs:
            keys, values = _sorted(self._keys, self._values)
            yield keys, values
            return
        if self._keys:
            self._spill()
        yield from self._range(0, _KEY_LIMIT)

    def _spill(self) -> None:
        if self._file is None:
            # Kept open for as long as this object is: there is no name to open it by again.
            self._file = tempfile.TemporaryFile(prefix="ttsvar-sort-")  # noqa: SIM115
        keys, values = _sorted(self._keys, self._values)
        offset = self._file.seek(0, 2)
        self._file.write(keys.tobytes())
        self._file.write(values.tobytes())
        self._runs.append(_Run(offset, len(keys)))
        del self._keys[:], self._values[:]

    def _range(self, low: int, high: int) -> Iterator[tuple[UInt64Array, UInt64Array]]:
        """Yield the pairs with keys in [low, high), halving the range until it fits."""
        slices = [(run, self._position(run, low), self._position(run, high)) for run in self._runs]
        slices = [(run, start, stop) for run, start, stop in slices if start < stop]
        count = sum(stop - start for _, start, stop in slices)
        if count > self._capacity and high - low > 1:
            middle = (low + high) // 2
            yield from self._range(low, middle)
            yield from self._range(middle, high)
        elif high - low == 1:
            # One key: its values ascend from run to run, so that nothing must be merged.
            for run, start, stop in slices:
                yield self._read_keys(run, start, stop), self._read_values(run, start, stop)
        elif slices:
            keys = np.concatenate([self._read_keys(*each) for each in slices])
            values = np.concatenate([self._read_values(*each) for each in slices])
            order = np.argsort(keys, kind="stable")
            yield keys[order], values[order]

    def _position(self, run: _Run, key: int) -> int:
        """Return how many keys of a run are below `key`, by bisection in the file."""
        low, high = 0, run.length
        while low < high:
            middle = (low + high) // 2
            if int(self._read_keys(run, middle, middle + 1)[0]) < key:
                low = middle + 1
            else:
                high = middle
        return low

    def _read_keys(self, run: _Run, start: int, stop: int) -> UInt64Array:
        return self._read(run.offset + start * _ITEM_BYTES, stop - start)

    def _read_values(self, run: _Run, start: int, stop: int) -> UInt64Array:
        return self._read(run.offset + (run.length + start) * _ITEM_BYTES, stop - start)

    def _read(self, offset: int, count: int) -> UInt64Array:
        assert self._file is not None
        self._file.seek(offset)
        return np.frombuffer(self._file.read(count * _ITEM_BYTES), dtype=np.uint64)


def _sorted(keys: array[int], values: array[int]) -> tuple[UInt64Array, UInt64Array]:
    # Copies: a view would keep the buffers from being emptied.
    all_keys = np.array(keys, dtype=np.uint64)
    order = np.argsort(all_keys, kind="stable")
    return all_keys[order], np.array(values, dtype=np.uint64)[order]
