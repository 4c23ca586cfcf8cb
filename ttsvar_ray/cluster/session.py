"""Connecting to Ray, leaving it, being asked to stop, and what can be said of Ray without any of it.

Ray is imported where it is used: a run in this process needs none.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ttsvar_ray.errors import InterruptedRunError, TtsVarError

logger = logging.getLogger(__name__)

TOKEN_FILE = Path("~/.ray/auth_token")
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LISTENING_TIMEOUT_SECONDS = 10.0
INSPECTION_TIMEOUT_SECONDS = 2.0

JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entry point of a submitted job."""

MAX_RAY_FOLDER_BYTES = 107 - len("/ray/session_2026-11-26_12-00-00_000000_4194304/sockets/plasma_store")
"""A path of a socket has at most 107 bytes on Linux, and these are what Ray adds."""

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_DEFAULT_SECONDS = 3.0
"""How long `ray job stop` waits before it kills a job: Ray's variable and its default."""


class ClusterConnectionError(TtsVarError):
    """No Ray cluster answers at the address, or none could be started here."""


def is_connected() -> bool:
    """Whether this process is connected to a cluster; imports nothing to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def is_submitted_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return JOB_ENVIRONMENT in os.environ


@contextlib.contextmanager
def ray_session(address: str | None, *, cpus: float | None, run_name: str = "") -> Iterator[None]:
    """Be connected to a cluster for as long as the block runs.

    A cluster that is connected already is used and left as it is.

    Args:
        address: of a running cluster ("auto" finds one on this machine), or "local" for one on this
            machine, started for this block; None is the one that RAY_ADDRESS names, or else "local".
        cpus: CPUs that a cluster started here must offer at least; None is what the machine has.
        run_name: told to the cluster, whose lists of jobs show it.

    Raises:
        ClusterConnectionError: nothing answers at the address, or Ray does not start here.
        InterruptedRunError: as `ended_by_signals`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with ended_by_signals(), contextlib.ExitStack() as session:
        if address and address != "local":
            _refresh_authentication()
            _connect(address, run_name)
        else:
            session.enter_context(_own_token())
            _start_local(cpus, run_name)
        try:
            yield
        finally:
            # Cut short by Ctrl-C, it would leave Ray's processes to the end of this one.
            with _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
                ray.shutdown()


def _connect(address: str, run_name: str) -> None:
    import ray

    try:
        _check_listening(address, LISTENING_TIMEOUT_SECONDS)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            job_config=_job_config(run_name),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterConnectionError(
            f"cluster.address: no Ray cluster answers at {address!r} ({error}); start one with "
            "`ray start --head`, or leave the address out to use this machine alone"
        ) from error


