"""Waits that end: every one has a limit, and says what was awaited and what the cluster has.

Their clock is `PatientClock`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from ttsvar_ray.cluster.resources import describe_cluster
from ttsvar_ray.errors import TtsVarError

MAX_STEP_SECONDS = 5.0


class ClusterWaitError(TtsVarError):
    """The cluster did not answer in time."""


async def wait_for(ref: ray.ObjectRef[Any], *, seconds: float, awaited: str) -> Any:
    """Return what a call returns, or raise what it raises.

    The call itself is not cancelled when the time is over: whoever asked decides what dies.

    Raises:
        ClusterWaitError: no answer after `seconds`.
    """
    future = asyncio.ensure_future(ref.as_future() if hasattr(ref, "as_future") else ref)
    done, _ = await asyncio.wait({future}, timeout=seconds)
    if not done:
        # The answer may still come, as an error of a killed actor: nobody asks for it any more.
        future.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise ClusterWaitError(timeout_message(seconds, awaited))
    return future.result()


def get(ref: ray.ObjectRef[Any], *, seconds: float, awaited: str) -> Any:
    """Return what a call returns, from code that is not asynchronous.

    Raises:
        ClusterWaitError: no answer after `seconds`.
    """
    try:
        return ray.get(ref, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise ClusterWaitError(timeout_message(seconds, awaited)) from None


def timeout_message(seconds: float, awaited: str) -> str:
    """Return the message of a wait that was too long."""
    return f"waited {seconds:g} s for {awaited}; the cluster has {describe_cluster()}"


def reason_of(error: BaseException) -> str:
    """Return why a call failed, in one line, without the stack that Ray puts around it."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        if isinstance(error.cause, RayError):
            return reason_of(error.cause)
        return f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, ActorDiedError) and "creation task" in lines[0]:
        # Ray quotes the whole remote stack; its last line is the exception.
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"


class PatientClock:
    """Seconds that never jump.

    A process that was stopped (a paused machine, a swapped-out node) finds at its return that much time
    went by in which nobody could have answered it. Such a gap counts as one small step, or every
    deadline would be over at once.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._last = source()
        self._now = 0.0

    def __call__(self) -> float:
        """Return seconds since the clock was made; to be asked about once a second."""
        now = self._source()
        self._now += min(now - self._last, MAX_STEP_SECONDS)
        self._last = now
        return self._now
