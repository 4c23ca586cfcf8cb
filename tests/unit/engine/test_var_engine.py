"""A VAR directory from a job's settings to images: the whole search, without ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.var import load_case, save_var
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.var.config import PRESETS
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt

FILES = ("prompts.path=unread.txt", "output.path=unwritten")


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    save_var(
        tmp_path / "model",
        model=load_case("shared_modulation").model,
        dtype=torch.float32,
        plan={"batch_schedule": [6, 4, 4, 2, 2], "cluster_scales": [], "resample_scales": [1, 3]},
        reward={"name": "constant"},
    )
    return [*FILES, f"model.name={tmp_path / 'model'}", "model.device=cpu", "output.keep=all", "seed=4"]


def test_class_names_become_images_and_other_prompts_one_failure_each(job: list[str]) -> None:
    config = load_config(None, job)
    job = resolve(config, needs_parts=True)
    plan = job.plan
    texts = ["thing 2", "6", "a poem about things"]
    prompts = [Prompt(row=row, prompt_id=f"p{row}", ordinal=0, text=text) for row, text in enumerate(texts)]
    outcomes = list(
        run_local(
            prompts,
            plan=plan,
            engines=[build_engine(job)],
            run_seed=config.seed,
            settings=CoordinatorSettings(keep="all"),
        )
    )
    done = {o.prompt.text: o for o in outcomes if isinstance(o, PromptResult)}
    failed = [o for o in outcomes if isinstance(o, PromptFailure)]
    assert set(done) == {"thing 2", "6"}
    assert len(done["6"].images) == 2
    assert done["6"].images[0].image.width == 96
    assert len(done["6"].trace) == 2
    assert [failure.prompt.text for failure in failed] == ["a poem about things"]
    assert "expected the name or the number of one of 7 classes" in failed[0].errors[0]


def test_top_k_is_refused_before_weights_are_touched_where_nothing_reads_it(job: list[str]) -> None:
    config = load_config(None, [*FILES, "model.name=shapes", "sampling.top_k=5"])
    with pytest.raises(ConfigurationError, match=r"sampling\.top_k: .*remove it"):
        resolve(config, needs_parts=True)
    config = load_config(None, [*job, "sampling.top_k=5"])
    resolve(config, needs_parts=True)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_plans_of_published_models_compile(name: str) -> None:
    plan = resolve(load_config(None, [*FILES, f"model.name={name}", "strategy.n=2"])).plan
    assert [segment.population for segment in plan.segments] == [16, 12, 8, 4, 2]
