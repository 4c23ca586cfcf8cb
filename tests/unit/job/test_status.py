"""How a run stands, from its folder: running, silent, stopped, done; whole or in shards."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.tiny_jobs import PROMPTS, job, write_prompts
from ttsvar_ray.cli.app import app
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import InterruptedRunError, OutputError
from ttsvar_ray.job import record
from ttsvar_ray.job.record import RunRecord
from ttsvar_ray.job.status import RunStatus, read_status
from ttsvar_ray.results import JobProgress

STATE = JobProgress(
    prompts_total=PROMPTS,
    prompts_resumed=0,
    prompts_done=10,
    failed=1,
    images=9,
    mean_reward=0.5,
    workers=2,
    workers_wanted=2,
    seconds=20.0,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    job(write_prompts(folder / "p.jsonl"), folder / "out", cluster={"workers": 1, "in_process": True})
    return folder / "out"


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """The folder of a run that had committed four prompts of 22 and says nothing of its progress."""
    shutil.copytree(finished, tmp_path / "out")
    for part in sorted((tmp_path / "out" / "data").iterdir())[1:]:
        part.unlink()
    (tmp_path / "out" / "progress.jsonl").unlink()
    return tmp_path / "out"


def status_of(root: Path | str, **later: float) -> RunStatus:
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(**later)
    (found,) = read_status(str(root), now=moment)
    return found


def test_a_run_that_is_done(finished: Path) -> None:
    found = status_of(finished, hours=5)
    assert (found.state, found.prompts_done, found.parts, found.parts_total) == ("done", PROMPTS, 6, 6)
    assert found.silent_seconds == pytest.approx(5 * 3600, abs=300)


def test_a_run_whose_parts_are_gone_is_not_done(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "data" / "part-00002.parquet").unlink()
    found = status_of(tmp_path / "out")
    assert (found.state, found.parts, found.reason) == ("stopped", 5, "1 of its parts are not there any more")


def test_files_that_are_no_parts_of_a_run_are_told_and_not_counted(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    part = output / "data" / "part-00000.parquet"
    strays = ("part-00000 (copy).parquet", "part-000001.parquet", "part-00077.parquet")
    for name in strays:
        shutil.copyfile(part, output / "data" / name)
    shutil.copyfile(part, output / "data" / ".hidden.parquet")
    shown = CliRunner().invoke(app, ["status", str(output)]).stdout
    assert f"strays    not of this run: {', '.join(strays)} in data/, not counted here" in shown
    assert "parts     6 of 6 committed" in shown
    again = job(write_prompts(tmp_path / "p.jsonl"), output, cluster={"workers": 1, "in_process": True})
    assert (again.prompts, again.images) == (PROMPTS, PROMPTS)
    assert "part-00077.parquet in data/, not counted here" in again.notices[-1]


def test_a_run_under_way_then_silent(unfinished: Path) -> None:
    clock = [datetime.datetime.now(datetime.timezone.utc).timestamp()]
    layout = OutputLayout(unfinished)
    with (
        contextlib.suppress(InterruptedRunError),
        RunRecord(clock=lambda: clock[0]) as kept,
        kept.session(layout),
    ):
        kept.observe(STATE)
        clock[0] += record.EVERY_SECONDS
        kept.observe(STATE)
        kept.observe(STATE)
        lines = (unfinished / "progress.jsonl").read_text().splitlines()
        assert [json.loads(line)["state"] for line in lines] == ["starting", "running"]
        found = status_of(unfinished)
        assert (found.state, found.prompts_done, found.failed, found.parts) == ("running", 10, 1, 1)
        assert (found.images_per_second, found.seconds_left) == (0.45, 24)
        assert status_of(unfinished, minutes=10).state == "silent"
        raise InterruptedRunError("stopped by SIGTERM. 1 of 6 parts are committed")
    found = status_of(unfinished)
    # Six prompts were done and in no part.
    assert (found.state, found.prompts_done) == ("stopped", 4)
    assert "SIGTERM" in found.reason


def test_a_line_that_is_being_written_is_passed_over(unfinished: Path) -> None:
    whole = {"time": "2026-01-01T00:00:00+00:00", "state": "failed", "reason": "no workers"}
    (unfinished / "progress.jsonl").write_text(json.dumps(whole) + '\n{"time": "2026-')
    assert status_of(unfinished).reason == "no workers"


@pytest.mark.parametrize(
    "line",
    [
        '{"time": "2026-01-02T00:00:00", "state": "done"}',
        '{"time": "yesterday", "state": "done"}',
        '{"time": "2026-01-02T00:00:00+00:00", "state": "of another version"}',
        "[1]",
    ],
)
def test_a_line_of_another_version_or_damaged_is_passed_over(line: str, unfinished: Path) -> None:
    whole = {"time": "2026-01-01T00:00:00+00:00", "state": "failed", "reason": "no workers"}
    (unfinished / "progress.jsonl").write_text(f"{json.dumps(whole)}\n{line}\n")
    assert status_of(unfinished).reason == "no workers"


def test_a_folder_of_an_older_run_and_none_at_all(unfinished: Path, tmp_path: Path) -> None:
    assert status_of(unfinished).state == "unknown"
    with pytest.raises(OutputError, match=r"expected an output folder with a run\.json"):
        read_status(str(tmp_path / "absent"))


def test_prompts_that_were_added_and_not_made_yet_are_not_done(tmp_path: Path) -> None:
    """The last part of the run as it was holds two of the four prompts that it has from then on."""
    alone, output = {"workers": 1, "in_process": True}, tmp_path / "out"
    job(write_prompts(tmp_path / "p.jsonl", 6), output, cluster=alone)

    def stop_at_once(state: JobProgress) -> None:
        if state.workers:
            os.kill(os.getpid(), signal.SIGTERM)

    for count in (8, 10):
        more = write_prompts(tmp_path / "p.jsonl", count)
        with pytest.raises(InterruptedRunError):
            job(more, output, cluster=alone, extend=True, progress=stop_at_once)
        found = status_of(output, hours=5)
        assert (found.state, found.prompts_done, found.prompts_total) == ("stopped", 6, count)
        (output / "progress.jsonl").unlink()
        assert status_of(output).state == "unknown"


def test_a_damaged_part_of_an_extended_run_is_told(tmp_path: Path) -> None:
    alone, output = {"workers": 1, "in_process": True}, tmp_path / "out"
    for count in (6, 10):
        job(write_prompts(tmp_path / "p.jsonl", count), output, cluster=alone, extend=True)
    part = output / "data" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    shown = CliRunner().invoke(app, ["status", str(output)])
    assert shown.exit_code == 0, shown.output
    assert "state     stopped; the same command goes on" in shown.stdout
    assert "prompts   6 of 10 (60 %)" in shown.stdout
    assert f"reason    {part}: not a whole Parquet file" in shown.stdout
    assert "delete it to have its prompts generated again" in shown.stdout


def test_prompts_that_were_given_up_in_any_session_are_told(tmp_path: Path) -> None:
    prompts, alone = write_prompts(tmp_path / "p.jsonl"), {"workers": 1, "in_process": True}
    for _session in range(2):
        job(prompts, tmp_path / "out", cluster=alone, fail_on="number 3")
        found = status_of(tmp_path / "out")
        assert (found.state, found.prompts_done, found.failed) == ("done", PROMPTS, 1)
        shown = CliRunner().invoke(app, ["status", str(tmp_path / "out")]).stdout
        assert f"prompts   {PROMPTS} of {PROMPTS} (100 %), 1 given up (failed/)" in shown


def test_shards_are_listed_and_added(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl")
    for index in (0, 1):
        alone = {"workers": 1, "in_process": True, "shard": f"{index}/2"}
        job(prompts, tmp_path / "out", cluster=alone)
    found = read_status(str(tmp_path / "out"))
    assert [(one.state, one.prompts_done, one.parts_total) for one in found] == [
        ("done", 12, 3),
        ("done", 10, 3),
    ]
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "together  22 of 22 prompts (100 %)" in shown.stdout
    for command in (["check"], ["score", "--near-duplicates", "4"]):
        refused = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
        assert (refused.exit_code, "but 2 shards: name one" in refused.output) == (2, True), refused.output
    for index in (0, 1):
        shutil.copytree(tmp_path / "out" / f"shard-{index}-of-2", tmp_path / "out", dirs_exist_ok=True)
    assert [one.prompts_done for one in read_status(str(tmp_path / "out"))] == [22]


def test_what_the_command_prints(unfinished: Path) -> None:
    kept = RunRecord()
    kept.observe(STATE)
    with contextlib.suppress(InterruptedRunError), kept, kept.session(OutputLayout(unfinished)):
        shown = CliRunner().invoke(app, ["status", str(unfinished)])
        for line in (
            "state     running",
            "prompts   10 of 22 (45 %), 1 given up (failed/)",
            "parts     1 of 6 committed",
            "rate      0.45 images/s",
            "left      24 s",
        ):
            assert line in shown.stdout.splitlines()
        raise InterruptedRunError("stopped by SIGINT")
    shown = CliRunner().invoke(app, ["status", str(unfinished), "--json"])
    (values,) = json.loads(shown.stdout)
    assert (values["state"], values["reason"]) == ("stopped", "stopped by SIGINT")


def test_in_an_object_store_the_last_lines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "STORED_LINES", 3)
    layout, clock = OutputLayout("memory://runs/kept"), [0.0]
    for _ in range(2):
        with RunRecord(clock=lambda: clock[0]) as kept, kept.session(layout):
            clock[0] += record.EVERY_SECONDS
            kept.observe(STATE)
    lines = layout.progress_file.read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["starting", "running", "done"]


def test_a_record_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunRecord() as kept, kept.session(OutputLayout(tmp_path / "absent")):
        for _ in range(3):
            kept.observe(STATE)
    assert len([one for one in caplog.records if "cannot be written" in one.getMessage()]) <= 2
    assert "progress.jsonl cannot be written" in caplog.text
