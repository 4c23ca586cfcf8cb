"""From settings to plans and parts: whose value wins, and what is refused before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ttsvar_ray.config import sections as config_sections
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.job.build import build_ensemble
from ttsvar_ray.job.resolved import coordinator_settings, plan_note, resolve
from ttsvar_ray.models.registry import model_path, resolve_device
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.operators.top_k import TopK
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.types import PotentialKind, RewardCombination

OWN_PLAN = {
    "batch_schedule": [6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 1, 1],
    "cluster_scales": [4],
    "resample_scales": [8, 11],
    "potential": "max",
    "lambda": 3.0,
}


def model_directory(folder: Path, **changes: Any) -> str:
    """Return a directory with the built-in model's files, its config.json changed."""
    for file in model_path("shapes").iterdir():
        if not (folder / file.name).exists() and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((model_path("shapes") / "config.json").read_text())
    config.update({"plan": OWN_PLAN, **changes})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def config_for(model: str, **sections: Any) -> JobConfig:
    return JobConfig.model_validate({"model": {"name": model, "device": "cpu"}, **sections})


def selections(config: JobConfig) -> list[tuple[int, str]]:
    return [(s.scale_index, s.operator.name) for s in resolve(config).plan.selections]


def test_the_models_own_plan_is_the_default(tmp_path: Path) -> None:
    plan = resolve(config_for(model_directory(tmp_path), strategy={"n": 2})).plan
    assert plan.survivors_after == tuple(2 * k for k in OWN_PLAN["batch_schedule"])  # type: ignore[attr-defined]
    assert [s.scale_index for s in plan.selections] == [4, 8, 11]
    assert plan.selections[-1].operator == Resample(potential=PotentialKind.MAX, lambda_=3.0)


def test_the_published_plan_ignores_the_models_own(tmp_path: Path) -> None:
    plan = resolve(config_for(model_directory(tmp_path), strategy={"plan": "published"})).plan
    assert plan.survivors_after == (8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1)
    assert [s.scale_index for s in plan.selections] == [2, 5, 6, 9]
    assert plan.selections[-1].operator == Resample(potential=PotentialKind.VALUE, lambda_=10.0)


def test_the_job_wins_over_the_model(tmp_path: Path) -> None:
    strategy = {"lambda": 1.5, "resample_scales": [9], "potential": "value"}
    plan = resolve(config_for(model_directory(tmp_path), strategy=strategy)).plan
    assert plan.selections[-1].operator == Resample(lambda_=1.5)
    assert [s.scale_index for s in plan.selections] == [4, 9]
    assert plan.survivors_after[0] == 8, "the model's batch schedule belongs to its own selections"


def test_a_job_without_resampling_does_not_take_the_models_lambda(tmp_path: Path) -> None:
    without = {"cluster_scales": [4], "resample_scales": []}
    assert selections(config_for(model_directory(tmp_path), strategy=without)) == [(4, "cluster")]
    with pytest.raises(ConfigurationError, match=r"lambda: this tts-var plan would not read it, got 3"):
        resolve(config_for(model_directory(tmp_path), strategy={**without, "lambda": 3}))
    with pytest.raises(ConfigurationError, match=r"scheme: this .* would not read it, got systematic"):
        resolve(config_for(model_directory(tmp_path), strategy={**without, "scheme": "systematic"}))


@pytest.mark.parametrize(
    ("name", "n", "scales"), [("raw", 1, []), ("best-of-n", 4, []), ("resampling", 4, [8, 11])]
)
def test_other_strategies_take_what_they_read(tmp_path: Path, name: str, n: int, scales: list[int]) -> None:
    config = config_for(model_directory(tmp_path), strategy={"name": name, "n": n})
    assert [scale for scale, _ in selections(config)] == scales
    assert resolve(config).plan.survivors_after == (n,) * 13
    assert resolve(config).extractor is None


