"""How `generate` ends: summary, exit codes, progress; the job itself is replaced."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.generate import summary_lines
from ttsvar_ray.cli.progress import ProgressReporter, bar_line, progress_line, set_up_logging
from ttsvar_ray.cli.show import duration
from ttsvar_ray.cluster import job as job_module
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import (
    CannotStartError,
    InputError,
    InterruptedRunError,
    LostLockError,
    LostRowsError,
    RunFailedError,
    TtsVarError,
)
from ttsvar_ray.results import JobProgress, JobSummary, RunCost

SUMMARY: dict[str, Any] = {
    "output": "/somewhere/out",
    "uri": "/somewhere/out",
    "prompts": 48,
    "images": 96,
    "failed": 0,
    "bad_lines": 0,
    "mean_reward": 0.71234,
    "cut": 0,
    "prompts_resumed": 16,
    "workers": 2,
    "seconds": 75.0,
    "images_per_second": 1.5,
    "generating_seconds": 32.0,
    "first_image_seconds": 2.5,
}
STATE: dict[str, Any] = {
    "prompts_total": 48,
    "prompts_resumed": 16,
    "prompts_done": 8,
    "failed": 1,
    "images": 14,
    "mean_reward": 0.5,
    "workers": 2,
    "workers_wanted": 2,
    "seconds": 10.0,
}


def generate_with(monkeypatch: pytest.MonkeyPatch, run: Callable[..., JobSummary], *more: str) -> Result:
    monkeypatch.setattr(job_module, "run_job", run)
    return CliRunner().invoke(app, ["generate", "--prompts", "p.txt", "--output", "o", *more])


def test_flags_and_settings_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[JobConfig] = []

    def run(config: JobConfig, *, progress: Any, **flags: bool) -> JobSummary:
        seen.append(config)
        return JobSummary(**SUMMARY)

    flags = ["--model", "12", "--strategy", "best-of-n", "--n", "4", "--seed", "9", "--workers", "3"]
    flags += ["--spread", "2", "--address", "auto"]
    result = generate_with(monkeypatch, run, *flags, "--set", "strategy.n=5", "--set", "output.bits=true")
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.model.name, config.strategy.name, config.strategy.n) == ("12", "best-of-n", 5)
    assert (config.seed, config.cluster.workers, config.cluster.spread) == (9, 3, 2)
    assert (config.cluster.address, config.output.bits) == ("auto", True)


def test_retrying_and_starting_anew_are_asked_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def run(config: JobConfig, *, progress: Any, tell: Any, **flags: Any) -> JobSummary:
        assert callable(flags.pop("on_part"))
        seen.append(flags)
        return JobSummary(**SUMMARY)

    for flags in ([], ["--retry-failed"], ["--force-new", "--log-file", "here.log"], ["--extend"]):
        assert generate_with(monkeypatch, run, *flags).exit_code == 0
    assert seen == [
        {"retry_failed": False, "force_new": False, "extend": False, "log_file": None},
        {"retry_failed": True, "force_new": False, "extend": False, "log_file": None},
        {"retry_failed": False, "force_new": True, "extend": False, "log_file": Path("here.log")},
        {"retry_failed": False, "force_new": False, "extend": True, "log_file": None},
    ]


def test_prompts_that_the_model_did_not_read_whole_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for cut in (0, 3):
        summary = JobSummary(**{**SUMMARY, "cut": cut})
        shown = generate_with(monkeypatch, lambda config, summary=summary, **_: summary).stdout
        line = "cut          3 prompts, longer than the model reads (column text_truncated)"
        assert (line in shown.splitlines()) is (cut == 3)


def test_the_cost_of_an_adaptive_search_stands_beside_its_budget() -> None:
    config = load_config(None, ["prompts.path=a", "output.path=b"], needs_files=False)
    config = config.model_copy(update={"strategy": config.strategy.model_copy(update={"budget": 1.5})})
    cost = RunCost(
        strategy="adaptive",
        prompts=10,
        flops={"texts": 0.0, "transformer": 10.37e12, "decodes": 4e12, "selectors": 0.0},
        image_flops=1e12,
        trajectories={"0-6": 85, "7-12": 10},
        decoded=40,
        scored=40,
        embedded=0,
        kept=10,
        device_seconds=90.0,
        sessions=2,
    )
    shares = "(texts 0%, transformer 72%, decodes 28%, selectors 0%)"
    assert summary_lines(config, JobSummary(**SUMMARY, cost=cost))[4:8] == [
        f"cost         1.437 images a prompt (budget 1.5), 14.4 TFLOP by adaptive {shares}",
        "searched     trajectories a prompt by scales: 8.5 in 0-6, 1 in 7-12",
        "drawn        40 decoded, 40 scored, 0 embedded, 10 kept",
        "devices      1 min 30 s of workers, 2 sessions",
    ]
    assert not any(line.startswith("cost ") for line in summary_lines(config, JobSummary(**SUMMARY)))


def test_an_output_in_an_object_store_is_opened_by_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = JobSummary(**{**SUMMARY, "output": "s3://bucket/out", "failed": 1})
    result = generate_with(monkeypatch, lambda config, **_: summary)
    lines = result.stdout.splitlines()
    assert (
        '  datasets.load_dataset("parquet", data_files="s3://bucket/out/data/*.parquet", split="train")'
        in lines
    )
    assert "  see why: s3://bucket/out/failed" in lines
    assert "  try those again: the same command with --retry-failed" in lines


def test_the_next_command_can_be_typed_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = JobSummary(**{**SUMMARY, "output": "/a folder/out #1"})
    result = generate_with(monkeypatch, lambda config, **_: summary)
    assert "  ttsvar-ray sheet '/a folder/out #1'" in result.stdout.splitlines()


def test_a_session_without_an_image_tells_of_no_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {"images": 0, "images_per_second": 0.0, "first_image_seconds": math.nan}
    result = generate_with(monkeypatch, lambda config, **_: JobSummary(**{**SUMMARY, **none}))
    assert "time         1 min 15 s, 32 s of it generating at 0.00 images/s" in result.stdout.splitlines()


def test_a_done_job_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    result = generate_with(monkeypatch, lambda config, **_: JobSummary(**SUMMARY))
    assert result.exit_code == 0
    for line in (
        "prompts      48 (16 of them before)",
        "images       96",
        "mean reward  0.7123",
        "time         1 min 15 s, 32 s of it generating at 1.50 images/s, the first after 2.5 s",
        "failures     0 prompts given up, 0 bad lines",
        "output       /somewhere/out",
        '  datasets.load_dataset("/somewhere/out", split="train")',
        "  ttsvar-ray sheet /somewhere/out",
    ):
        assert line in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("lost", "budget", "code"),
    [
        ({"failed": 1, "bad_lines": 1}, None, 0),
        ({"failed": 2, "bad_lines": 1}, None, 3),
        ({"failed": 3}, "3", 0),
        ({"bad_lines": 4}, "3", 3),
        ({"failed": 1}, "0", 3),
        ({"failed": 1}, "0.5%", 0),
        ({"bad_lines": 2}, "0.5%", 3),
        ({"failed": 200}, "100%", 0),
    ],
)
def test_failures_up_to_the_budget_are_a_warning_and_above_it_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, lost: dict[str, int], budget: str | None, code: int
) -> None:
    missing = sum(lost.values())
    summary = JobSummary(**{**SUMMARY, **lost, "prompts": 200 - missing})
    more = () if budget is None else ("--set", f"max_failed={budget}")
    result = generate_with(monkeypatch, lambda config, **_: summary, *more)
    assert result.exit_code == code
    assert "see why: /somewhere/out/failed" in result.stdout
    verdict = "more than" if code else "within"
    counts = f"{lost.get('failed', 0)} prompts given up, {lost.get('bad_lines', 0)} bad lines"
    assert f"failures     {counts} ({verdict} max_failed, {budget or '1%'})" in result.stdout.splitlines()


@pytest.mark.parametrize("budget", ["0.5", "-1", "101%", "some", "true"])
def test_a_budget_that_is_neither_count_nor_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    result = generate_with(
        monkeypatch, lambda config, **_: JobSummary(**SUMMARY), "--set", f"max_failed={budget}"
    )
    assert result.exit_code == 2
    assert "max_failed: expected a count such as 20, or a share such as 0.1%" in result.stderr


@pytest.mark.parametrize(
    ("error", "started", "code"),
    [
        (InterruptedRunError("stopped by SIGTERM"), True, 75),
        (RunFailedError("no workers"), True, 75),
        (LostLockError("taken over"), True, 75),
        (RunFailedError("no workers"), False, 75),
        (CannotStartError("no weights"), True, 2),
        (InputError("changed"), True, 1),
        (InputError("absent"), False, 2),
        (LostRowsError("row 4"), True, 1),
        (LostRowsError("row 4"), False, 1),
        (OSError(errno.ENOSPC, "No space left on device"), True, 75),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), False, 2),
        (OSError(errno.EFBIG, "File too large"), False, 2),
        (KeyboardInterrupt(), True, 75),
        (KeyboardInterrupt(), False, 130),
        (RuntimeError("a bug"), True, 1),
    ],
)
def test_how_a_job_stops_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, started: bool, code: int
) -> None:
    def run(config: JobConfig, *, progress: Any, **flags: bool) -> JobSummary:
        if started:
            progress(JobProgress(**STATE))
        raise error

    result = generate_with(monkeypatch, run)
    assert result.exit_code == code
    message = result.stderr[result.stderr.index("ttsvar-ray: ") :]
    if isinstance(error, TtsVarError):
        assert message == f"ttsvar-ray: {error}\n"
    elif isinstance(error, RuntimeError):
        assert re.fullmatch(
            r"ttsvar-ray: RuntimeError: a bug \[test_generate_ends\.py, line \d+\]\n", message
        )
    elif isinstance(error, OSError):
        assert message.startswith(f"ttsvar-ray: what is written here: {error.strerror} [")
    else:
        assert message.startswith("ttsvar-ray: interrupted")
    assert "Traceback" not in result.stderr


def test_only_an_error_of_this_package_is_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    result = generate_with(monkeypatch, int)  # takes no job: raised where the command calls it
    assert result.exit_code == 1
    assert "ttsvar-ray: unexpected TypeError: " in result.stderr and "--debug to see where" in result.stderr


def test_a_state_as_a_line() -> None:
    line = progress_line(JobProgress(**STATE))
    assert line == "prompts 24/48  failed 1  1.40 images/s  workers 2/2  reward 0.500  left 30 s"
    waiting = {**STATE, "prompts_done": 0, "workers": 0, "seconds": 0.0, "mean_reward": math.nan}
    assert progress_line(JobProgress(**waiting)) == "prompts 16/48  waiting for workers (0/2 up)"


def test_plain_progress_is_a_line_every_few_seconds_and_the_end() -> None:
    file = io.StringIO()
    clock = [0.0]
    with ProgressReporter(Console(file=file), now=lambda: clock[0]) as reporter:
        # After 12 s the last part is written, and the rate sinks.
        for clock[0], done in ((0.0, 1), (3.0, 2), (11.0, 3), (12.0, 32), (13.0, 32), (30.0, 32)):
            reporter(JobProgress(**{**STATE, "prompts_done": done, "seconds": 10.0 + clock[0]}))
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["17/48", "19/48", "48/48"]


LARGE: dict[str, Any] = {
    **STATE,
    "prompts_total": 200_000,
    "prompts_resumed": 0,
    "prompts_done": 123_456,
    "failed": 12,
    "images": 123_444,
    "workers": 8,
    "workers_wanted": 8,
    "seconds": 23_500.0,
}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (40, "123,456/200,000  61 %  left 4 h 2 min"),
        (60, "━━━━━━╌╌╌╌  123,456/200,000  61 %  left 4 h 2 min  failed 12"),
        (
            80,
            "━━━━━━━━━╌╌╌╌╌╌  123,456/200,000  61 %  left 4 h 2 min  failed 12  5.25 images/s",
        ),
    ],
    ids=["40", "60", "80"],
)
def test_count_share_and_time_left_stand_on_any_terminal(width: int, line: str) -> None:
    shown = bar_line(JobProgress(**LARGE), width)
    assert len(shown) <= width
    assert shown == line
    file = io.StringIO()
    with ProgressReporter(Console(file=file, force_terminal=True, width=width)) as reporter:
        reporter(JobProgress(**LARGE))
    assert "123,456/200,000  61 %  left 4 h 2 min" in file.getvalue()


def test_the_log_on_a_terminal_has_this_clock_and_no_colours_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = io.StringIO()
    set_up_logging(Console(file=file, force_terminal=True, width=80, color_system="truecolor"), debug=False)
    logging.getLogger("ttsvar_ray.x").info("cell-0 is up")
    logging.getLogger("ttsvar_ray").handlers.clear()
    assert re.search(r"\d\d:\d\d:\d\d", file.getvalue())
    assert "cell-0 is up" in file.getvalue() and "/" not in file.getvalue()


def test_a_terminal_gets_a_bar_that_is_closed() -> None:
    file = io.StringIO()
    reporter = ProgressReporter(Console(file=file, force_terminal=True, width=100))
    with reporter:
        reporter(JobProgress(**STATE))
    assert "24/48" in file.getvalue()
    assert "left 30 s" in file.getvalue()
    assert file.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor must be shown again"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (18600, "5 h 10 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


ENDS_WITH = """
import sys
from ttsvar_ray.cli.app import app, main

@app.command()
def many_lines(code: int) -> None:
    for row in range(100_000):
        print(row, file=sys.stderr if row % 2 else sys.stdout)
    raise SystemExit(code)

main()
"""


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_has_gone_changes_no_exit_code(kind: str, code: int) -> None:
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    command = [sys.executable, "-c", ENDS_WITH, "many-lines", str(code)]
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    assert os.read(reader, 4)
    os.close(reader)
    assert process.wait(timeout=120) == code
