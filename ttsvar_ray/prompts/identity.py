"""Stable names: of prompts, with ordinals that keep duplicates apart, of a prompt set and of its chunks.

The digest of a chunk is compared before a prompt of it is handed out, so that no image is ever made of a
text that the run did not begin with.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from ttsvar_ray.types import UInt32Array

_DIGEST_BYTES = 16
_PARTS = 32
_YIELDED_AT_A_TIME = 1 << 16

_CHUNK_DIGEST_BYTES = 8
"""Against accidents: of two texts of a chunk, one in 1.8e19 would pass for the other."""


def prompt_id_of(text: str) -> str:
    """Return the stable name of a prompt: 16 hexadecimal digits of its normalised text.

    Unicode composition (NFC) and runs of white space do not change it; case and words do.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normalised.encode(), digest_size=8).hexdigest()


class Ordinals:
    """Which occurrence of its id each row is: 0 for the first, 1 for the second, ...

    Two passes over the prompt set: `observe` every id, then iterate. Ids are held as digests of 16 bytes and
    no longer than until the first iteration; then 4 bytes a prompt remain. Two ids that share a digest would
    count as one: among ten million ids the chance is 1e-25.
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._ordinals: UInt32Array | None = None

    def observe(self, prompt_id: str) -> None:
        """Take in the id of the next row."""
        self._digests += hashlib.blake2b(prompt_id.encode(), digest_size=_DIGEST_BYTES).digest()

    def __iter__(self) -> Iterator[int]:
        """Yield the ordinal of every row, in order; may be done several times."""
        if self._ordinals is None:
            self._ordinals = _occurrences(self._digests)
            self._digests = bytearray()
        for start in range(0, len(self._ordinals), _YIELDED_AT_A_TIME):
            yield from self._ordinals[start : start + _YIELDED_AT_A_TIME].tolist()


def _occurrences(digests: bytearray) -> UInt32Array:
    """Return how many rows with the same digest stand before each row, [rows].

    Rows are sorted in parts, by the last bits of their digests, so that the whole is in memory once only.
    """
    words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    part = np.frombuffer(digests, dtype=np.uint8)[::_DIGEST_BYTES] % _PARTS
    ordinals = np.zeros(len(words), dtype=np.uint32)
    for number in range(_PARTS):
        rows = np.flatnonzero(part == number)
        if not len(rows):
            continue
        first, second = words[rows].T
        order = np.lexsort((second, first))  # Stable: equal digests stay in the order of rows.
        first, second = first[order], second[order]
        is_new = np.ones(len(rows), bool)
        is_new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        positions = np.arange(len(rows))
        rank = positions - np.maximum.accumulate(np.where(is_new, positions, 0))
        repeated = rank > 0
        ordinals[rows[order[repeated]]] = rank[repeated]
    return ordinals


class SetDigest:
    """Takes in a prompt set, prompt by prompt."""

    def __init__(self, rows_per_chunk: int) -> None:
        """Start.

        Args:
            rows_per_chunk: prompts of one chunk, at least 1; the last one may have fewer.
        """
        self._rows_per_chunk = rows_per_chunk
        self._whole = hashlib.sha256()
        self._chunks: list[str] = []
        self._pending: list[bytes] = []

    def add(self, canonical: bytes) -> None:
        """Take in the next prompt: its id, text and columns, always written in the same way."""
        self._whole.update(canonical)
        self._whole.update(b"\n")
        self._pending.append(canonical)
        if len(self._pending) == self._rows_per_chunk:
            self._close()

    def result(self) -> tuple[str, tuple[str, ...]]:
        """Return the sha256 of the whole, and the digest of each chunk, hexadecimal."""
        if self._pending:
            self._close()
        return self._whole.hexdigest(), tuple(self._chunks)

    def _close(self) -> None:
        self._chunks.append(chunk_digest(self._pending))
        self._pending.clear()


def chunk_digest(prompts: Iterable[bytes]) -> str:
    """Return the digest of the prompts of a chunk, each written as for `SetDigest`, hexadecimal."""
    digest = hashlib.blake2b(digest_size=_CHUNK_DIGEST_BYTES)
    for canonical in prompts:
        digest.update(canonical)
        digest.update(b"\n")
    return digest.hexdigest()
