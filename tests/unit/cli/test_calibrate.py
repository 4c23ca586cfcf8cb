"""From a job to its pool, from a pool's rows to thresholds, from a plan file to a job again."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from ttsvar_ray.api.results import FoundImage, Result
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.calibrate import calibration_of, confirmed, costs_of, plan_text, pool_config, read_pool
from ttsvar_ray.cli.calibration_report import evidence
from ttsvar_ray.config.calibrated import read_calibration
from ttsvar_ray.config.load import load_config
from ttsvar_ray.engine.encode import ImageEncoder
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.job.simulation import simulated_plan
from ttsvar_ray.search.calibration import calibrate, consistency

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
        text = ("a photo of a red circle", "a photo of a blue ring")[number % 2]
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
    pool = replace(pool, quality=pool.final)

    each = calibrate(pool, budgets=[1.1, 1.5], max_rounds=4, image_costs=costs)
    found = each[1.5]
    assert found is not None
    lines = evidence(job, pool, found, budget=1.5, image_costs=costs)
    file = tmp_path / "plan.yaml"
    file.write_text(plan_text(found, lines), encoding="utf-8")

    assert "# held out         cost" in file.read_text(encoding="utf-8")
    config = load_config(None, [*FILES, "strategy.n=1"], plan=file)
    rounds = resolve(config).plan.rounds
    assert rounds.growth == (1,) * 4
    assert rounds.stop_at == pytest.approx(found.rounds.stop_at, rel=1e-5)
    assert [scale for scale, _ in rounds.reject_below] == [scale for scale, _ in found.rounds.reject_below]


def test_a_calibration_file_gives_thresholds_by_quantile_and_by_budget(
    job: ResolvedJob, tmp_path: Path
) -> None:
    pool = read_pool(job, results(job, 40))
    pool = replace(pool, quality=pool.final)
    each = calibrate(pool, budgets=[1.1, 1.5, 2.5], max_rounds=4, image_costs=costs_of(job))
    known = calibration_of(job.config, pool, each)
    file = tmp_path / "plan.calibration.json"
    file.write_text(known.to_json(), encoding="utf-8")
    assert read_calibration(file) == known

    adaptive = [*FILES, "strategy.name=adaptive", f"strategy.calibration={file}"]
    by_share = ["strategy.stop_at={quantile: 0.7}", "strategy.reject_below={6: {quantile: 0.3}}"]
    rounds = resolve(load_config(None, [*adaptive, *by_share])).plan.rounds
    assert rounds.stop_at == pytest.approx(np.quantile(pool.final, 0.7), abs=1e-5)
    assert rounds.reject_below[0][1] == pytest.approx(np.quantile(pool.rewards[:, :, 1], 0.3), abs=1e-5)

    config = load_config(None, [*adaptive, "strategy.budget=1.5"])
    assert config.strategy.stop_at == pytest.approx(each[1.5].rounds.stop_at, abs=1e-6)
    assert config.strategy.max_rounds == 4
    by_number = config.model_copy(
        update={"strategy": config.strategy.model_copy(update={"calibration": None})}
    )
    assert config.digest() == by_number.digest(), "thresholds count, not where they come from"
    simulated = simulated_plan(resolve(config))
    policy = known.policy_within(1.5)
    assert policy is not None
    assert simulated.rounds.stop_at == pytest.approx(1 - policy.satisfied)
    assert [least for _, least in simulated.rounds.reject_below] == list(policy.abandoned.values())

    damaged = file.with_name("damaged.json")
    damaged.write_text(re.sub(r'"cost": [\d.]+', '"cost": "much"', file.read_text()))
    for settings, message in (
        (["strategy.stop_at={quantile: 0.7}"], "only a calibration file says what that is"),
        ([*adaptive[3:], "strategy.budget=1.5", "strategy.stop_at=0"], "strategy.budget: chooses stop_at"),
        ([*adaptive[3:], "strategy.budget=0.99"], "no thresholds cost 0.99 images a prompt or less"),
        ([*adaptive[3:]], "nothing would be read from it"),
        ([*adaptive[3:], "strategy.stop_at={quantile: 7}"], "expected a share from 0 to 1, got 7"),
        (
            [*adaptive[3:], "strategy.stop_at=1", "strategy.reject_below={9: {quantile: 0.3}}"],
            "the calibration has scored scales 5, 6, 12, not 9",
        ),
        ([*adaptive[3:], *by_share, "reward.name=clip"], "made for reward.name auto, and this job has clip"),
        (
            [*adaptive[3:], *by_share, "reward.options={at: 2}"],
            "made for reward.options {}, and this job has {'at",
        ),
        (["strategy.name=adaptive", "strategy.calibration=nowhere.json"], "nowhere.json cannot be read"),
        (["strategy.name=adaptive", f"strategy.calibration={__file__}"], "cannot be read (it is not JSON)"),
        (
            ["strategy.name=adaptive", f"strategy.calibration={damaged}"],
            "policies[0].cost: expected a",
        ),
    ):
        with pytest.raises(ConfigurationError) as raised:
            load_config(None, [*FILES, *settings])
        assert message in str(raised.value), message


def test_the_evidence_says_how_scales_agree_and_which_replays_are_exact(job: ResolvedJob) -> None:
    pool = read_pool(job, results(job, 40))
    pool = replace(pool, quality=pool.final)
    lines = evidence(job, pool, None, budget=1.5, image_costs=costs_of(job))
    by_name = {line.split("   ")[0].strip().split("  ")[0]: line for line in lines}
    (last,) = [line for line in lines if line.startswith("   12  ")]
    assert "1.00 (1.00 to 1.00)" in last
    assert by_name["one cut at 6"].endswith("exact")
    assert "kept one twice" in by_name["resampling"]
    first, second, third = consistency(pool)
    assert (first.scale, second.scale, third.scale) == (5, 6, 12)
    assert 0.5 < first.correlation.mean() < third.correlation.mean() == pytest.approx(1.0)
    assert third.same_best.all()
    assert (third.picked == pool.final.max(axis=1)).all()


def test_what_is_no_plan_file_and_too_few_prompts_are_refused(job: ResolvedJob, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigurationError, match="expected one section, strategy, in a plan file, got seed"):
        load_config(None, FILES, plan=tmp_path / "job.yaml")
    with pytest.raises(ConfigurationError, match="at least 20 prompts"):
        read_pool(job, results(job, 3))


def test_prompts_that_the_checker_cannot_read_are_left_out_and_told(
    job: ResolvedJob, caplog: pytest.LogCaptureFixture
) -> None:
    found = results(job, 25)
    mixed = [
        dataclasses.replace(one, prompt="a cat on a mat") if at < 3 else one for at, one in enumerate(found)
    ]
    with caplog.at_level("WARNING"):
        assert len(read_pool(job, mixed).rewards) == 22
    assert "3 prompts are no captions, which the exact checker could judge" in caplog.text
    assert "22 prompts, 2 texts: what is held out rests on these few" in caplog.text
    with pytest.raises(ConfigurationError, match=r"got 0 .25 prompts are no captions"):
        read_pool(job, [dataclasses.replace(one, prompt="a cat on a mat") for one in found])


def test_a_reward_may_choose_on_prompts_that_no_checker_can_read(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [dataclasses.replace(one, prompt="a cat on a mat") for one in results(job, 25)]
    pool = read_pool(job, found, by_reward=True)
    assert pool.quality.shape[0] == 25
    assert (pool.quality == pool.final).all()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuning.txt").write_text("a cat on a mat\n" * 3)
    asked = ["calibrate", "--prompts", "tuning.txt", "--output", "pool"]
    for flags, told in (((), "got 0 (3 prompts are no captions"), (("--by-reward",), "got 3; 100 or more")):
        refused = CliRunner().invoke(app, [*asked, *flags])
        assert refused.exit_code == 2
        assert told in refused.stderr, refused.output
    assert "--by-reward" in CliRunner().invoke(app, asked).stderr, "which says how to go on"


def test_prompts_to_confirm_on_are_looked_at_before_the_pool_is_drawn(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuning.txt").write_text("a photo of a red circle\n" * 20)
    (tmp_path / "other.txt").write_text("a cat on a mat\n" * 3)
    asked = ["calibrate", "--prompts", "tuning.txt", "--output", "pool", "--confirm", "other.txt"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2
    assert "--confirm: other.txt: all prompts are no captions" in refused.stderr, refused.output
    assert not (tmp_path / "pool").exists()
    pool = read_pool(job, results(job, 25), by_reward=True)
    found = calibrate(pool, budgets=[1.5], max_rounds=4, image_costs=costs_of(job))[1.5]
    monkeypatch.setattr(
        "ttsvar_ray.api.saved.load", lambda _: [dataclasses.replace(results(job, 1)[0], images=())]
    )
    told = confirmed(job, pool, found, SimpleNamespace(uri="confirmed"), by_reward=True)
    assert told[-1] == "confirmed on no prompt: none has an image"
