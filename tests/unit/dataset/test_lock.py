"""One run writes to an output folder at a time, on a disk as in an object store."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server
from ttsvar_ray.dataset import OutputLayout, OutputLock
from ttsvar_ray.dataset import lock as lock_module
from ttsvar_ray.dataset.advisory_lock import AdvisoryLock
from ttsvar_ray.dataset.local_lock import LocalLock
from ttsvar_ray.dataset.lock_file import LockFile
from ttsvar_ray.dataset.s3_lock import S3Lock
from ttsvar_ray.errors import OutputError, StorageError
from ttsvar_ray.storage import locate

BEATING = {"heartbeat_s": 0.1, "stale_after_s": 30.0}
SETTLE_S = 0.05


@pytest.fixture(params=["local", "s3", "advisory", "advisory-s3"])
def layout(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutputLayout:
    monkeypatch.setattr(AdvisoryLock.__init__, "__kwdefaults__", {"settle_s": SETTLE_S})
    if request.param == "advisory-s3":
        monkeypatch.setattr(lock_module, "has_s3_client", lambda: False)
    if request.param.endswith("s3"):
        server: S3Server = request.getfixturevalue("s3")
        return OutputLayout(f"s3://{server.new_bucket()}/runs/out")
    return OutputLayout(f"memory:/{tmp_path}/out" if request.param == "advisory" else tmp_path / "out")


def leave_lock(layout: OutputLayout, **owner: object) -> None:
    layout.root.make_folder()
    layout.lock_file.write_text(json.dumps({"token": "t", "started": "earlier", **owner}))


def test_a_live_run_keeps_others_out_and_leaves_no_lock(layout: OutputLayout) -> None:
    with OutputLock(layout) as lock:
        with pytest.raises(OutputError, match=f"process {os.getpid()} on {socket.gethostname()}") as caught:
            OutputLock(layout).__enter__()
        assert str(layout.root) in str(caught.value)
        assert "the same command works after 60 s of silence" in str(caught.value)
        lock.check()
    assert layout.root.names() == []
    with OutputLock(layout):
        pass


def test_a_live_run_on_another_machine_keeps_others_out(
    layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            stack.enter_context(OutputLock(layout, **BEATING))
        with pytest.raises(OutputError, match=f"process {os.getpid()} on elsewhere"):
            OutputLock(layout, **BEATING).__enter__()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    leave_lock(layout, host=socket.gethostname(), pid=int(finished.stdout))
    with OutputLock(layout):
        assert "that process is gone" in caplog.text
        with pytest.raises(OutputError, match=f"process {os.getpid()}"):
            OutputLock(layout).__enter__()


def test_a_lock_that_stays_silent_is_taken_over(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    leave_lock(layout, host="elsewhere", pid=1)
    with OutputLock(layout, heartbeat_s=0.1, stale_after_s=0.3) as lock:
        assert "taking over the lock of process 1 on elsewhere" in caplog.text
        assert "it gave no sign of life for" in caplog.text
        lock.check()


def test_a_lock_that_was_cut_short_is_taken_over(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    layout.lock_file.write_text("{torn")
    with OutputLock(layout, heartbeat_s=0.1, stale_after_s=0.3):
        pass


def test_an_old_lock_is_taken_over_without_waiting(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    leave_lock(layout, host="elsewhere", pid=1)
    silent = time.time() - 61
    os.utime(tmp_path / ".lock", (silent, silent))
    with OutputLock(layout):
        pass


def test_the_heart_beats_and_a_lost_lock_is_noticed(layout: OutputLayout) -> None:
    with OutputLock(layout, heartbeat_s=0.05) as lock:
        probe = lock_module._lock_file_of(layout)
        first = beat_of(probe)
        wait_until(lambda: beat_of(probe) != first)
        # An advisory lock may be written over once more by a beat that was on its way.
        wait_until(lambda: layout.lock_file.write_text('{"token": "another"}') or is_lost(lock))
        with pytest.raises(OutputError, match="another run took this output folder over"):
            lock.check()
    assert layout.lock_file.is_file(), "the other run's lock must stay"


def test_a_lock_is_claimed_as_it_was_found_or_not_at_all(layout: OutputLayout) -> None:
    layout.root.make_folder()
    first, second, third = (lock_module._lock_file_of(layout) for _ in range(3))
    assert first.read() is None
    assert first.claim({"host": "a"}, None)
    assert not second.claim({"host": "b"}, None)
    found = second.read()
    assert found is not None
    assert third.claim({"host": "c"}, found)
    assert not second.claim({"host": "b"}, found)
    assert not first.beat()
    assert third.beat()
    first.release()
    assert layout.lock_file.is_file()
    third.release()
    assert not layout.lock_file.is_file()


def test_of_many_that_reach_for_a_lock_file_at_once_one_gets_it(tmp_path: Path) -> None:
    files = [LocalLock(tmp_path / ".lock", f"token {i}") for i in range(8)]
    won: list[LocalLock] = []
    start = threading.Barrier(len(files))

    def reach(file: LocalLock) -> None:
        start.wait()
        if file.claim({"host": "elsewhere"}, None):
            won.append(file)

    threads = [threading.Thread(target=reach, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [file.beat() for file in files].count(True) == 1


def test_of_two_that_write_an_advisory_lock_the_last_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = locate(f"memory:/{tmp_path}/.lock")
    early, late = AdvisoryLock(location, "early"), AdvisoryLock(location, "late")
    won: dict[str, bool] = {}

    def late_comes_now(seconds: float) -> None:
        # It looked before the early one wrote, and writes after it.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        location.delete()
        won["late"] = late.claim({"host": "b"}, None)

    monkeypatch.setattr(time, "sleep", late_comes_now)
    won["early"] = early.claim({"host": "a"}, None)
    assert won == {"early": False, "late": True}
    assert not early.beat()
    assert late.beat()


def test_each_storage_is_locked_as_well_as_it_can(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kind(where: str) -> type:
        return type(lock_module._lock_file_of(OutputLayout(where)))

    assert kind(str(tmp_path)) is LocalLock
    assert kind("s3://bucket/x") is S3Lock
    assert kind("memory://x") is AdvisoryLock
    monkeypatch.setattr(lock_module, "has_s3_client", lambda: False)
    assert kind("s3://bucket/x") is AdvisoryLock
    assert "the lock is advisory without boto3" in caplog.text


def test_a_sign_of_life_whose_answer_was_lost_is_no_takeover(s3: S3Server) -> None:
    layout = OutputLayout(f"s3://{s3.new_bucket()}/x")
    lock = S3Lock(layout.lock_file, "token")
    assert lock.claim({"pid": 1}, None)
    lock._etag = '"of the writing before"'
    assert lock.beat()
    assert lock.beat()


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    with pytest.raises(StorageError, match=r"s3://absent/x/\.lock: the storage refused or failed"):
        OutputLock(OutputLayout("s3://absent/x")).__enter__()


def beat_of(file: LockFile) -> object:
    found = file.read()
    return None if found is None else found.beat


def is_lost(lock: OutputLock) -> bool:
    try:
        lock.check()
    except OutputError:
        return True
    return False


def wait_until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
