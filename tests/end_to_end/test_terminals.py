"""Runs whose terminal is closed, by the real command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]

ON_TERMINAL = """
import fcntl, os, signal, sys, termios
# As a shell starts it, also where the tests themselves run under nohup.
signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal with one program on it."""

    def __init__(self, folder: Path, *command: str, hangup: str = "SIG_DFL") -> None:
        self._master, program_end = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, hangup, *command],
            cwd=folder,
            env=environment,
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
        )
        os.close(program_end)

    def close(self) -> None:
        """Go away, as a window that is shut does: the program is sent SIGHUP."""
        os.close(self._master)

    def read_until(self, what: str) -> str:
        """Return what is shown up to some text."""
        # A program that hangs is killed, which ends the reading.
        guard = threading.Timer(300, self.process.kill)
        guard.start()
        shown = b""
        try:
            while what.encode() not in shown:
                shown += os.read(self._master, 4096)
        except OSError as error:
            raise AssertionError(f"{what!r} was never shown: {shown.decode()[-500:]}") from error
        finally:
            guard.cancel()
        return shown.decode()


def generate(folder: Path, prompts: int) -> list[str]:
    lines = [f"a red circle number {row}\n" for row in range(prompts)]
    (folder / "prompts.txt").write_text("".join(lines))
    command = [sys.executable, "-m", "ttsvar_ray", "generate", "--in-process", "--prompts", "prompts.txt"]
    return [*command, "--output", "out", "--strategy", "raw", "--set", "output.rows_per_part=3"]


def log_of(folder: Path) -> str:
    return (folder / "out" / "run.log").read_text()


def test_a_closed_terminal_stops_a_run_in_good_order(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, *generate(tmp_path, prompts=400))
    terminal.read_until("workers 1/1")
    terminal.close()
    assert terminal.process.wait(timeout=200) == 75
    assert "Traceback" not in log_of(tmp_path)
    assert "SIGHUP" in log_of(tmp_path)
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.slow
def test_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "nohup", *generate(tmp_path, prompts=2))
    terminal.read_until("nohup.out")
    terminal.close()
    assert terminal.process.wait(timeout=300) == 0
    assert "images       2" in (tmp_path / "nohup.out").read_text()


@pytest.mark.slow
def test_a_run_that_ignores_hangups_ends_well_without_its_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, *generate(tmp_path, prompts=2), hangup="SIG_IGN")
    terminal.read_until("weights")
    terminal.close()
    assert terminal.process.wait(timeout=300) == 0
    assert (tmp_path / "out" / "data" / "part-00000.parquet").is_file()
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.slow
def test_a_run_whose_lines_nobody_reads_any_more_ends_well(tmp_path: Path) -> None:
    command = generate(tmp_path, prompts=2)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"job ")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "out" / "data" / "part-00000.parquet").is_file()


AS_A_SHELL = """
import os, signal, sys
# Also where the tests themselves run under nohup, or in the background of a script.
for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start(folder: Path, *arguments: str, **pipes: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AS_A_SHELL, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **pipes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_reads_its_prompts_is_stopped_in_good_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("-m", "ttsvar_ray", "generate", "--in-process", "--prompts", "-", "--output", "out")
    process = start(tmp_path, *arguments, stdin=subprocess.PIPE)
    assert process.stderr is not None and process.stderr.readline().startswith("job ")
    process.send_signal(number)  # its standard input stays open: it waits for prompts
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert errors.endswith(f"ttsvar-ray: stopped by {number.name}; the same command goes on\n")


@pytest.mark.parametrize("number", ["TERM", "INT"])
def test_a_signal_after_the_summary_is_no_exit_code(tmp_path: Path, number: str) -> None:
    hook = f"kill -{number} $PPID; sleep 30"
    _, *arguments = generate(tmp_path, prompts=2)
    process = start(tmp_path, *arguments, "--on-exit", hook, stdout=subprocess.PIPE)
    shown, errors = process.communicate(timeout=200)
    assert "images       2" in shown
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors and "Traceback" not in errors


LEAVING = """
import atexit, os, signal, sys
from ttsvar_ray.cli import app as cli

number = getattr(signal, sys.argv[1])

class Late:
    def __del__(self, kill=os.kill, own=os.getpid()):
        kill(own, number)

def app():
    if sys.argv[2] == "atexit":
        atexit.register(os.kill, os.getpid(), number)
    else:  # when the modules go: Python has no handlers any more
        sys.late = Late()
    sys.exit(3)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("moment", ["atexit", "modules"])
def test_a_process_that_is_leaving_keeps_its_exit_code(tmp_path: Path, number: str, moment: str) -> None:
    process = start(tmp_path, "-c", LEAVING, number, moment)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (3, "")
