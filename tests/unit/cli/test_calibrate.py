"""From a job to its pool, from a pool's rows to thresholds, from a plan file to a job again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ttsvar_ray.api.results import FoundImage, Result
from ttsvar_ray.cli.calibrate import costs_of, evidence, plan_text, pool_config, read_pool
from ttsvar_ray.config import load_config
from ttsvar_ray.engine.encode import ImageEncoder
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.search.calibration import calibrate

FILES = ["prompts.path=unread.txt", "output.path=unwritten", "model.device=cpu"]


@pytest.fixture(scope="module")
def job() -> ResolvedJob:
    config = load_config(None, [*FILES, "strategy.name=tts-var", "strategy.n=4"])
    return resolve(pool_config(config, 4, "5,6"))


def results(job: ResolvedJob, prompts: int) -> list[Result]:
    """Return rows as `load` does, best reward first, of images that show nothing."""
    rng = np.random.default_rng(0)
    encoder = ImageEncoder(image_format="png", quality=95, threads=1)
    nothing = encoder.encode(np.zeros((48, 48, 3), dtype=np.uint8))
    found = []
    for number in range(prompts):
        histories = rng.normal(size=(4, 1)) + 0.3 * rng.normal(size=(4, len(job.plan.scored_scales)))
        order = np.argsort(-histories[:, -1])
        images = tuple(
            FoundImage(
                rank=rank,
                reward=float(histories[slot, -1]),
                reward_history=tuple(histories[slot].tolist()),
                lineage=(int(slot),) * len(job.plan.segments),
                bits=(),
                encoded=nothing.payload,
                image_format="png",
            )
            for rank, slot in enumerate(order.tolist())
        )
        text = "a photo of a red circle"
        found.append(Result(prompt=text, prompt_id=f"p{number}", images=images, tree=None))
    return found


def test_the_pool_is_a_job_that_drops_nothing_and_scores_some_scales(job: ResolvedJob) -> None:
    assert set(job.plan.survivors_after) == {4}
    assert job.plan.scored_scales == (5, 6, 12)
    assert job.config.output.keep == "all"
    with pytest.raises(ConfigurationError, match="--scales: expected numbers"):
        pool_config(job.config, 4, "five")


def test_a_plan_file_is_chosen_explained_and_read_again(job: ResolvedJob, tmp_path: Path) -> None:
    pool = read_pool(job, results(job, 40))
    assert pool.rewards.shape == (40, 4, 3)
    assert not pool.quality.any(), "the checker judges the images"
    costs = costs_of(job)
    assert sum(costs(())) == pytest.approx(1.0)
    assert sum(costs((6,))) > 1.0, "a decode and a score at the scale where a round may be abandoned"
    pool = type(pool)(scales=pool.scales, rewards=pool.rewards, quality=pool.final)

    found = calibrate(pool, budget=1.5, max_rounds=4, image_costs=costs)
    assert found is not None
    lines = evidence(job, pool, found, budget=1.5, image_costs=costs)
    file = tmp_path / "plan.yaml"
    file.write_text(plan_text(found, lines), encoding="utf-8")

    assert "# held out   cost" in file.read_text(encoding="utf-8")
    config = load_config(None, [*FILES, "strategy.n=1"], plan=file)
    rounds = resolve(config).plan.rounds
    assert rounds.growth == (1,) * 4
    assert rounds.stop_at == pytest.approx(found.rounds.stop_at, rel=1e-5)
    assert [scale for scale, _ in rounds.reject_below] == [scale for scale, _ in found.rounds.reject_below]


def test_what_is_no_plan_file_and_too_few_prompts_are_refused(job: ResolvedJob, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigurationError, match="expected one section, strategy, in a plan file, got seed"):
        load_config(None, FILES, plan=tmp_path / "job.yaml")
    with pytest.raises(ConfigurationError, match="at least 20 prompts"):
        read_pool(job, results(job, 3))
