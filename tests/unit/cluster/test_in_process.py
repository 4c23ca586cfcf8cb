"""Whole jobs in this process: parts, dead letters, interruptions, the record of the run."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.plans import raw_plan
from tests.support.tiny_jobs import PROMPTS, data_bytes, job, parts, write_prompts
from ttsvar_ray.cli.app import app
from ttsvar_ray.cluster import in_process
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.errors import (
    CannotStartError,
    InterruptedRunError,
    LostLockError,
    OutputError,
    RunFailedError,
)
from ttsvar_ray.job.preflight import Fact, OutputFact
from ttsvar_ray.results import JobProgress, JobSummary


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(in_process, "PROGRESS_SECONDS", 0.0)
    return write_prompts(tmp_path / "prompts.jsonl")


def run(prompts: Path, output: Path, **more: Any) -> JobSummary:
    return job(prompts, output, cluster={"workers": 1, "in_process": True}, **more)


def what_it_cost(summary: JobSummary) -> dict[str, Any]:
    """Return what must not depend on how often a run was stopped."""
    assert summary.cost is not None
    cost = summary.cost.to_json()
    return {name: value for name, value in cost.items() if name not in ("device_seconds", "sessions")}


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "progress.jsonl").read_text().splitlines()]


def test_a_job_and_its_record(prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ttsvar_ray")
    states: list[JobProgress] = []
    summary = run(prompts, tmp_path / "out", progress=states.append)
    assert (summary.prompts, summary.images, summary.failed, summary.workers) == (PROMPTS, PROMPTS, 0, 1)
    assert 0 < summary.first_image_seconds <= summary.generating_seconds <= summary.seconds
    assert states[0].workers == 0 and states[-1].is_over
    assert len(parts(tmp_path / "out")) == 6
    assert not (tmp_path / "out" / ".lock").exists()
    first, last = lines_of(tmp_path / "out")[0], lines_of(tmp_path / "out")[-1]
    assert first["state"] == "starting"
    assert (last["state"], last["prompts_done"], last["prompts_total"]) == ("done", PROMPTS, PROMPTS)
    assert "running in this process" in (tmp_path / "out" / "run.log").read_text()


def test_a_run_whose_folder_is_moved_away_ends_and_its_command_begins_anew(
    prompts: Path, tmp_path: Path
) -> None:
    output, moved = tmp_path / "out", tmp_path / "moved"

    def move(state: JobProgress) -> None:
        if len(parts(output)) == 2 and not moved.exists():
            output.rename(moved)

    with pytest.raises(LostLockError, match="somebody removed it, or its whole folder"):
        run(prompts, output, progress=move)
    (moved / ".lock").unlink()  # its process lives on
    assert run(prompts, moved).prompts_resumed == 8
    assert run(prompts, output).images == PROMPTS
    assert data_bytes(output) == data_bytes(moved)


def test_a_job_made_by_hand_is_recorded_as_what_it_is(prompts: Path, tmp_path: Path) -> None:
    """Its settings name a model that it does not run."""
    output = tmp_path / "out"
    run(prompts, output, plan=raw_plan())
    content = json.loads((output / "run.json").read_text())["content"]
    engine = "tests.support.tiny_engine:TinyEngineBuilder"
    assert (content["model.name"], content["strategy.name"]) == (engine, "raw")
    assert f"| model | {engine} |" in (output / "README.md").read_text()
    with pytest.raises(OutputError, match=r'strategy\.plan: "\w+" in the folder, "\w+" now'):
        run(prompts, output)
    assert data_bytes(output).keys() == {f"part-{number:05d}.parquet" for number in range(6)}


def test_an_interrupted_job_is_completed_by_the_same_command(prompts: Path, tmp_path: Path) -> None:
    undisturbed = run(prompts, tmp_path / "whole")
    expected = data_bytes(tmp_path / "whole")
    output = tmp_path / "out"

    def terminate_after_the_first_part(_state: JobProgress) -> None:
        if parts(output):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGTERM\. \d of 6 parts are committed"):
        run(prompts, output, progress=terminate_after_the_first_part)
    assert signal.getsignal(signal.SIGTERM) is before
    last = lines_of(output)[-1]
    assert last["state"] == "stopped" and "SIGTERM" in last["reason"]
    partial = data_bytes(output)
    assert 0 < len(partial) < len(expected)
    assert all(expected[name] == content for name, content in partial.items())
    resumed = run(prompts, output)
    assert resumed.prompts_resumed > 0
    assert data_bytes(output) == expected
    assert what_it_cost(resumed) == what_it_cost(undisturbed)
    assert undisturbed.cost is not None and resumed.cost is not None
    assert (undisturbed.cost.decoded, undisturbed.cost.scored) == (PROMPTS * 21, PROMPTS * 7)
    assert (undisturbed.cost.kept, undisturbed.cost.sessions, resumed.cost.sessions) == (PROMPTS, 1, 2)
    seconds = [json.loads(line)["device_seconds"] for line in (output / "sessions.jsonl").open()]
    assert len(seconds) == 2 and min(seconds) > 0
    assert resumed.cost.device_seconds == pytest.approx(sum(seconds))
    assert run(prompts, output).prompts_resumed == PROMPTS
    assert CliRunner().invoke(app, ["report", str(output)]).exit_code == 0
    page = (output / "report.html").read_text()
    assert re.search("trajectories a prompt by scales: [0-9].*images/s a worker", page)


def test_finished_prompts_of_an_unfinished_part_are_kept(prompts: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    undisturbed = run(prompts, whole, rows_per_part=PROMPTS)

    def stop_with_one_done(state: JobProgress) -> None:
        if state.prompts_done:
            os.kill(os.getpid(), signal.SIGHUP)

    kept = 0
    for _ in range(2):
        with pytest.raises(InterruptedRunError, match=r"and \d+ finished prompts of the next ones are kept"):
            run(prompts, output, rows_per_part=PROMPTS, rows=2, progress=stop_with_one_done)
        before, kept = kept, images_in(output)
        assert before < kept < PROMPTS
    with pytest.raises(OutputError, match="seed: 5 in the folder, 6 now"):
        run(prompts, output, rows_per_part=PROMPTS, seed=6)
    summary = run(prompts, output, rows_per_part=PROMPTS)
    assert (summary.prompts, summary.prompts_resumed) == (PROMPTS, kept)
    assert data_bytes(output) == data_bytes(whole)
    assert what_it_cost(summary) == what_it_cost(undisturbed)
    assert not (output / "partial").exists()


def test_prompts_are_added_to_a_run_and_nothing_is_made_twice(prompts: Path, tmp_path: Path) -> None:
    whole, output, some = tmp_path / "whole", tmp_path / "out", tmp_path / "some.jsonl"
    run(prompts, whole)
    facts: list[Fact] = []
    for count, before in ((6, 0), (8, 6), (15, 8)):
        write_prompts(some, count)
        if before:
            with pytest.raises(OutputError, match="--extend makes those"):
                run(some, output)
        summary = run(some, output, extend=True, tell=facts.append)
        assert (summary.prompts, summary.prompts_resumed) == (count, before)
    again = run(some, output)
    assert (again.prompts, again.prompts_resumed) == (15, 15), "the same command without --extend goes on"

    def stop_at_once(state: JobProgress) -> None:
        if state.workers:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        run(prompts, output, extend=True, progress=stop_at_once)
    run(prompts, output, tell=facts.append)
    left = [fact.prompts_left for fact in facts if isinstance(fact, OutputFact)]
    assert left == [6, 2, 7, PROMPTS - 15], "the last part of the run as it was has room for some of them"
    assert data_bytes(output) == data_bytes(whole)
    lines = prompts.read_text()
    some.write_text(lines.replace("number 3", "number three") + '{"prompt": "more", "tag": 0}\n')
    with pytest.raises(OutputError, match="they are no longer the first of the 23"):
        run(some, output, extend=True)
    some.write_text(lines + '{"prompt": "more", "tag": 0, "new": 1}\n')
    with pytest.raises(OutputError, match=r"expected the columns of this run, tag \(int64\), got .*new"):
        run(some, output, extend=True)
    assert data_bytes(output) == data_bytes(whole)


def images_in(output: Path) -> int:
    files = [*output.glob("data/part-*.parquet"), *output.glob("partial/part-*.parquet")]
    return sum(pq.read_metadata(file).num_rows for file in files)


def test_what_fails_is_a_dead_letter(prompts: Path, tmp_path: Path) -> None:
    summary = run(prompts, tmp_path / "out", fail_on="number 3")
    assert (summary.prompts, summary.failed) == (PROMPTS - 1, 1)
    (letter,) = (tmp_path / "out/failed/part-00000.jsonl").read_text().splitlines()
    assert json.loads(letter)["columns"] == {"tag": 3}
    again = run(prompts, tmp_path / "out", fail_on="number 3")
    assert (again.prompts, again.prompts_resumed, again.failed) == (PROMPTS - 1, PROMPTS - 1, 1)


def test_an_engine_that_cannot_be_built_ends_it_and_owns_nothing(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotStartError, match="weights of another model"):
        run(prompts, tmp_path / "out", unusable="weights of another model")
    assert lines_of(tmp_path / "out")[-1]["state"] == "failed"
    assert run(prompts, tmp_path / "out", seed=6).prompts == PROMPTS


def test_a_disk_that_is_full_before_the_first_part_ends_it(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session notes of its device is the first file that a disk may have no room for."""

    def full(*_given: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SessionLog, "add_device", full)
        with pytest.raises(
            RunFailedError, match=r"^no space is left for .* make room.* 0 of 6 parts .* goes on"
        ):
            run(prompts, tmp_path / "out")
    assert run(prompts, tmp_path / "out").prompts == PROMPTS


def test_a_part_that_cannot_be_written_ends_it(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(in_process, "write_chunk", full)
    with pytest.raises(
        RunFailedError, match=r"part 0 could not be written: no space is left for .* make room"
    ):
        run(prompts, tmp_path / "out")
