"""When a run's failures are absurd."""

from __future__ import annotations

from tests.support.prompts import make_prompts
from ttsvar_ray.cluster.breaker import FailureBreaker
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
