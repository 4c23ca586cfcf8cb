"""Time that does not jump, and pauses that grow."""

from __future__ import annotations

from ttsvar_ray.cluster.pace import MAX_STEP_S, PatientClock, back_off


def test_a_process_that_was_stopped_did_not_wait() -> None:
    times = iter([100.0, 101.0, 102.5, 5000.0, 5001.0])
    clock = PatientClock(lambda: next(times))
    assert [clock() for _ in range(4)] == [1.0, 2.5, 2.5 + MAX_STEP_S, 3.5 + MAX_STEP_S]


def test_pauses_double_up_to_a_limit() -> None:
    assert [back_off(n, first_s=1.0, most_s=6.0) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 6.0, 6.0]
