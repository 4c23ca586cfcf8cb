"""Operators from the settings, on Ray: built-in ones, a user's own, one that fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from tests.support.tiny_jobs import job, write_prompts
from tests.support.tiny_model import TINY_SCHEDULE
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.engine.local import search_prompt
from ttsvar_ray.errors import OutputError
from ttsvar_ray.job import prepare
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan
from ttsvar_ray.types import Prompt

ROOT = Path(__file__).parents[2]
OWN = "docs.examples.own_operator:Tournament"
TEXTS = ("a red ring", "two blue squares")
SELECTIONS = [
    {"scale": 2, "operator": "cluster"},
    {"scale": 4, "operator": OWN, "options": {"rivals": 3}},
    {"scale": 5, "operator": "diverse-top-k"},
    {"scale": 6, "operator": "likelihood"},
    {"scale": 7, "operator": "top-k", "options": {"potential": "diff"}},
]


def config_for(folder: Path) -> JobConfig:
    (folder / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
    return JobConfig.model_validate(
        {
            "model": {"name": "shapes", "device": "cpu"},
            "prompts": {"path": str(folder / "prompts.txt")},
            "output": {"path": str(folder / "out"), "keep": "all"},
            "strategy": {"selections": SELECTIONS, "n": 2, "final_mean_of": [9, 12]},
            "cluster": {"workers": 2, "spread": 2},
            "seed": 11,
        }
    )


def test_operators_of_the_settings_give_on_ray_what_they_give_in_this_process(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path)
    summary = run_job(config)
    assert (summary.prompts, summary.failed) == (2, 0)
    images = pq.read_table(tmp_path / "out" / "data").to_pylist()
    trace = pq.read_table(tmp_path / "out" / "trace").to_pylist()
    assert [row["kind"] for row in trace] == 2 * [
        "cluster",
        "tournament",
        "diverse-top-k",
        "likelihood",
        "top-k",
    ]

    job = resolve(config)
    engine = build_engine(job)
    for row, text in enumerate(TEXTS):
        prompt_id = images[[image["row"] for image in images].index(row)]["prompt_id"]
        prompt = Prompt(row=row, prompt_id=prompt_id, ordinal=0, text=text)
        alone = search_prompt(prompt, plan=job.plan, engine=engine, run_seed=config.seed)
        assert isinstance(alone, PromptResult)
        kept = [image for image in images if image["row"] == row]
        assert [tuple(image["lineage"]) for image in kept] == [image.lineage for image in alone.images]
        assert [image["image"]["bytes"] for image in kept] == [image.image.payload for image in alone.images]
        written = [selection for selection in trace if selection["row"] == row]
        for selection, record in zip(written, alone.trace, strict=True):
            assert tuple(selection["ancestor_index"]) == record.ancestor_index
            numbers = {entry["name"]: tuple(entry["values"]) for entry in selection["numbers"]}
            assert numbers == {name: v for name, v in record.numbers.items() if name != "labels"}
    assert set(numbers) == {"potential"}

    content = json.loads((tmp_path / "out" / "run.json").read_text())["content"]
    source = (ROOT / "docs" / "examples" / "own_operator.py").read_bytes()
    assert content[f"code.operator.{OWN}"] == hashlib.sha256(source).hexdigest()
    monkeypatch.setattr(prepare, "own_sources", lambda operators: {f"code.operator.{OWN}": "changed"})
    with pytest.raises(OutputError, match=rf"code.operator.{OWN}: .* in the folder, .changed. now"):
        run_job(config)


def test_an_operator_that_chooses_what_cannot_be_costs_its_prompts_and_says_so(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    own = SelectionSetting(scale=4, operator="tests.support.own_operators:TooFew")
    plan = compile_plan(scale_schedule=TINY_SCHEDULE, n=2, selections=[own])
    prompts, cluster = write_prompts(tmp_path / "prompts.jsonl", 2), {"workers": 1, "max_failure_rate": 1.0}
    summary = job(prompts, tmp_path / "out", plan=plan, cluster=cluster)
    assert (summary.prompts, summary.failed) == (0, 2)
    (letters,) = (tmp_path / "out" / "failed").glob("part-*.jsonl")
    said = "operator too-few at scale 4: ancestor_index: expected 2 whole numbers, got int64 of shape (1,)"
    assert all(said in line for line in letters.read_text().splitlines())
