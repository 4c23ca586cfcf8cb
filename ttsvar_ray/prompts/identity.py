"""Stable names of prompts, and ordinals that keep duplicates apart whatever the size of the prompt set."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

import numpy as np

from ttsvar_ray.prompts.external_sort import CAPACITY, ExternalSort
from ttsvar_ray.types import UInt64Array


def prompt_id_of(text: str) -> str:
    """Return the stable name of a prompt: 16 hexadecimal digits of its normalised text.

    Unicode composition (NFC) and runs of white space do not change it; case and words do.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normalised.encode(), digest_size=8).hexdigest()


class Ordinals:
    """Which occurrence of its id each row is: 0 for the first, 1 for the second, ...

    Two passes over the prompt set: `observe` every id, then iterate. Only rows that are not a first
    occurrence are kept, sorted by row, and on disk if they are many: memory does not grow with the set.

    Ids are compared by 64 bits of their digest. Two ids that share them (three chances in a million among
    ten million ids) count as one: the later one starts at ordinal 1, and keys stay unique.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._occurrences = ExternalSort(capacity)
        self._repeats: ExternalSort | None = None
        self._rows = 0

    def observe(self, prompt_id: str) -> None:
        """Take in the id of the next row."""
        digest = hashlib.blake2b(prompt_id.encode(), digest_size=8).digest()
        self._occurrences.add(int.from_bytes(digest, "little"), self._rows)
        self._rows += 1

    def __iter__(self) -> Iterator[int]:
        """Yield the ordinal of every row, in order; may be done several times."""
        if self._repeats is None:
            self._repeats = _repeats(self._occurrences, self._capacity)
            self._occurrences = ExternalSort(0)
        row = 0
        for rows, ordinals in self._repeats.blocks():
            for repeated, ordinal in zip(rows, ordinals, strict=True):
                while row < int(repeated):
                    yield 0
                    row += 1
                yield int(ordinal)
                row += 1
        while row < self._rows:
            yield 0
            row += 1


def _repeats(occurrences: ExternalSort, capacity: int) -> ExternalSort:
    """Return (row, ordinal) of all rows whose ordinal is not 0."""
    repeats = ExternalSort(capacity)
    last_digest, last_count = -1, 0
    for digests, rows in occurrences.blocks():
        if not len(digests):
            continue
        ordinals = _rank_in_group(digests)
        continued = digests == last_digest if last_digest >= 0 else np.zeros(len(digests), bool)
        ordinals[continued] += last_count
        for position in np.flatnonzero(ordinals):
            repeats.add(int(rows[position]), int(ordinals[position]))
        last_digest, last_count = int(digests[-1]), int(ordinals[-1]) + 1
    return repeats


def _rank_in_group(keys: UInt64Array) -> UInt64Array:
    """Return how many equal keys stand before each of sorted keys."""
    positions = np.arange(len(keys), dtype=np.uint64)
    is_first = np.empty(len(keys), bool)
    is_first[0] = True
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return positions - np.maximum.accumulate(np.where(is_first, positions, np.uint64(0)))
