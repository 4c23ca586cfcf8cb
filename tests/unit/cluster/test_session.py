"""How long a stopped job may take to end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import pytest
import ray

from ttsvar_ray.cluster import session
from ttsvar_ray.cluster.session import (
    JOB_ENVIRONMENT,
    MAX_RAY_FOLDER_BYTES,
    STOP_WAIT,
    ClusterConnectionError,
    StopRequest,
    ray_folder,
    ray_session,
    stop_on_signals,
)
from ttsvar_ray.errors import InterruptedRunError


def _seconds_left(monkeypatch: pytest.MonkeyPatch) -> float:
    """Return what is left right after a request, of 600 seconds where nobody says."""
    monkeypatch.setattr("ttsvar_ray.cluster.session.time.monotonic", lambda: 100.0)
    request = StopRequest()
    request.ask("SIGTERM")
    return request.seconds_left(600.0)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 2.0), ("20", 19.0), ("0.5", 0.5), ("a while", 2.0), ("", 2.0)]
)
def test_a_submitted_job_ends_before_ray_kills_it(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: float
) -> None:
    monkeypatch.setenv(JOB_ENVIRONMENT, "{}")
    monkeypatch.delenv(STOP_WAIT, raising=False)
    if given is not None:
        monkeypatch.setenv(STOP_WAIT, given)
    assert _seconds_left(monkeypatch) == expected


def test_elsewhere_nobody_presses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_ENVIRONMENT, raising=False)
    monkeypatch.setenv(STOP_WAIT, "20")
    assert _seconds_left(monkeypatch) == 600.0


def test_time_that_went_by_since_the_request_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_ENVIRONMENT, "{}")
    monkeypatch.setenv(STOP_WAIT, "21")
    now = [100.0]
    monkeypatch.setattr("ttsvar_ray.cluster.session.time.monotonic", lambda: now[0])
    request = StopRequest()
    request.ask("SIGTERM")
    now[0] = 104.0
    request.ask("SIGINT")
    assert request.reason == "SIGTERM"
    assert request.seconds_left(600.0) == 16.0
    now[0] = 500.0
    assert request.seconds_left(600.0) == 0.5


def test_ray_puts_its_sockets_where_their_paths_are_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = "/" + "x" * MAX_RAY_FOLDER_BYTES
    for given, expected in ((None, None), (long[:-1], None), (long, "/tmp/ray")):  # noqa: S108
        if given is None:
            monkeypatch.delenv("TMPDIR", raising=False)
        else:
            monkeypatch.setenv("TMPDIR", given)
        assert ray_folder() == expected
    monkeypatch.setenv("RAY_TMPDIR", "/short")
    assert ray_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", long)
    with pytest.raises(ClusterConnectionError, match="RAY_TMPDIR: expected a path of at most 39 bytes"):
        ray_folder()


@pytest.mark.parametrize("mode", [None, "disabled", "token"])
@pytest.mark.parametrize("fails", [False, True])
def test_ray_on_this_machine_alone_always_asks_for_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, fails: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "known")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/known/to/others")
    before = dict(os.environ)
    seen: list[dict[str, str]] = []

    def init(**_: object) -> None:
        seen.append({name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")})
        if fails:
            raise RuntimeError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "_refresh_authentication", lambda: None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for _ in range(2):
        with contextlib.suppress(ClusterConnectionError), ray_session("local", cpus=1):
            pass
    assert [one["RAY_AUTH_MODE"] for one in seen] == ["token", "token"]
    tokens = {one["RAY_AUTH_TOKEN"] for one in seen}
    assert len(tokens) == 2 and "known" not in tokens and min(map(len, tokens)) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in seen[0]
    assert {name: os.environ.get(name) for name in session._AUTHENTICATION} == {
        name: before.get(name) for name in session._AUTHENTICATION
    }


def test_a_ray_that_does_not_start_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ClusterConnectionError, match=r"timed out during startup.*--in-process"),
        ray_session("local", cpus=None),
    ):
        pass


def test_a_ray_that_is_slow_to_start_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow, starts = [Exception("The current node timed out during startup. This could happen")], []

    def init(**options: object) -> None:
        starts.append(options)
        if slow:
            raise slow.pop()

    monkeypatch.setattr(ray, "init", init)
    with caplog.at_level("WARNING"), ray_session("local", cpus=None):
        assert len(starts) == 2 and starts[0] == starts[1]
    assert "started again" in caplog.text
    slow += [Exception("timed out"), Exception("timed out")]
    with pytest.raises(ClusterConnectionError, match="it may be busy"), ray_session("local", cpus=None):
        pytest.fail("nothing is connected")
    assert len(starts) == 4


def test_a_signal_while_ray_starts_stops_the_run_in_good_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` sets a handler of its own, which would end the process with exit code 15."""

    def init(**options: object) -> None:
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(InterruptedRunError, match="stopped by SIGTERM"),
        ray_session("local", cpus=None),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ray_is_left_whole_whoever_presses_meanwhile(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C often comes when the first one has led to the shutdown of Ray, which takes seconds."""
    steps: list[str] = []

    def shutdown() -> None:
        steps.append("begun")
        os.kill(os.getpid(), number)
        steps.append("over")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", shutdown)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as `ray.init` does
    try:
        with ray_session("local", cpus=None):
            pass
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == ["begun", "over"]


def test_signals_are_acknowledged_at_once_and_a_second_interrupt_interrupts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = signal.getsignal(number)
        with stop_on_signals() as stop:
            os.kill(os.getpid(), number)
            assert stop.reason == number.name
            assert f"ttsvar-ray: {number.name}: ending in good order" in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            assert "SIGINT again: ending at once" in capfd.readouterr().err
            assert stop.reason == number.name
        assert signal.getsignal(number) is before


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)
