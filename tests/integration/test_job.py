"""Whole jobs on real Ray: the same bytes whatever the workers, their deaths and interruptions."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.tiny_jobs import PROMPTS, data_bytes, job, parts, prompts_kept
from ttsvar_ray.errors import CannotStartError, InterruptedRunError, OutputError, RunFailedError
from ttsvar_ray.results import JobProgress

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("rows", "cluster"),
    [
        (5, {"workers": 2, "spread": 2}),
        (8, {"workers": 4, "workers_per_cell": 2, "cpus_per_worker": 0.5}),
    ],
)
def test_workers_spread_micro_batches_and_cells_do_not_change_a_byte(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path, rows: int, cluster: dict[str, Any]
) -> None:
    summary = job(prompts_file, tmp_path / "out", rows=rows, cluster=cluster)
    assert data_bytes(tmp_path / "out") == expected
    assert summary.notices == ()


def test_without_ray_the_bytes_are_the_same(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    summary = job(prompts_file, tmp_path / "out", cluster={"workers": 1, "in_process": True})
    assert (summary.prompts, summary.failed, summary.workers) == (PROMPTS, 0, 1)
    assert data_bytes(tmp_path / "out") == expected


def test_shards_share_a_prompt_set_and_together_are_the_data_set(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with prompts_file.open() as stream:
        lines = stream.read().splitlines()
    with_bad_line = tmp_path / prompts_file.name
    with_bad_line.write_text("\n".join([*lines, "{"]) + "\n")
    # On Ray and off it: which prompts are a shard's has nothing to do with who runs them.
    summaries = [
        job(with_bad_line, output, cluster={"workers": 1, "shard": f"{index}/4", "in_process": index > 0})
        for index in range(4)
    ]
    assert sum(summary.prompts for summary in summaries) == PROMPTS
    assert [summary.bad_lines for summary in summaries] == [1, 0, 0, 0]
    folders = [output / f"shard-{index}-of-4" for index in range(4)]
    made = [data_bytes(folder) for folder in folders]
    assert [sorted(parts) for parts in made][1:] == [
        ["part-00001.parquet", "part-00005.parquet"],
        ["part-00002.parquet"],
        ["part-00003.parquet"],
    ]
    assert {name: content for parts in made for name, content in parts.items()} == expected
    for folder in folders:
        shutil.copytree(folder, output, dirs_exist_ok=True)
    whole = job(with_bad_line, output, cluster={"workers": 1})
    assert (whole.prompts, whole.prompts_resumed, whole.bad_lines) == (PROMPTS, PROMPTS, 1)
    assert data_bytes(output) == expected


def test_a_worker_that_dies_is_replaced_and_nothing_changes(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    summary = job(prompts_file, tmp_path / "out", die_once=tmp_path / "dead")
    assert (tmp_path / "dead").exists()
    assert any("is lost" in notice for notice in summary.notices)
    assert data_bytes(tmp_path / "out") == expected


def test_a_worker_that_hangs_is_replaced_and_nothing_changes(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    summary = job(
        prompts_file, tmp_path / "out", sleep_once=tmp_path / "asleep", cluster={"segment_timeout_s": 8.0}
    )
    notice = next(notice for notice in summary.notices if "is lost" in notice)
    assert "it says: micro-batch" in notice
    assert data_bytes(tmp_path / "out") == expected


def test_an_engine_that_cannot_be_built_ends_the_job_at_once(prompts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotStartError, match="CheckpointError: weights of another model"):
        job(prompts_file, tmp_path / "out", unusable="weights of another model", cluster={"workers": 1})
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_run_that_no_worker_fits_into_says_what_the_cluster_has(prompts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunFailedError, match=r"no worker was up for 2 s \(cluster.start_timeout_s\)"
    ) as caught:
        job(
            prompts_file,
            tmp_path / "out",
            cluster={"workers": 1, "cpus_per_worker": 64, "start_timeout_s": 2},
        )
    assert "the cluster has 1 node with 2 CPUs" in str(caught.value)


def test_prompts_that_fail_or_kill_workers_are_given_up_and_the_others_finish(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    summary = job(prompts_file, output, die_on="number 9", fail_on="number 3")
    assert (summary.prompts, summary.failed) == (PROMPTS - 2, 2)
    (killer,) = [json.loads(line) for line in (output / "failed/part-00002.jsonl").read_text().splitlines()]
    assert (killer["prompt"], killer["columns"]) == ("a red circle number 9", {"tag": 9})
    (failure,) = (output / "failed/part-00000.jsonl").read_text().splitlines()
    assert "text cannot be encoded: 'a red circle number 3'" in json.loads(failure)["errors"][-1]
    written = data_bytes(output)
    changed = {name for name in expected if written[name] != expected[name]}
    assert changed == {"part-00000.parquet", "part-00002.parquet"}


def test_an_interrupted_job_is_completed_by_the_same_command(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def terminate_after_the_first_part(state: JobProgress) -> None:
        if parts(output):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
        job(prompts_file, output, progress=terminate_after_the_first_part, pause_s=2.0)
    assert signal.getsignal(signal.SIGTERM) is before
    partial = data_bytes(output)
    assert 0 < len(partial) < len(expected)
    assert all(expected[name] == content for name, content in partial.items())
    begun = prompts_kept(output)

    with pytest.raises(OutputError, match="seed"):
        job(prompts_file, output, seed=6)
    summary = job(prompts_file, output)
    assert summary.prompts_resumed == begun + sum(
        pq.read_metadata(io.BytesIO(content)).num_rows for content in partial.values()
    )
    assert data_bytes(output) == expected

    again = job(prompts_file, output)
    assert (again.prompts, again.prompts_resumed, again.workers) == (PROMPTS, PROMPTS, 0)
    assert data_bytes(output) == expected