def test_problems_of_the_plan_and_of_the_parts_come_together(tmp_path: Path) -> None:
    config = config_for(
        model_directory(tmp_path),
        strategy={"batch_schedule": [1, 2]},
        reward={"name": "beauty"},
        engine={"deterministic": True},
        cluster={"batch_tokens": 100},
    )
    with pytest.raises(ConfigurationError) as caught:
        resolve(config, needs_parts=True)
    settings = [problem.partition(":")[0] for problem in caught.value.problems]
    assert settings == ["strategy.batch_schedule", "reward.name", "cluster.batch_tokens"]


def test_problems_name_the_setting(tmp_path: Path) -> None:
    config = config_for(model_directory(tmp_path), strategy={"batch_schedule": [1, 2]})
    with pytest.raises(ConfigurationError, match=r"strategy\.batch_schedule"):
        resolve(config)


def test_an_unknown_key_in_the_models_plan_is_refused(tmp_path: Path) -> None:
    model = model_directory(tmp_path, plan={"lamda": 3})
    with pytest.raises(CheckpointError, match="lamda"):
        resolve(config_for(model))


def test_all_problems_of_the_parts_come_at_once(tmp_path: Path) -> None:
    config = config_for(
        model_directory(tmp_path),
        reward={"name": "beauty"},
        features={"extractor": "pca", "backbone": str(tmp_path / "absent")},
        sampling={"guidance": [1.0, 2.0]},
    )
    with pytest.raises(ConfigurationError) as caught:
        resolve(config, needs_parts=True)
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "reward.name" in problems and "'beauty'" in problems
    assert "features.backbone" in problems
    assert "guidance" in problems


def test_a_model_without_reward_needs_one_named(tmp_path: Path) -> None:
    config = config_for(model_directory(tmp_path, reward={}))
    with pytest.raises(ConfigurationError, match=r"reward\.name.*brings no reward"):
        resolve(config, needs_parts=True)
    named = config_for(model_directory(tmp_path, reward={}), reward={"name": "constant"})
    resolve(named, needs_parts=True)


@pytest.mark.parametrize(("extractor", "file"), [("inception", "inception_v3_google"), ("pca", "DINOv2")])
def test_an_extractor_without_files_is_refused_before_anything_is_loaded(
    tmp_path: Path, extractor: str, file: str
) -> None:
    # The built-in model's backbone has patches; InceptionV3 is another file.
    model = "shapes" if extractor == "inception" else model_directory(tmp_path, features={})
    config = config_for(model, strategy={"plan": "published"}, features={"extractor": extractor})
    with pytest.raises(ConfigurationError, match=rf"features\.backbone: expected .*{file}"):
        resolve(config, needs_parts=True)


def test_a_joint_extractor_is_part_of_the_plan() -> None:
    published = {"strategy": {"plan": "published"}}
    assert resolve(config_for("shapes", **published)).plan.joint_component is None
    joint = {"extractor": "pca_all", "pca_sign": "published"}
    plan = resolve(config_for("shapes", **published, features=joint)).plan
    assert plan.joint_component is ComponentSign.PUBLISHED


def test_a_sign_that_no_extractor_would_read_is_refused() -> None:
    strategy = {"plan": "published"}
    for extractor in ("pca", "pca_all"):
        features = {"extractor": extractor, "pca_sign": "published"}
        resolve(config_for("shapes", strategy=strategy, features=features), needs_parts=True)
    features = {"extractor": "pool", "pca_sign": "published"}
    with pytest.raises(ConfigurationError, match=r"features\.pca_sign: extractor 'pool' .*remove it"):
        resolve(config_for("shapes", strategy=strategy, features=features), needs_parts=True)


def ensemble(**reward: Any) -> dict[str, Any]:
    return {"name": "ensemble", "members": {"shapes": None, "constant": None}, **reward}


