"""Packing: every row once, in order, within the limit, in the fewest micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import ShardTask
from ttsvar_ray.engine.rows import form_micro_batches, rows_of


@given(sizes=st.lists(st.integers(1, 20), max_size=12), limit=st.integers(1, 40))
def test_rows_are_kept_in_order_and_spread_evenly(sizes: list[int], limit: int) -> None:
    prompts = make_prompts(len(sizes))
    rows = [
        row
        for index, (prompt, size) in enumerate(zip(prompts, sizes, strict=True))
        for row in rows_of(
            index, ShardTask(prompt=prompt, attempt=0, segment_index=0, slots=tuple(range(size)))
        )
    ]
    batches = form_micro_batches(rows, limit)
    assert [row for batch in batches for row in batch] == rows
    assert len(batches) == -(-len(rows) // limit)
    assert all(1 <= len(batch) <= limit for batch in batches)
    if batches:
        assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        form_micro_batches([], 0)
