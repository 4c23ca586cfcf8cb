"""Ordinals are right whatever fits into memory, and sorting on disk is sorting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsvar_ray.prompts import external_sort
from ttsvar_ray.prompts.external_sort import ExternalSort
from ttsvar_ray.prompts.identity import Ordinals

KEYS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(2**64 - 3, 2**64 - 1))


def drain(pairs: ExternalSort) -> list[tuple[int, int]]:
    return [
        (int(key), int(value))
        for keys, values in pairs.blocks()
        for key, value in zip(keys, values, strict=True)
    ]


@given(st.lists(KEYS, max_size=80), st.integers(1, 20))
def test_pairs_come_out_sorted_in_blocks_that_fit(keys: list[int], capacity: int) -> None:
    pairs = ExternalSort(capacity)
    for value, key in enumerate(keys):
        pairs.add(key, value)
    expected = sorted((key, value) for value, key in enumerate(keys))
    assert drain(pairs) == expected
    assert drain(pairs) == expected
    assert all(len(block) <= capacity for block, _ in pairs.blocks())


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 12))
def test_ordinals_count_occurrences(ids: list[str], capacity: int) -> None:
    seen: Counter[str] = Counter()
    expected = []
    for each in ids:
        expected.append(seen[each])
        seen[each] += 1
    ordinals = Ordinals(capacity)
    for each in ids:
        ordinals.observe(each)
    assert list(ordinals) == expected
    assert list(ordinals) == expected


def test_the_temporary_file_has_no_name_and_goes_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sort.tempfile, "tempdir", str(tmp_path))
    pairs = ExternalSort(capacity=2)
    for i in range(7):
        pairs.add(7 - i, i)
    assert drain(pairs) == [(7 - i, i) for i in reversed(range(7))]
    assert list(tmp_path.iterdir()) == []
