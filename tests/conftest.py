"""What tests of several rooms share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.distribution import PROCESSES, FilesTogether, is_whole_suite, long_ones_first
from tests.support.s3_server import S3Server, moto_server

# Ray makes its workers give way to every other process: on a busy machine tests would wait minutes for them.
os.environ.setdefault("RAY_worker_niceness", "0")
# And a cluster that starts beside another one on two cores may need more than its half minute.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
# What Ray counts and collects for a dashboard all the time, nobody looks at here.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "3600000")
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "3600")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
# A tenth of the time of all tests in plain Python: few of their objects are in cycles.
gc.set_threshold(20_000, 10, 10)
if "PYTEST_XDIST_WORKER" in os.environ:
    # A core for each process. Tests that are about threads set their number themselves.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """All default tests run in three processes; a part of them, and the marked ones, in this one."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return PROCESSES if is_whole_suite(config) and config.option.capture != "no" else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether | None:
    return FilesTogether(config, log) if is_whole_suite(config) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        long_ones_first(items)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command that runs in this process sets up: its handler writes to a stream that is gone."""
    package = logging.getLogger("ttsvar_ray")
    kept = (list(package.handlers), package.level, package.propagate)
    yield
    package.handlers[:], package.propagate = kept[0], kept[2]
    package.setLevel(kept[1])


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """One S3-compatible server for the whole run; tests take a bucket each."""
    with moto_server() as server:
        yield server


@pytest.fixture
def s3(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the environment leading to it."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return moto
