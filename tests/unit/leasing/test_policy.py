"""Which cell is handed what: limits, what comes back, stragglers."""

from __future__ import annotations

from tests.support.prompts import make_prompts
from ttsvar_ray.leasing.ledger import Lease, LeaseLedger
from ttsvar_ray.leasing.policy import OPEN_CHUNKS, OPEN_ROUNDS, LeasePolicy
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import Prompt


def make(count: int, rows_per_chunk: int) -> tuple[LeaseLedger, LeasePolicy]:
    ledger = LeaseLedger(
        make_prompts(count), prompt_count=count, rows_per_chunk=rows_per_chunk, committed=frozenset()
    )
    return ledger, LeasePolicy(ledger, rows_per_chunk=rows_per_chunk)


def finish(ledger: LeaseLedger, cell_id: str, prompts: tuple[Prompt, ...]) -> None:
    for prompt in prompts:
        receipt = ledger.add(
            cell_id, PromptResult(prompt=prompt, images=(), trace=(), attempts=1, seconds=0.0)
        )
        if receipt.whole is not None:
            ledger.commit(receipt.whole.chunk_index)


def rows(leases: list[tuple[str, Lease]]) -> list[tuple[str, list[int], bool]]:
    return [(cell, [p.row for p in lease.prompts], lease.is_last) for cell, lease in leases]


def test_requests_are_answered_in_order() -> None:
    _, policy = make(5, 10)
    policy.ask("a", 2)
    policy.ask("b", 2)
    policy.ask("c", 2)
    assert rows(policy.hand_out(0.0)) == [("a", [0, 1], False), ("b", [2, 3], False), ("c", [4], True)]
    assert policy.hand_out(0.0) == []


def over_without_part(ledger: LeaseLedger, cell_id: str, lease: Lease) -> None:
    """Finish prompts whose parts are not written yet."""
    for prompt in lease.prompts:
        ledger.add(cell_id, PromptResult(prompt=prompt, images=(), trace=(), attempts=1, seconds=0.0))


def test_requests_wait_while_too_many_outcomes_wait_for_their_part() -> None:
    ledger, policy = make(100, 2)
    given = []
    for _ in range(3):
        policy.ask("a", 5)
        for _, lease in policy.hand_out(0.0):
            given.append(len(lease.prompts))
            over_without_part(ledger, "a", lease)
    assert given == [5, 3]
    assert ledger.num_over == policy.limit == OPEN_CHUNKS * 2
    ledger.commit(0)
    assert rows(policy.hand_out(1.0)) == [("a", [8, 9], False)]


def test_a_slow_prompt_stops_nobody_while_more_are_out_than_wait_behind_it() -> None:
    ledger, policy = make(1000, 100)
    for _ in range(3):
        policy.ask("a", 300)
    (_, first), (_, second), (_, third) = policy.hand_out(0.0)
    assert [len(lease.prompts) for lease in (first, second, third)] == [300, 300, 300]
    over_without_part(ledger, "a", first)
    assert policy.limit == OPEN_ROUNDS * 600 > ledger.num_over
    policy.ask("a", 300)
    assert rows(policy.hand_out(1.0)) == [("a", list(range(900, 1000)), True)]


def test_what_comes_back_goes_to_who_asks_whatever_waits_for_its_part() -> None:
    ledger, policy = make(100, 1)
    policy.ask("b", 2)
    policy.hand_out(0.0)
    for _ in range(2):
        policy.ask("a", 2)
        ((_, lease),) = policy.hand_out(0.0)
        over_without_part(ledger, "a", lease)
    assert ledger.num_over == policy.limit
    policy.ask("a", 1)
    assert policy.hand_out(0.0) == []
    assert policy.lose_cell("b") == ledger.num_queued == 2
    assert rows(policy.hand_out(1.0)) == [("a", [0], False)]


def test_who_was_told_that_nothing_is_left_is_handed_what_comes_back() -> None:
    _, policy = make(6, 6)
    policy.ask("a", 4)
    policy.ask("b", 4)
    assert [is_last for _, _, is_last in rows(policy.hand_out(0.0))] == [False, True]
    policy.set_workers("a", 1)
    policy.set_workers("b", 1)
    policy.lose_cell("a")
    # b holds half of what it asks for at most: it has enough to do until one of its prompts is over.
    assert policy.hand_out(1.0) == []


def test_unasked_prompts_wait_until_a_cell_has_little_left() -> None:
    ledger, policy = make(6, 6)
    policy.ask("a", 2)
    policy.ask("b", 4)
    (_, (_, theirs)) = policy.hand_out(0.0)
    policy.set_workers("b", 1)
    policy.lose_cell("a")
    assert policy.hand_out(1.0) == []
    finish(ledger, "b", theirs.prompts[:3])
    assert rows(policy.hand_out(2.0)) == [("b", [0, 1], True)]


def test_a_cell_that_is_told_that_more_is_left_asks_for_it_itself() -> None:
    ledger, policy = make(9, 9)
    policy.ask("a", 7)
    policy.ask("b", 2)
    policy.set_workers("b", 1)
    (_, (_, theirs)) = policy.hand_out(0.0)
    finish(ledger, "b", theirs.prompts)
    policy.lose_cell("a")
    assert rows(policy.hand_out(1.0)) == [("b", [0, 1], False)]
    finish(ledger, "b", tuple(make_prompts(2)))
    assert policy.hand_out(2.0) == []
    policy.ask("b", 7)
    assert rows(policy.hand_out(3.0)) == [("b", [2, 3, 4, 5, 6], True)]


def test_a_cell_without_workers_is_handed_nothing_unasked() -> None:
    _, policy = make(2, 2)
    policy.ask("b", 2)
    policy.hand_out(0.0)
    policy.lose_cell("b")
    policy.ask("c", 1)
    assert rows(policy.hand_out(0.0)) == [("c", [0], False)]
    policy.ask("c", 1)
    assert rows(policy.hand_out(0.0)) == [("c", [1], True)]
    policy.ask("d", 1)
    assert rows(policy.hand_out(0.0)) == [("d", [], True)]
    policy.lose_cell("c")
    assert policy.hand_out(0.0) == []
    policy.set_workers("d", 2)
    assert rows(policy.hand_out(0.0)) == [("d", [0], False)]


def test_an_idle_cell_takes_what_another_has_had_for_too_long() -> None:
    ledger, policy = make(3, 3)
    policy.ask("a", 3)
    ((_, lease),) = policy.hand_out(0.0)
    policy.ask("b", 3)
    assert rows(policy.hand_out(1.0)) == [("b", [], True)]
    policy.set_workers("b", 1)
    assert policy.hand_out(1e9) == [], "how long prompts take is not known yet"
    finish(ledger, "a", lease.prompts[:1])
    policy.delivered(20.0)
    assert policy.straggler_after_seconds == 60.0
    assert policy.hand_out(59.0) == []
    assert rows(policy.hand_out(60.0)) == [("b", [1, 2], True)]
    assert policy.hand_out(60.0) == []


def test_usual_times_are_remembered_longer_than_one_prompt() -> None:
    _, policy = make(1, 1)
    for _ in range(100):
        policy.delivered(100.0)
    policy.delivered(1000.0)
    after = policy.straggler_after_seconds
    assert after is not None and 300.0 < after < 500.0
    for _ in range(500):
        policy.delivered(0.1)
    assert policy.straggler_after_seconds == 30.0
