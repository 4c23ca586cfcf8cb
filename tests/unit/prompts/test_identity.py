"""Ordinals count the occurrences of an id, and of nothing that only resembles it."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ttsvar_ray.prompts import identity
from ttsvar_ray.prompts.identity import Ordinals

IDS = st.one_of(st.sampled_from("abcdefgh"), st.text(max_size=3))


@given(st.lists(IDS, max_size=200))
def test_ordinals_count_occurrences(ids: list[str]) -> None:
    seen: Counter[str] = Counter()
    expected = []
    for each in ids:
        expected.append(seen[each])
        seen[each] += 1
    ordinals = Ordinals()
    for each in ids:
        ordinals.observe(each)
    assert list(ordinals) == expected
    assert list(ordinals) == expected


def test_many_rows_of_few_ids() -> None:
    ordinals = Ordinals()
    for row in range(100_000):
        ordinals.observe(str(row % 7))
    assert list(ordinals) == [row // 7 for row in range(100_000)]


def test_digests_that_share_one_half_are_of_different_ids() -> None:
    digests = np.array([[1, 1], [1, 2], [2, 1], [1, 1], [1, 2], [1, 1]], dtype=np.uint64)
    assert identity._occurrences(bytearray(digests.tobytes())).tolist() == [0, 0, 0, 1, 1, 2]
