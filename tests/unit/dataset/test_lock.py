"""One run writes to an output folder at a time, on a disk as in an object store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server
from ttsvar_ray.dataset import lock as lock_module
from ttsvar_ray.dataset import lock_files
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.lock_files import AdvisoryLock, LocalLock, LockFile
from ttsvar_ray.errors import LostLockError, OutputError, StorageError
from ttsvar_ray.storage.location import locate

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
            elsewhere = {**lock_module.this_process(), "host": "elsewhere", "boot": "another"}
            patch.setattr(lock_module, "this_process", lambda: elsewhere)
            stack.enter_context(OutputLock(layout, **BEATING))
        with pytest.raises(OutputError, match=f"process {os.getpid()} on elsewhere"):
            OutputLock(layout, **BEATING).__enter__()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    leave_lock(layout, **{**lock_module.this_process(), "pid": int(finished.stdout)})
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
        probe = lock_module.lock_file_of(layout, uuid.uuid4().hex)
        first = beat_of(probe)
        wait_until(lambda: beat_of(probe) != first)
        # An advisory lock may be written over once more by a beat that was on its way.
        wait_until(lambda: layout.lock_file.write_text('{"token": "another"}') or is_lost(lock))
        with pytest.raises(LostLockError, match="another run took this output folder over"):
            lock.check()
    assert layout.lock_file.is_file(), "the other run's lock must stay"


def test_a_lock_that_is_removed_is_not_told_as_taken_over(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "out")
    with OutputLock(layout, heartbeat_s=0.05) as lock:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(LostLockError, match="somebody removed it, or its whole folder"):
            lock.layout.run_file.write_text("{}")
        wait_until(lambda: is_lost(lock))
        with pytest.raises(LostLockError, match="somebody removed it, or its whole folder"):
            lock.check()


def test_a_lock_is_claimed_as_it_was_found_or_not_at_all(layout: OutputLayout) -> None:
    layout.root.make_folder()
    first, second, third = (lock_module.lock_file_of(layout, uuid.uuid4().hex) for _ in range(3))
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


@pytest.mark.parametrize("error", [StorageError("the network is down"), KeyError("date")])
def test_a_run_that_cannot_beat_stops_by_itself_before_others_may_take_over(
    layout: OutputLayout, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with OutputLock(layout, heartbeat_s=0.02, stop_after_s=0.3) as lock:

        def fail(self: object) -> bool:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(type(lock_module.lock_file_of(layout, "t")), "beat", fail)
            wait_until(lambda: is_lost(lock))
            with pytest.raises(LostLockError, match="no sign of life could be written for 0 s"):
                lock.check()
        wait_until(lambda: not is_lost(lock))


def test_a_heartbeat_that_never_runs_is_noticed(layout: OutputLayout) -> None:
    with OutputLock(layout, heartbeat_s=1e6, stop_after_s=1.0) as lock:
        lock.check()
        wait_until(lambda: is_lost(lock))


def test_whoever_lost_the_lock_changes_no_file(layout: OutputLayout) -> None:
    with OutputLock(layout) as first:
        letters = first.layout.failed_part(0)
        letters.write_text("of the first")
        leave_lock(layout, host="elsewhere", pid=1)
        (layout.failed_folder / ".part-00001.jsonl.1234.tmp").write_text("of the second")
        for change in (
            lambda: letters.write_text("of the first again"),
            letters.delete,
            first.layout.failed_folder.remove_leftovers,
            lambda: first.layout.run_file.create_text("{}"),
        ):
            with pytest.raises(LostLockError, match="another run took this output folder over"):
                change()
        assert letters.read_text() == "of the first"
        assert layout.failed_folder.names() == [".part-00001.jsonl.1234.tmp", "part-00000.jsonl"]
        assert not layout.run_file.is_file()
        layout.lock_file.delete()
        with pytest.raises(LostLockError):
            letters.delete()


def test_processes_are_told_apart_by_more_than_their_numbers() -> None:
    here = lock_module.this_process()
    assert lock_module.is_alive(here) is True
    assert lock_module.is_alive({**here, "process_started": here["process_started"] - 1}) is False
    for elsewhere in ({"boot": "another"}, {"pid_namespace": 1}, {"boot": None}):
        assert lock_module.is_alive({**here, **elsewhere}) is None
    assert lock_module.is_alive({"host": here["host"], "pid": here["pid"]}) is None
    assert lock_module.is_alive({}) is None


@pytest.mark.parametrize("pid", [1, 2**22 + 1])
def test_a_container_of_the_same_name_is_waited_for_and_neither_refused_nor_robbed(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture, pid: int
) -> None:
    leave_lock(layout, **{**lock_module.this_process(), "pid": pid, "pid_namespace": 1})
    with OutputLock(layout, heartbeat_s=0.1, stale_after_s=0.3):
        assert "it gave no sign of life for" in caplog.text
        assert "that process is gone" not in caplog.text


def test_a_clock_that_was_set_does_not_make_a_living_owner_silent(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    with OutputLock(layout, heartbeat_s=0.3) as lock:
        os.utime(tmp_path / ".lock", (time.time() - 3600,) * 2)
        with pytest.raises(OutputError, match="another run is writing here"):
            OutputLock(layout, heartbeat_s=0.3).__enter__()
        lock.check()


def test_a_lock_is_never_written_through_a_link(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "out")
    (tmp_path / "out").mkdir()
    private = tmp_path / "private"
    private.write_text("mine")
    os.utime(private, (0, 0))
    (tmp_path / "out/.lock").symlink_to(private)
    with pytest.raises(OutputError, match=r"\.lock: expected a lock, got a symbolic link; remove it"):
        OutputLock(layout).__enter__()
    assert not LocalLock(tmp_path / "out/.lock", "t").claim({}, None)
    (tmp_path / "out/.lock").unlink()
    (tmp_path / "out/.lock").symlink_to(tmp_path / "new")
    assert not LocalLock(tmp_path / "out/.lock", "t").claim({}, None)
    assert private.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_place_that_no_folder_can_be_made_at_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    layout = OutputLayout(tmp_path / "file" / "output")
    assert layout.root.names() == []
    with pytest.raises(OutputError, match="file/output: expected a folder that can be written to"):
        OutputLock(layout).__enter__()


def test_a_crash_at_the_probe_of_the_clock_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on NFS, where a file without a name is created with one, which is then deleted.
    leave_lock(OutputLayout(tmp_path), host="elsewhere", pid=1)
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *given, **named: sys.exit("killed"))
        with pytest.raises(SystemExit):
            LocalLock(tmp_path / ".lock", "token").read()
    assert sorted(path.name[:7] for path in tmp_path.iterdir()) == [".lock", ".probe."]
    OutputLayout(tmp_path).root.remove_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_that_waits_is_not_disturbed_when_the_owner_tidies_up(layout: OutputLayout) -> None:
    leave_lock(layout, host="elsewhere", pid=1)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            with OutputLock(layout, heartbeat_s=0.01, stale_after_s=1.0):
                pass
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while waiting.is_alive():
        layout.root.remove_leftovers()
    assert failed == []


def test_nobody_takes_a_lock_over_while_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_files, "_GUARD_WAIT_S", 0.1)
    owner, other = (LocalLock(tmp_path / ".lock", token) for token in "ab")
    assert owner.claim({"host": "a"}, None)
    found = other.read()
    assert found is not None
    is_ours = LocalLock._is_ours

    def reach_in_between(self: LocalLock, descriptor: int) -> bool:
        assert not other.claim({"host": "b"}, found)
        return is_ours(self, descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(LocalLock, "_is_ours", reach_in_between)
        owner.release()
    assert other.claim({"host": "b"}, None)
    owner.release()
    assert other.beat()


def test_a_file_system_without_flock_has_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = (LocalLock(tmp_path / ".lock", token) for token in "ab")
    assert first.claim({}, None)
    assert not second.claim({}, None)
    assert second.claim({}, second.read())
    assert not first.beat()
    first.release()
    assert second.beat()


def test_a_lock_that_is_away_while_it_is_replaced_is_not_lost(tmp_path: Path) -> None:
    layout = OutputLayout(f"local://{tmp_path}/out")
    with OutputLock(layout) as held:
        content = layout.lock_file.read_text()
        layout.lock_file.delete()
        back = threading.Timer(0.1, lambda: layout.lock_file.write_text(content))
        back.start()
        held.layout.run_file.write_text("{}")
        back.join()
        with pytest.raises(OutputError, match="another run is writing here"):
            OutputLock(layout).__enter__()


def beat_of(file: LockFile) -> object:
    found = file.read()
    return None if found is None else found.beat


def is_lost(lock: OutputLock) -> bool:
    try:
        lock.check()
    except LostLockError:
        return True
    return False


def wait_until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
