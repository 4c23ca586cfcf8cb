"""How long a stopped job may take to end."""

from __future__ import annotations

import pytest

from ttsvar_ray.cluster.session import (
    JOB_ENVIRONMENT,
    MAX_RAY_FOLDER_BYTES,
    STOP_WAIT,
    ClusterConnectionError,
    StopRequest,
    ray_folder,
    stop_grace_seconds,
)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 2.0), ("20", 19.0), ("0.5", -0.5), ("a while", 2.0), ("", 2.0)]
)
def test_a_submitted_job_ends_before_ray_kills_it(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: float
) -> None:
    monkeypatch.setenv(JOB_ENVIRONMENT, "{}")
    monkeypatch.delenv(STOP_WAIT, raising=False)
    if given is not None:
        monkeypatch.setenv(STOP_WAIT, given)
    assert stop_grace_seconds(600.0) == expected


def test_elsewhere_nobody_presses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_ENVIRONMENT, raising=False)
    monkeypatch.setenv(STOP_WAIT, "20")
    assert stop_grace_seconds(600.0) == 600.0


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