def _check_listening(address: str, seconds: float) -> None:
    """Raise OSError where nothing listens at host:port: Ray itself would try again for ten minutes and more.

    Addresses of another form, such as "auto" and "local", are not looked at.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Have Ray ask for a token that nobody else knows, whatever the environment says, while the block runs.

    Ray listens on all interfaces, also where it serves this process alone. Left alone, it would write a token
    into the home folder, after which every other Ray process of this user must have it.
    """
    before = {name: os.environ.pop(name, None) for name in _AUTHENTICATION}
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    _refresh_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _refresh_authentication() -> None:
    """Have Ray read its authentication from the environment again: it did so when it was imported."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:  # A version that knows no tokens.
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _start_local(cpus: float | None, run_name: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    available, folder = os.cpu_count() or 1, ray_folder()
    start = functools.partial(
        ray.init,
        address="local",
        _temp_dir=folder,
        num_cpus=None if cpus is None or cpus <= available else int(cpus + 0.999),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        job_config=_job_config(run_name),
    )
    # Errors are of no kind of its own: that its processes are not up in time is told as a plain Exception.
    try:
        # Its processes inherit that: they outlive their terminal, and end with the run.
        with _handled(signal.SIG_IGN, signal.SIGHUP):
            try:
                start()
            except Exception as error:
                if "timed out" not in str(error):
                    raise
                logger.warning("Ray was not up in its time: this machine may be busy; it is started again")
                ray.shutdown()
                start()
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ClusterConnectionError(
            f"Ray did not start on this machine ({reason}); it may be busy, or short of memory: run again "
            "later, or without Ray (--in-process)"
        ) from error


def ray_folder() -> str | None:
    """Return where a cluster that is started here keeps its files; None is where Ray would.

    Ray takes TMPDIR, below which the paths of its sockets may become too long for the system: schedulers make
    such folders.

    Raises:
        ClusterConnectionError: they would be below RAY_TMPDIR, which was meant for Ray.
    """
    if "RAY_TMPDIR" in os.environ:
        if len(os.fsencode(os.environ["RAY_TMPDIR"])) > MAX_RAY_FOLDER_BYTES:
            raise ClusterConnectionError(
                f"RAY_TMPDIR: expected a path of at most {MAX_RAY_FOLDER_BYTES} bytes, because Ray puts "
                f"sockets below it, got {os.environ['RAY_TMPDIR']}; set it to a shorter one, such as /tmp"
            )
        return None
    too_long = len(os.fsencode(os.environ.get("TMPDIR", ""))) > MAX_RAY_FOLDER_BYTES
    return "/tmp/ray" if too_long else None  # noqa: S108 - Ray's own default


def _job_config(run_name: str) -> Any:
    """Return what Ray is told of the job: its name in the metadata that `ray list jobs --detail` shows."""
    from ray.job_config import JobConfig

    return JobConfig(metadata={"job_name": run_name} if run_name else {})


class StopRequest:
    """Whether somebody asked this process to end; remembers who, and when."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._asked_at = 0.0

    def ask(self, reason: str) -> None:
        """Ask for an end in good order."""
        if self.reason is None:
            self.reason, self._asked_at = reason, time.monotonic()

    def seconds_left(self, otherwise: float) -> float:
        """Return the seconds until this process must end, at least half a second; one is kept to end in.

        `ray job stop` kills a job after RAY_JOB_STOP_WAIT_TIME_S (a variable of the job's environment) or
        three seconds. Elsewhere nobody says, and `otherwise` holds.
        """
        if is_submitted_job():
            otherwise = STOP_WAIT_DEFAULT_SECONDS - 1.0
            with contextlib.suppress(ValueError):
                otherwise = float(os.environ.get(STOP_WAIT, "")) - 1.0
        return max(0.5, otherwise - (time.monotonic() - self._asked_at))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGHUP into a request to stop; a second SIGINT interrupts at once.

    The first is acknowledged on standard error at once, from the handler: the loop that ends the run may be
    waiting. SIGHUP stays ignored where it was (nohup). To be entered after `ray.init`, which replaces
    handlers that were there before. Outside the main thread there are no signals, and the request never
    comes.
    """
    request = StopRequest()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if request.reason is None:
            request.ask(name)
            _tell(f"{name}: ending in good order, what is finished is kept; Ctrl-C (once more) ends at once")
        elif number == signal.SIGINT:
            _tell(f"{name} again: ending at once")
            raise KeyboardInterrupt

    with _handled(on_signal, signal.SIGINT, signal.SIGTERM, *_hangup()):
        yield request


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block where no loop looks for them.

    Raises:
        InterruptedRunError: one of them came, and met this handler or the one that `ray.init` sets.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(signal.Signals(number))  # past every `except Exception`, as Ray's does

    try:
        with _handled(end, signal.SIGTERM, *_hangup()):
            yield
    except SystemExit as error:
        if error.code != signal.SIGTERM and not isinstance(error.code, signal.Signals):
            raise
        name = signal.Signals(error.code).name
        raise InterruptedRunError(f"stopped by {name}; the same command goes on") from None


def _hangup() -> list[signal.Signals]:
    return [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]


def _tell(text: str) -> None:
    """Write to standard error from a handler, past all buffers and locks; a closed terminal takes nothing."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nttsvar-ray: {text}\n".encode())


@contextlib.contextmanager
def _handled(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Have another handler meanwhile; outside the main thread, which alone gets signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RayFacts:
    """Ray on this machine, as its environment describes it.

    Attributes:
        version: of the installed package.
        address: of `RAY_ADDRESS`; None where it is not set.
        problem: why nothing answers there; None where something does, or where there is nothing to ask.
        auth_mode: `RAY_AUTH_MODE`; None where it is not set.
        has_token_file: whether Ray would turn token authentication on by itself.
    """

    version: str
    address: str | None
    problem: str | None
    auth_mode: str | None
    has_token_file: bool


def inspect_ray() -> _RayFacts:
    """Read the environment, and try the address; takes two seconds at most."""
    import ray

    address, problem = os.environ.get("RAY_ADDRESS") or None, None
    try:
        _check_listening(address or "", INSPECTION_TIMEOUT_SECONDS)
    except OSError as error:
        problem = str(error)
    return _RayFacts(
        version=ray.__version__,
        address=address,
        problem=problem,
        auth_mode=os.environ.get("RAY_AUTH_MODE") or None,
        has_token_file="RAY_AUTH_TOKEN" in os.environ or TOKEN_FILE.expanduser().is_file(),
    )