def test_an_ensemble_is_part_of_the_plan() -> None:
    assert resolve(config_for("shapes")).plan.combination is None
    config = config_for("shapes", reward=ensemble())
    plan = resolve(config, needs_parts=True).plan
    assert (plan.reward_members, plan.combination) == (2, RewardCombination.SOFTMAX)
    rescaled = resolve(config_for("shapes", reward=ensemble(combine="z-score"))).plan
    assert rescaled.combination is RewardCombination.Z_SCORE


def test_an_ensemble_is_the_same_in_any_order() -> None:
    config = config_for("shapes", reward=ensemble())
    turned = config_for("shapes", reward=ensemble(members={"constant": None, "shapes": None}))
    for each in (config, turned):
        assert [part.name for part in resolve(each).rewards] == ["constant", "shapes"]
    assert config.digest() == turned.digest()
    assert config.digest() != config_for("shapes", reward=ensemble(combine="z-score")).digest()


def test_all_problems_of_an_ensembles_members_come_at_once(tmp_path: Path) -> None:
    members = {"beauty": None, "hps-v2.1": str(tmp_path / "nothing"), "shapes": None}
    config = config_for("shapes", reward=ensemble(members=members))
    with pytest.raises(ConfigurationError) as caught:
        resolve(config, needs_parts=True)
    first, second = caught.value.problems
    assert "reward.members: expected rewards among image-reward" in first and "got 'beauty'" in first
    assert second.startswith("reward.members: hps-v2.1: expected the files of the weights")


def test_an_ensemble_has_the_members_and_says_how_they_are_combined() -> None:
    config = config_for("shapes", reward=ensemble(combine="z-score"))
    built = build_ensemble(resolve(config), device="cpu")
    assert list(built.names) == ["constant", "shapes"]
    assert built.name == "z-score(constant, shapes)"
    alone = build_ensemble(resolve(config_for("shapes")), device="cpu")
    assert alone.name == "shapes"


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "something.py")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve(config_for(str(tmp_path)))


def test_a_stand_in_reward_is_refused_where_gains_are_weighed() -> None:
    diff = {"plan": "published", "potential": "diff"}
    config = config_for("shapes", strategy=diff, reward={"nonfinite": "worst"})
    with pytest.raises(ConfigurationError, match=r"reward\.nonfinite: expected 'error'"):
        resolve(config, needs_parts=True)
    resolve(config_for("shapes", reward={"nonfinite": "worst"}), needs_parts=True)


def test_every_policy_of_a_job_reaches_the_coordinator() -> None:
    config = JobConfig.model_validate(
        {
            "cluster": {
                "spread": 3,
                "max_attempts": 5,
                "batch_tokens": 9000,
                "segment_timeout_s": 12.0,
            },
            "output": {"keep": "all", "path": "out"},
            "prompts": {"path": "prompts.txt"},
        }
    )
    settings = coordinator_settings(config)
    assert (settings.spread, settings.max_attempts, settings.keep) == (3, 5, "all")
    assert settings.batch_tokens == 9000
    assert (settings.deadline_floor_seconds, settings.deadline_ceiling_seconds) == (12.0, 12.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ""),
        (["strategy.resample_scales=[6,9]"], "populations 8-8-8-8-8-8-8-1-1-1-1-1-1 are 8-8-8-6-"),
        (["strategy.resample_scales=[6]"], "(top-k at 6) are (cluster at 2, 5; resample at 6)"),
        (["strategy.n=2", "strategy.batch_schedule=[4,4,4,4,4,4,1,1,1,1,1,1,1]"], ""),
        (
            [
                "strategy.batch_schedule=[3,3,3,3,3,2,2,2,1,1,1,1,1]",
                "strategy.cluster_scales=[5]",
                "strategy.resample_scales=[8]",
            ],
            "",
        ),
        (["features.extractor=pool"], "no selection of this plan reads features: features.extractor will"),
        (["features.extractor=pool", "strategy.plan=published"], ""),
        (
            ["reward.name=tests.support.tiny_model:TinyReward"],
            "without tests.support.tiny_model:TinyReward, which",
        ),
        (["features.backbone=nowhere", "strategy.name=raw"], "features.backbone will not be read"),
    ],
)
def test_what_settings_do_besides_or_not_at_all_is_said(given: list[str], said: str) -> None:
    note = plan_note(resolve(load_config(None, ["model.name=shapes", *given], needs_files=False)))
    assert said in note
    assert bool(note) == bool(said)


