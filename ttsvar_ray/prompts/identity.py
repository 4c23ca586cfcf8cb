"""Stable names of prompts, and ordinals that keep duplicates apart in little memory."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections import Counter

import numpy as np


def prompt_id_of(text: str) -> str:
    """Return the stable name of a prompt: 16 hexadecimal digits of its normalised text.

    Unicode composition (NFC) and runs of white space do not change it; case and words do.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normalised.encode(), digest_size=8).hexdigest()


class RepeatedIds:
    """First pass: which ids occur more than once, at 8 bytes a prompt."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def observe(self, prompt_id: str) -> None:
        """Take in the id of one prompt."""
        self._digests.append(_digest64(prompt_id))

    def result(self) -> frozenset[int]:
        """Return the digests of repeated ids (a digest collision only adds a harmless member)."""
        values, counts = np.unique(np.frombuffer(self._digests, dtype=np.uint64), return_counts=True)
        return frozenset(int(value) for value in values[counts > 1])


class Ordinals:
    """Second pass: the occurrence number of each id; remembers only the repeated ones."""

    def __init__(self, repeated: frozenset[int]) -> None:
        self._repeated = repeated
        self._seen: Counter[str] = Counter()

    def next(self, prompt_id: str) -> int:
        """Return 0 for the first prompt with this id, 1 for the second, ..."""
        if _digest64(prompt_id) not in self._repeated:
            return 0
        ordinal = self._seen[prompt_id]
        self._seen[prompt_id] += 1
        return ordinal


def _digest64(prompt_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest(), "little")
