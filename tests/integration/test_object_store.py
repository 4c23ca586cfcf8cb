"""Whole jobs on real Ray that read from and write to an S3-compatible server."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.plans import tts_var_plan
from tests.support.s3_server import S3Server
from tests.support.tiny_engine import TinyEngineBuilder
from tests.support.tiny_jobs import prompts_kept
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import InterruptedRunError, OutputError
from ttsvar_ray.job.runnable import JobParts
from ttsvar_ray.job.status import read_status
from ttsvar_ray.results import JobProgress, JobSummary

pytestmark = pytest.mark.usefixtures("ray_cluster")

PROMPTS = 30
ROWS_PER_PART = 4
LINES = "".join(json.dumps({"prompt": f"a red circle number {i}", "tag": i}) + "\n" for i in range(PROMPTS))


def job(
    prompts: str,
    output: str,
    *,
    progress: Callable[[JobProgress], None] = lambda state: None,
    seed: int = 5,
    retry_failed: bool = False,
    force_new: bool = False,
    in_process: bool = False,
    **mischief: Any,
) -> JobSummary:
    config = JobConfig.model_validate(
        {
            "prompts": {"path": prompts},
            "output": {"path": output, "rows_per_part": ROWS_PER_PART},
            "cluster": {"workers": 1, "in_process": in_process},
            "model": {"device": "cpu"},
            "seed": seed,
        }
    )
    builder = TinyEngineBuilder(seed=seed, rows=8, **mischief)
    return run_job(
        config,
        progress=progress,
        parts=JobParts(plan=tts_var_plan(), build_engine=builder),
        retry_failed=retry_failed,
        force_new=force_new,
    )


def data_files(output: str) -> dict[str, bytes]:
    folder = OutputLayout(output).data_folder
    return {name: (folder / name).read_bytes() for name in folder.names()}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "p.jsonl").write_text(LINES)
    summary = job(str(folder / "p.jsonl"), str(folder / "out"), in_process=True)
    assert (summary.prompts, summary.failed) == (PROMPTS, 0)
    return str(folder / "p.jsonl"), data_files(str(folder / "out"))


def test_a_job_between_buckets_that_is_stopped_and_resumed_equals_the_local_one(
    local: tuple[str, dict[str, bytes]], s3: S3Server
) -> None:
    """The keys reach the sink, whose process was started before they were in the environment."""
    bucket = s3.new_bucket()
    s3.client().put_object(Bucket=bucket, Key="in/p.jsonl", Body=LINES.encode())
    prompts, output = f"s3://{bucket}/in/p.jsonl", f"s3://{bucket}/runs/one"
    refused: list[str] = []

    def stop_after_the_first_part(state: JobProgress) -> None:
        if not any(key.startswith("runs/one/data/") for key in s3.keys(bucket)):
            return
        if not refused:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(OutputError, match=f"{output}: another run is writing here") as caught:
                job(prompts, output)
            refused.append(str(caught.value))

    with pytest.raises(InterruptedRunError, match=f"parts are committed in {output}"):
        job(prompts, output, progress=stop_after_the_first_part)
    assert refused
    partial = data_files(output)
    assert 0 < len(partial) < len(local[1])
    assert "runs/one/.lock" not in s3.keys(bucket)
    (stopped,) = read_status(output)
    assert (stopped.state, stopped.parts, stopped.parts_total) == ("stopped", len(partial), 8)
    assert "SIGTERM" in stopped.reason

    begun = prompts_kept(output)
    with pytest.raises(OutputError, match=r"seed: 5 in the folder, 6 now(.|\n)*--force-new"):
        job(prompts, output, seed=6)
    summary = job(prompts, output)
    assert (summary.output, summary.prompts) == (output, PROMPTS)
    assert summary.prompts_resumed == ROWS_PER_PART * len(partial) + begun
    assert data_files(output) == local[1]
    assert not [key for key in s3.keys(bucket) if key.endswith((".tmp", ".lock"))]
    run_json = OutputLayout(output).run_file.read_text()
    assert json.loads(run_json)["config"]["output"]["path"] == output
    assert s3.secret_key not in run_json


def test_prompts_that_failed_run_again_and_the_data_is_as_if_they_had_not(
    local: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    prompts, expected = local
    output = str(tmp_path / "out")
    summary = job(prompts, output, fail_on="number 1", in_process=True)
    lost = [i for i in range(PROMPTS) if str(i).startswith("1")]
    assert (summary.prompts, summary.failed) == (PROMPTS - len(lost), len(lost))

    # The same command without the flag leaves everything as it is.
    before = data_files(output)
    again = job(prompts, output)
    assert (again.workers, again.failed) == (0, len(lost))
    assert data_files(output) == before

    summary = job(prompts, output, retry_failed=True)
    assert (summary.failed, summary.prompts, summary.prompts_resumed) == (0, PROMPTS, PROMPTS - len(lost))
    assert data_files(output) == expected
    assert not list((tmp_path / "out/failed").iterdir())
    trace = pq.read_table(tmp_path / "out/trace")["row"].to_pylist()
    assert sorted(set(trace)) == list(range(PROMPTS))
    assert job(prompts, output, retry_failed=True).workers == 0


def test_force_new_writes_beside_another_run_and_goes_on_there(
    local: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    prompts, expected = local
    output = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    shutil.copytree(Path(prompts).parent / "out", f"{output}-2")
    summary = job(prompts, output, force_new=True)
    assert (summary.output, summary.prompts_resumed) == (f"{output}-2", PROMPTS)
    assert data_files(f"{output}-2") == expected
