"""What tests of several rooms share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.support.s3_server import S3Server, moto_server

# Ray makes its workers give way to every other process: on a busy machine tests would wait minutes for them.
os.environ.setdefault("RAY_worker_niceness", "0")


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
