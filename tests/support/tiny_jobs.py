"""Whole jobs of the tiny engine on the cluster that is connected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.plans import tts_var_plan
from tests.support.tiny_engine import TinyEngineBuilder, tiny_rewards
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.contents import committed_chunks
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.writer import partial_rows
from ttsvar_ray.job.preflight import Fact
from ttsvar_ray.job.runnable import JobParts
from ttsvar_ray.results import JobProgress, JobSummary
from ttsvar_ray.search.plan import Plan

PROMPTS = 22
ROWS_PER_PART = 4


def write_prompts(path: Path, count: int = PROMPTS) -> Path:
    """Write a prompt file whose texts and columns are numbered."""
    lines = [json.dumps({"prompt": f"a red circle number {i}", "tag": i}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def job(
    prompts: Path,
    output: Path,
    *,
    seed: int = 5,
    rows: int = 8,
    rows_per_part: int = ROWS_PER_PART,
    cluster: dict[str, Any] | None = None,
    verifiers: dict[str, Any] | None = None,
    progress: Callable[[JobProgress], None] = lambda state: None,
    tell: Callable[[Fact], None] = lambda fact: None,
    extend: bool = False,
    plan: Plan | None = None,
    **mischief: Any,
) -> JobSummary:
    """Run a job of two workers.

    Args:
        prompts, output: files.
        seed, rows: of the run and of a micro-batch.
        rows_per_part: of the output.
        cluster, verifiers: settings of the sections of these names.
        progress: called about once a second.
        tell: told what is known before it starts.
        extend: add prompts to a run that is there.
        plan: for the tiny model; None is the published one.
        mischief: what `TinyEngineBuilder` does wrong.
    """
    config = JobConfig.model_validate(
        {
            "prompts": {"path": str(prompts)},
            "output": {"path": str(output), "rows_per_part": rows_per_part},
            "cluster": {"workers": 2} | (cluster or {}),
            "verifiers": verifiers or {},
            "model": {"device": "cpu"},
            "seed": seed,
        }
    )
    builder = TinyEngineBuilder(seed=seed, rows=rows, plan=plan or tts_var_plan(), **mischief)
    parts = JobParts(
        plan=builder.plan,
        build_engine=builder,
        build_rewards=tiny_rewards,
        build_engine_around=builder,
    )
    return run_job(config, progress=progress, tell=tell, extend=extend, parts=parts)


def parts(output: Path) -> list[Path]:
    """Return the parts that are there, in order."""
    return sorted((output / "data").glob("part-*.parquet"))


def data_bytes(output: Path) -> dict[str, bytes]:
    """Return the bytes of every file that holds images."""
    return {path.name: path.read_bytes() for path in sorted((output / "data").iterdir())}


def prompts_kept(output: str | Path) -> int:
    """Return the finished prompts of parts that are not whole, which the next session goes on from."""
    layout = OutputLayout(output)
    return sum(map(len, partial_rows(layout, committed_chunks(layout)).values()))
