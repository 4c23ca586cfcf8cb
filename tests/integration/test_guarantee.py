"""The guarantee on the built-in model and real Ray: the same bytes however the work is spread.

    python -m pytest -m slow tests/integration/test_guarantee.py

Nine runs hold every pair of workers 1, 2, 4, spread 1, 2, 4 and micro-batch 1, 3, 8 (a Latin square), then a
run whose workers are killed, and one that is stopped and resumed: of the published plan, and of an adaptive
search whose prompts have one to four rounds. Some minutes on two cores.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.errors import InterruptedRunError
from ttsvar_ray.results import JobProgress, JobSummary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROMPTS = 12
STRATEGIES: dict[str, dict[str, Any]] = {
    "published": {"name": "tts-var", "plan": "published"},
    "adaptive": {
        "name": "adaptive",
        "max_rounds": 4,
        "growth": [1, 2],
        "reject_below": {"6": 0.9},
        "stop_at": 1.05,
    },
}
SQUARE = [
    (workers, spread, rows)
    for i, workers in enumerate((1, 2, 4))
    for j, spread in enumerate((1, 2, 4))
    for k, rows in enumerate((1, 3, 8))
    if (i + j) % 3 == k
]
"""(workers, spread, micro-batch): every pair of values once."""


@pytest.fixture(scope="module", params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    shapes, colours = ("circle", "star", "cross", "ring"), ("red", "green", "blue")
    lines = [f"a {colours[i % 3]} {shapes[i % 4]}" for i in range(PROMPTS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _job(
    prompts: Path,
    output: Path,
    strategy: str,
    *,
    workers: int,
    spread: int,
    rows: int,
    progress: Callable[[JobProgress], None] = lambda state: None,
) -> JobSummary:
    config = JobConfig.model_validate(
        {
            "prompts": {"path": str(prompts)},
            "output": {"path": str(output), "rows_per_part": 3, "keep": "all", "trace": "bits"},
            # More workers than cores: half a core's worth of Ray's resources each.
            "cluster": {"workers": workers, "spread": spread, "cpus_per_worker": 0.5, "max_attempts": 20},
            "engine": {"micro_batch_rows": rows},
            "strategy": STRATEGIES[strategy],
            "model": {"device": "cpu"},
            "seed": 17,
        }
    )
    return run_job(config, progress=progress)


def _content(output: Path) -> list[dict[str, str]]:
    """Return all images, then all selections with the bits of their populations, without what workers did.

    Values are written out, as NaN equals nothing.
    """
    rows: list[dict[str, Any]] = pq.read_table(output / "data").to_pylist()
    trace = pq.read_table(output / "trace").drop_columns(["placement", "moved", "reason"])
    assert all(trace["bits"].to_pylist())
    return [{name: repr(value) for name, value in row.items()} for row in rows + trace.to_pylist()]


@pytest.fixture(scope="module")
def expected(
    ray_cluster: Cluster, prompts: Path, strategy: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str]]:
    output = tmp_path_factory.mktemp("expected") / "out"
    _job(prompts, output, strategy, workers=1, spread=1, rows=32)
    content = _content(output)
    assert len({row["prompt_id"] for row in content}) == PROMPTS
    if strategy == "adaptive":
        assert len({row["rounds"] for row in content if "rounds" in row}) > 1, (
            "prompts differ in what they need"
        )
    return content


def test_the_square_has_every_pair() -> None:
    assert len(SQUARE) == 9
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert len({(run[a], run[b]) for run in SQUARE}) == 9


@pytest.mark.parametrize(("workers", "spread", "rows"), SQUARE)
def test_workers_spread_and_micro_batch_change_nothing(
    expected: list[dict[str, str]],
    prompts: Path,
    strategy: str,
    tmp_path: Path,
    workers: int,
    spread: int,
    rows: int,
) -> None:
    _job(prompts, tmp_path / "out", strategy, workers=workers, spread=spread, rows=rows)
    assert _content(tmp_path / "out") == expected


def test_kills_change_nothing(
    ray_cluster: Cluster, expected: list[dict[str, str]], prompts: Path, strategy: str, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_a_worker(state: JobProgress) -> None:
        if len(killed) < 3 and state.prompts_done > 2 * len(killed):
            raylet = ray_cluster.head_node.all_processes["raylet"][0].process.pid
            for process in psutil.Process(raylet).children(recursive=True):
                if "SegmentWorker.run_batch" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return

    summary = _job(prompts, tmp_path / "out", strategy, workers=2, spread=2, rows=3, progress=kill_a_worker)
    assert len(killed) == 3
    assert len(summary.notices) >= 3
    assert _content(tmp_path / "out") == expected


def test_stopping_and_resuming_changes_nothing(
    expected: list[dict[str, str]], prompts: Path, strategy: str, tmp_path: Path
) -> None:
    def stop_after_a_part(state: JobProgress) -> None:
        if any((tmp_path / "out" / "data").glob("part-*")):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        _job(prompts, tmp_path / "out", strategy, workers=2, spread=1, rows=1, progress=stop_after_a_part)
    summary = _job(prompts, tmp_path / "out", strategy, workers=1, spread=1, rows=3)
    assert 0 < summary.prompts_resumed < PROMPTS
    assert _content(tmp_path / "out") == expected
