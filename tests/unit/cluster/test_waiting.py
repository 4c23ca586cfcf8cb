"""Time that does not jump."""

from __future__ import annotations

from ttsvar_ray.cluster.waiting import MAX_STEP_SECONDS, PatientClock


def test_a_process_that_was_stopped_did_not_wait() -> None:
    times = iter([100.0, 101.0, 102.5, 5000.0, 5001.0])
    clock = PatientClock(lambda: next(times))
    assert [clock() for _ in range(4)] == [1.0, 2.5, 2.5 + MAX_STEP_SECONDS, 3.5 + MAX_STEP_SECONDS]
