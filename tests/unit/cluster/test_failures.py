"""When a run's failures are absurd, and when what failed is begun anew."""

from __future__ import annotations

import pytest

from tests.support.prompts import make_prompts
from ttsvar_ray.cluster.failures import FailureBreaker, RestartPolicy
from ttsvar_ray.results import PromptFailure, PromptResult

(PROMPT,) = make_prompts(1)
GOOD = PromptResult(prompt=PROMPT, images=(), trace=(), attempts=1, seconds=0.0)


def bad(error: str) -> PromptFailure:
    return PromptFailure(prompt=PROMPT, attempts=3, errors=("an earlier one", error))


def test_a_breaker_opens_when_too_many_of_the_window_failed_and_names_the_usual_error() -> None:
    breaker = FailureBreaker(max_rate=0.5, window=6)
    for number in range(3):
        breaker.observe(
            bad(f"attempt {number}, segment 0, worker worker-{number}: no file 'x{number}' at {number}")
        )
        breaker.observe(GOOD)
        assert breaker.verdict() is None
    breaker.observe(bad("something else"))
    assert breaker.verdict() is None, "the first failure has left the window"
    breaker.observe(bad("attempt 1, segment 0, worker w: no file 'y' at 7"))
    verdict = breaker.verdict()
    assert verdict is not None
    assert verdict.startswith("4 of the last 6 prompts failed")
    assert "3 of them with: no file 'y' at 7" in verdict


def test_half_of_the_window_may_fail() -> None:
    breaker = FailureBreaker(max_rate=0.5, window=4)
    for outcome in (bad("x"), bad("x"), GOOD, GOOD):
        breaker.observe(outcome)
    assert breaker.verdict() is None


def test_a_short_run_of_failures_is_no_verdict() -> None:
    breaker = FailureBreaker(max_rate=0.0, window=50)
    for _ in range(49):
        breaker.observe(bad("x"))
    assert breaker.verdict() is None
    breaker.observe(GOOD)
    assert breaker.verdict() is not None


def test_a_rate_of_one_never_opens() -> None:
    breaker = FailureBreaker(max_rate=1.0, window=50)
    for _ in range(200):
        breaker.observe(bad("x"))
    assert breaker.verdict() is None


def test_old_failures_are_forgotten() -> None:
    breaker = FailureBreaker(max_rate=0.5, window=10)
    for _ in range(10):
        breaker.observe(bad("x"))
    for _ in range(5):
        assert breaker.verdict() is not None
        breaker.observe(GOOD)
    assert breaker.verdict() is None


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_success() -> None:
    policy = RestartPolicy(name="worker-0", first_seconds=1.0, most_seconds=6.0)
    pauses = [policy.failed("lost") for _ in range(5000)]
    assert pauses[:5] == [1.0, 2.0, 4.0, 6.0, 6.0]
    assert pauses[-1] == 6.0
    policy.worked()
    assert policy.failed("lost") == 1.0


def test_what_fails_too_often_in_a_row_is_given_up_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "ttsvar_ray.cluster.failures")
    policy = RestartPolicy(name="sink", most_failures=2)
    assert [policy.failed("no memory") for _ in range(3)] == [0.0, 0.0, None]
    assert caplog.messages == [
        "sink is begun anew in 0 s, after failure 1 in a row: no memory",
        "sink is begun anew in 0 s, after failure 2 in a row: no memory",
        "sink is given up after 3 failures in a row: no memory",
    ]
