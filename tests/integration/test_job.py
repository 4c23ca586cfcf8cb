"""Whole jobs on real Ray: the same bytes whatever the workers, their deaths and interruptions."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.plans import tts_var_plan
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster.job import JobParts, JobProgress, JobSummary, run_job
from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.errors import InterruptedRunError, OutputError, RunFailedError

pytestmark = pytest.mark.usefixtures("ray_cluster")

PROMPTS = 22
ROWS_PER_PART = 4


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"a red circle number {i}", "tag": i}) for i in range(PROMPTS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def job(
    prompts: Path,
    output: Path,
    *,
    workers: int = 2,
    spread: int | str = "auto",
    seed: int = 5,
    rows: int = 8,
    segment_timeout_s: float = 600.0,
    progress: Callable[[JobProgress], None] = lambda state: None,
    **mischief: Any,
) -> JobSummary:
    config = JobConfig.model_validate(
        {
            "prompts": {"path": str(prompts)},
            "output": {"path": str(output), "rows_per_part": ROWS_PER_PART},
            "cluster": {"workers": workers, "spread": spread, "segment_timeout_s": segment_timeout_s},
            "model": {"device": "cpu"},
            "seed": seed,
        }
    )
    builder = TinyEngineBuilder(seed=seed, rows=rows, **mischief)
    return run_job(config, progress=progress, parts=JobParts(plan=tts_var_plan(), build_engine=builder))


def data_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "data").iterdir())}


@pytest.fixture(scope="module")
def expected(
    ray_cluster: None, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("expected") / "out"
    summary = job(prompts_file, output, workers=1)
    assert (summary.prompts, summary.images, summary.failed, summary.workers) == (PROMPTS, PROMPTS, 0, 1)
    assert summary.images_per_second > 0
    table = pq.read_table(output / "data")
    assert table["prompt"].to_pylist() == [f"a red circle number {i}" for i in range(PROMPTS)]
    assert table["tag"].to_pylist() == list(range(PROMPTS))
    assert set(table["model"].to_pylist()) == {"tiny"}
    assert set(table["reward_name"].to_pylist()) == {"tiny-reward"}
    assert not (output / ".lock").exists()
    return data_bytes(output)


@pytest.mark.parametrize(("spread", "rows"), [(1, 8), (2, 5)])
def test_workers_spread_and_micro_batches_do_not_change_a_byte(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path, spread: int, rows: int
) -> None:
    summary = job(prompts_file, tmp_path / "out", spread=spread, rows=rows)
    assert data_bytes(tmp_path / "out") == expected
    assert summary.notices == ()


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
    summary = job(prompts_file, tmp_path / "out", sleep_once=tmp_path / "asleep", segment_timeout_s=15.0)
    notice = next(notice for notice in summary.notices if "is lost" in notice)
    assert "waited 15 s for micro-batch" in notice
    assert "it says: micro-batch" in notice
    assert data_bytes(tmp_path / "out") == expected


def test_an_engine_that_cannot_be_built_ends_the_job_at_once(prompts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="CheckpointError: weights of another model") as caught:
        job(prompts_file, tmp_path / "out", unusable="weights of another model")
    assert "0 of 6 parts are committed" in str(caught.value)
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_prompt_that_kills_workers_is_given_up_and_the_others_finish(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    summary = job(prompts_file, output, die_on="number 9")
    assert (summary.prompts, summary.failed) == (PROMPTS - 1, 1)
    (letter,) = [json.loads(line) for line in (output / "failed/part-00002.jsonl").read_text().splitlines()]
    assert (letter["prompt"], letter["columns"]) == ("a red circle number 9", {"tag": 9})
    written = data_bytes(output)
    assert {name for name in expected if written[name] != expected[name]} == {"part-00002.parquet"}


def test_a_failing_prompt_is_dead_lettered_with_its_reason(prompts_file: Path, tmp_path: Path) -> None:
    summary = job(prompts_file, tmp_path / "out", fail_on="number 3")
    assert (summary.prompts, summary.failed) == (PROMPTS - 1, 1)
    (letter,) = (tmp_path / "out/failed/part-00000.jsonl").read_text().splitlines()
    assert "text cannot be encoded: 'a red circle number 3'" in json.loads(letter)["errors"][-1]


def test_an_interrupted_job_is_completed_by_the_same_command(
    expected: dict[str, bytes], prompts_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def terminate_after_the_first_part(state: JobProgress) -> None:
        if list((output / "data").glob("part-*.parquet")):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
        job(prompts_file, output, progress=terminate_after_the_first_part)
    assert signal.getsignal(signal.SIGTERM) is before
    partial = data_bytes(output)
    assert 0 < len(partial) < len(expected)
    assert all(expected[name] == content for name, content in partial.items())

    with pytest.raises(OutputError, match="seed"):
        job(prompts_file, output, seed=6)
    summary = job(prompts_file, output)
    assert summary.prompts_resumed == sum(
        pq.read_metadata(io.BytesIO(content)).num_rows for content in partial.values()
    )
    assert data_bytes(output) == expected

    again = job(prompts_file, output)
    assert (again.prompts, again.prompts_resumed, again.workers) == (PROMPTS, PROMPTS, 0)
    assert data_bytes(output) == expected


def test_images_too_large_for_a_reply_arrive_whole(prompts_file: Path, tmp_path: Path) -> None:
    job(prompts_file, tmp_path / "out", noisy=True)
    images = pq.read_table(tmp_path / "out" / "data")["image"].to_pylist()
    assert len(images) == PROMPTS
    assert min(len(image["bytes"]) for image in images) > 90_000
    shapes = {np.asarray(Image.open(io.BytesIO(image["bytes"]))).shape for image in images}
    assert shapes == {(192, 192, 3)}
