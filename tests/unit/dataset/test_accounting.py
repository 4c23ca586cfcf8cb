"""What a run has cost: counted from its files, each committed prompt once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.manifests import manifest
from tests.support.plans import raw_plan, tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_model import TINY_SCHEDULE, TinyExtractor, TinyModel, TinyReward
from ttsvar_ray.api.saved import load
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.costs.plan_cost import image_costs, plan_cost, plan_record
from ttsvar_ray.dataset.accounting import PlanRecord
from ttsvar_ray.dataset.contents import read_cost
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import read_manifest
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.part_manifest import read_part_manifest
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import search_prompt
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.own_code import VISION_LANGUAGE
from ttsvar_ray.report.check import check_folder
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan

ADAPTIVE = compile_plan(
    scale_schedule=TINY_SCHEDULE,
    n=2,
    strategy="adaptive",
    selections=[
        SelectionSetting(operator=name, scale=scale) for name, scale in (("diverse-top-k", 4), ("top-k", 6))
    ],
    reject_below={4: -1.5, 6: -1.0},
    stop_at=-0.3,
    max_rounds=3,
    growth=(1, 2),
)


def outcomes(plan: Plan, count: int) -> list[PromptResult]:
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=plan,
        run_seed=3,
        settings=EngineSettings(micro_batch_rows=5),
    )
    found = [search_prompt(p, plan=plan, engine=engine, run_seed=3) for p in make_prompts(count)]
    assert all(isinstance(one, PromptResult) for one in found)
    return found  # type: ignore[return-value]


def written(layout: OutputLayout, plan: Plan, found: list[PromptResult]) -> PlanRecord:
    """Write outcomes as two parts."""
    record = plan_record(plan, None, selector_decode="full")
    settings = [f"strategy.name={plan.strategy}"]
    if plan.strategy == "adaptive":
        settings.append("strategy.stop_at=1")
    half = len(found) // 2
    open_output(layout, manifest(*settings, prompt_count=len(found), rows_per_chunk=half, plan=record))
    context = RowContext(
        model="tiny",
        strategy=plan.strategy,
        seed=3,
        reward_name="tiny",
        rounds=record.is_adaptive,
        plan=record,
        image_costs=(0.5, *(1.0 for _ in plan.segments)) if record.is_adaptive else (),
    )
    for chunk in range(2):
        rows = range(chunk * half, (chunk + 1) * half)
        some = [found[row] for row in rows]
        write_chunk(layout, chunk, rows=rows, finished=some, failed=[], context=context)
    return record


@pytest.mark.parametrize("plan", [raw_plan(3), tts_var_plan(), ADAPTIVE], ids=lambda plan: plan.strategy)
def test_what_ran_is_read_off_the_files_of_a_part(plan: Plan, tmp_path: Path) -> None:
    found = outcomes(plan, 12)
    if plan is ADAPTIVE:
        assert {one.stopped for one in found} == {"satisfied", "rounds", "abandoned"}
    layout = OutputLayout(tmp_path)
    record = written(layout, plan, found)
    ran = []
    for chunk in range(2):
        part = read_part_manifest(layout.manifest_part(chunk))
        assert part is not None
        ran.append(part.data.ran)
        some = found[chunk * 6 : chunk * 6 + 6]
        assert part.data.ran == (
            6,
            *(sum(each) for each in zip(*(one.trajectories for one in some), strict=True)),
        )
    spent = [0.5 + sum(one.trajectories) if record.is_adaptive else None for one in found]
    assert [result.cost_images for result in load(tmp_path)] == spent
    present = read_manifest(layout)
    assert present is not None and present.plan == record
    cost = read_cost(layout, present)
    assert cost is not None
    last = sum(each[-1] for each in ran)
    assert (cost.prompts, cost.kept) == (12, sum(len(one.images) for one in found))
    assert list(cost.trajectories.values()) == [sum(column) for column in zip(*ran, strict=True)][1:]
    assert list(cost.trajectories) == [
        f"{segment.first_scale}-{segment.last_scale}" for segment in plan.segments
    ]
    assert cost.decoded >= cost.scored >= last >= cost.kept
    assert cost.to_json()["flops"] is None, "nobody counted them"


def test_a_manifest_that_says_something_else_of_what_ran_is_found(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    written(layout, ADAPTIVE, outcomes(ADAPTIVE, 4))
    assert not [problem for problem in check_folder(layout).problems if "trajectories" in problem.what]
    file = tmp_path / "manifest" / "part-00001.json"
    told = json.loads(file.read_text())
    told["data"]["ran"][1] += 1
    file.write_text(json.dumps(told))
    (problem,) = [one for one in check_folder(layout).problems if "trajectories" in one.what]
    assert problem.file == str(file)


def test_a_part_that_does_not_say_is_told(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    record = written(layout, tts_var_plan(), outcomes(tts_var_plan(), 4))
    layout.manifest_part(0).delete()
    cost = read_cost(layout, manifest(plan=record))
    assert cost is not None and (cost.prompts, cost.uncounted_parts) == (2, 1)
    assert read_cost(layout, manifest()) is None


def test_costs_say_whose_code_they_are_without(tmp_path: Path) -> None:
    """Who reads what a run cost must not compare it with a run whose selectors are counted."""
    layout, plan = OutputLayout(tmp_path), tts_var_plan()
    written(layout, plan, outcomes(plan, 4))
    told = json.loads((tmp_path / "run.json").read_text())
    told["plan"] |= {"text_flops": 1e9, "image_flops": 1e9}
    own = {"reward.mine:Greenness": "d", f"reward.{VISION_LANGUAGE}": "d", "operator.mine:Cut": "d"}
    told["content"] |= {f"code.{name}": digest for name, digest in own.items()}
    (tmp_path / "run.json").write_text(json.dumps(told))
    own, words = "mine:Greenness and mine:Cut", "which nobody counts; the seconds have it"
    assert f"without   {own}, {words}" in CliRunner().invoke(app, ["status", str(tmp_path)]).stdout
    (found,) = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert found["cost"]["uncounted_code"] == own
    page = tmp_path / "page.html"
    made = CliRunner().invoke(app, ["report", str(tmp_path), "--to", str(page), "--pictures", "0"])
    assert (made.exit_code, f"{own}, {words}" in page.read_text()) == (0, True)
    card = CliRunner().invoke(app, ["push", str(tmp_path), "me/x", "--licence", "cc0-1.0", "--card-only"])
    assert f"| not counted | {own} |" in card.stdout


def networks(*settings: str) -> tuple[Plan, JobNetworks]:
    job = resolve(load_config(None, ["model.name=infinity-2b", *settings], needs_files=False))
    return job.plan, job_networks(job.config, job.description, job.plan, on_gpu=False)


@pytest.mark.parametrize("size", ["full", "selector"])
@pytest.mark.parametrize(("strategy", "n"), [("raw", 1), ("best-of-n", 2), ("tts-var", 2)])
def test_flops_are_those_of_the_plan(strategy: str, n: int, size: str) -> None:
    plan, costs = networks(f"strategy.name={strategy}", f"strategy.n={n}")
    record = plan_record(plan, costs, selector_decode=size)
    populations = [segment.population for segment in plan.segments]
    stages = [
        record.text_flops,
        *(
            population * (segment.transformer + segment.decodes + segment.selectors)
            for population, segment in zip(populations, record.segments, strict=True)
        ),
    ]
    assert sum(stages) == pytest.approx(plan_cost(plan, costs, selector_decode=size).flops)
    text, *each = image_costs(plan, costs, selector_decode=size)
    images = text + sum(count * one for count, one in zip(populations, each, strict=True))
    assert sum(stages) / record.image_flops == pytest.approx(images)