def test_one_of_two_rewards_may_choose_the_final_image(tmp_path: Path) -> None:
    model = model_directory(tmp_path)
    members = {"shapes": None, "tests.support.tiny_model:TinyReward": None}
    final = {"final_reward": "tests.support.tiny_model:TinyReward"}
    reward = {"name": "ensemble", "members": members}
    plan = resolve(config_for(model, strategy={"n": 2, **final}, reward=reward)).plan
    assert (plan.reward_members, plan.combination, plan.final.member) == (2, None, 1)
    for strategy, ensemble, message in (
        ({"n": 2, **final}, {}, "final_reward: expected none without an ensemble"),
        ({"n": 2, "final_reward": "hps"}, reward, "final_reward: expected one of shapes, tests.support"),
        ({"n": 2, **final}, {**reward, "combine": "z-score"}, "reward.combine: expected none"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            resolve(config_for(model, strategy=strategy, reward=ensemble))
        assert message in str(raised.value)
    with pytest.raises(ValueError, match="final_reward: expected none beside final_mean_of"):
        config_for(model, strategy={**final, "final_mean_of": [8]}, reward=reward)


def test_the_one_based_reading_of_algorithm_1_is_a_plan(tmp_path: Path) -> None:
    job = resolve(config_for(model_directory(tmp_path), strategy={"plan": "published-1-based"}))
    assert job.plan.survivors_after == (8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1, 1)
    found = [(one.scale_index, one.operator.name) for one in job.plan.selections]
    assert found == [(1, "cluster"), (4, "cluster"), (5, "resample"), (8, "resample")]
    alone = {"plan": "published-1-based", "name": "resampling", "n": 4}
    assert selections(config_for(model_directory(tmp_path), strategy=alone)) == [
        (5, "resample"),
        (8, "resample"),
    ]


def test_the_old_name_of_resampling_alone_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    config_sections._tell_new_name.cache_clear()
    with caplog.at_level("WARNING"):
        old = [config_for("shapes", strategy={"name": "importance", "n": 3}) for _ in range(2)]
    new = config_for("shapes", strategy={"name": "resampling", "n": 3})
    assert old == [new, new]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["strategy.name"]


def test_a_models_own_plan_may_have_any_operators(tmp_path: Path) -> None:
    one_cut = {"batch_schedule": [8] * 6 + [1] * 7, "selections": [{"scale": 6, "operator": "top-k"}]}
    model = model_directory(tmp_path, plan=one_cut)
    plan = resolve(config_for(model, strategy={"n": 2})).plan
    assert [(one.scale_index, one.operator) for one in plan.selections] == [(6, TopK())]
    assert plan.survivors_after == (16,) * 6 + (2,) * 7
    assert selections(config_for(model, strategy={"resample_scales": [8]}))[-1] == (8, "resample")
    assert selections(config_for(model, strategy={"name": "resampling", "n": 3})) == [
        (6, "resample"),
        (9, "resample"),
    ]
    wrong = {"selections": [{"scale": 6, "operator": "topk"}]}
    with pytest.raises(ConfigurationError, match=r"selections\[0\].operator: expected cluster"):
        resolve(config_for(model_directory(tmp_path, plan=wrong)))


GPU_ONLY = {"cuda_graphs": "always", "kernels": "fused"}


def test_what_only_a_gpu_can_do_is_refused_on_a_cpu_with_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(model_directory(tmp_path), engine=GPU_ONLY, sampling={"top_k": 3})
    with pytest.raises(ConfigurationError) as refused:
        resolve(config, needs_parts=True)
    found = [problem.partition(":")[0] for problem in refused.value.problems]
    assert {"sampling.top_k", "engine.cuda_graphs", "engine.kernels"} <= set(found)
    # Looking at plans needs no GPU.
    resolve(config)


def test_whether_there_is_a_gpu_is_asked_only_where_the_job_runs_here() -> None:
    config = JobConfig.model_validate({"engine": GPU_ONLY})
    resolve(config, needs_parts=True)
    without = JobConfig.model_validate({"engine": GPU_ONLY, "cluster": {"gpus_per_worker": 0}})
    for refused, here in ((config, True), (without, False)):
        with pytest.raises(ConfigurationError, match=r"engine\.kernels: 'fused' needs a CUDA device"):
            resolve(refused, needs_parts=True, here=here)


def test_a_gpu_that_is_not_here_is_refused_with_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = JobConfig.model_validate({"model": {"device": "cuda:1"}, "sampling": {"top_k": 3}})
    with pytest.raises(ConfigurationError) as refused:
        resolve(config, needs_parts=True, here=True)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "sampling.top_k",
        "model.device",
    ]
    with pytest.raises(ConfigurationError, match=r"model\.device: expected .*\"cuda:N\", got 'tpu'"):
        load_config(None, ["model.device=tpu"], needs_files=False)


def test_a_gpu_beyond_those_that_a_process_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker under Ray sees its own alone."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert [resolve_device(name).index for name in ("cuda", "cuda:0")] == [None, 0]
    with pytest.raises(ConfigurationError, match=r"model\.device: 'cuda:1': torch sees 1 GPUs; use \"auto"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("more", [{"workers": 2}, {"in_process": True}, {}], ids=str)
def test_workers_that_ask_for_more_gpus_than_this_machine_has_are_refused(
    more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for a node that cannot come, or would run on a CPU."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for count in (0.5, 1):
        resolve(config_for("shapes", cluster={"gpus_per_worker": count, **more}), needs_parts=True, here=True)
    wanting = config_for("shapes", cluster={"gpus_per_worker": 2, **more})
    with pytest.raises(
        ConfigurationError, match=r"cluster\.gpus_per_worker: .* which has 1, got 2; lower it"
    ):
        resolve(wanting, needs_parts=True, here=True)
    resolve(wanting, needs_parts=True, here=False)


def test_verifiers_need_ray_and_the_gpus_that_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    verifiers = {"replicas": 2, "gpus_per_replica": 1}
    config = config_for("shapes", cluster={"in_process": True}, verifiers=verifiers)
    with pytest.raises(ConfigurationError) as refused:
        resolve(config, needs_parts=True, here=True)
    assert list(refused.value.problems) == [
        "verifiers.replicas: expected 0 with cluster.in_process, which has no actors, got 2; remove one",
        (
            "verifiers.replicas times gpus_per_replica: expected at most the GPUs of this machine, which "
            "has 1, got 2; lower it (0 is CPUs), or name a cluster (cluster.address)"
        ),
    ]
    on_maps = config_for("shapes", verifiers=verifiers, strategy={"map_scales": [6]})
    with pytest.raises(
        ConfigurationError, match=r"verifiers\.replicas: expected 0 with strategy\.map_scales"
    ):
        resolve(on_maps, needs_parts=True)
    elsewhere = config_for("shapes", verifiers=verifiers)
    resolve(elsewhere, needs_parts=True, here=False)
    assert elsewhere.digest() == config_for("shapes").digest(), (
        "where a score is made is no part of what it is"
    )
    patient = coordinator_settings(elsewhere)
    assert patient.deadline_floor_seconds == elsewhere.cluster.segment_timeout_s
