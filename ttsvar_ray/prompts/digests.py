"""Digests of a prompt set: of the whole, which names it, and of each chunk, which a change is found by.

The digest of a chunk is compared before a prompt of it is handed out, so that no image is ever made of a
text that the run did not begin with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_CHUNK_DIGEST_BYTES = 8
"""Against accidents: of two texts of a chunk, one in 1.8e19 would pass for the other."""


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
