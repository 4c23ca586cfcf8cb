"""A reward in actors beside the workers: the bytes of one inside a worker, also where replicas are lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.support.doubles import OutOfWordsError
from tests.support.tiny_jobs import data_bytes, job
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.cluster.verifiers import PooledRewards, VerifierPool, lay_out_replicas
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.running import VerifiersConfig
from ttsvar_ray.errors import ConfigurationError, RewardError
from ttsvar_ray.job.runnable import JobParts
from ttsvar_ray.results import JobProgress
from ttsvar_ray.rewards.protocol import PlainReward, RewardEnsemble

REWARD = "ttsvar_ray.rewards.vision_language:VisionLanguage"


def replicas() -> list[str]:
    return sorted(name for name in ray.util.list_named_actors() if "verifier-" in name)


HALF = {"cpus_per_replica": 0.5}
"""The cluster has two CPUs."""


def test_outputs_are_those_of_a_reward_in_the_worker_also_when_a_replica_is_killed(
    ray_cluster: Cluster, prompts_file: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    seen: set[str] = set()
    left = [True]

    def progress(state: JobProgress) -> None:
        seen.update(replicas())
        if left[0] and state.prompts_done:
            left[0] = False
            ray.kill(ray.get_actor(replicas()[0]), no_restart=False)

    cluster = {"workers": 2, "spread": 2, "cpus_per_worker": 0.5}
    two, one = {"replicas": 2, **HALF}, {"replicas": 1, **HALF}
    job(prompts_file, tmp_path / "two", cluster=cluster, verifiers=two, progress=progress, pause_s=0.2)
    assert not left[0]
    assert [name.rpartition("verifier-")[2] for name in sorted(seen)] == ["0", "1"]
    assert data_bytes(tmp_path / "two") == expected
    job(prompts_file, tmp_path / "one", rows=3, cluster={**cluster, "workers": 1}, verifiers=one)
    assert data_bytes(tmp_path / "one") == expected
    assert not replicas(), "they end with the run"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_vision_language_reward_in_a_verifier_gives_the_bytes_of_one_in_the_worker(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    # Workers import this file for other tests: what is slow to import is not at its top.
    from tests.support.tiny_vision_language import save_vision_language

    weights = save_vision_language(tmp_path / "weights")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue ring\n")

    def run(name: str, **sections: Any) -> dict[str, bytes]:
        config = {
            "prompts": {"path": str(tmp_path / "prompts.txt")},
            "output": {"path": str(tmp_path / name)},
            "model": {"device": "cpu"},
            "reward": {"name": REWARD, "path": str(weights)},
            "strategy": {"plan": "published"},
            "engine": {"deterministic": True, "micro_batch_rows": 8},
            "seed": 3,
            **sections,
        }
        summary = run_job(JobConfig.model_validate(config))
        assert (summary.prompts, summary.failed) == (2, 0)
        return data_bytes(tmp_path / name)

    inside = run("inside", cluster={"in_process": True})
    one_worker = {"workers": 1, "cpus_per_worker": 0.5}
    assert run("beside", cluster=one_worker, verifiers={"replicas": 2, **HALF}) == inside


class Bright(PlainReward):
    """The mean of an image, unless it is told to fail."""

    name = "bright"

    def score(self, images: np.ndarray, texts: Any) -> np.ndarray:
        if "lost" in texts:
            raise OutOfWordsError("words", 1)
        if "fail" in texts:
            raise RewardError("told to fail")
        return images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def bright() -> RewardEnsemble:
    return RewardEnsemble([Bright()])


def unusable() -> RewardEnsemble:
    raise ConfigurationError("reward.path: nothing there")


@pytest.fixture
def settings() -> VerifiersConfig:
    return VerifiersConfig(replicas=2, cpus_per_replica=0.5, timeout_s=120.0)


def pool(settings: VerifiersConfig, prefix: str, build: Any) -> VerifierPool:
    parts = JobParts(
        plan=None,  # type: ignore[arg-type]
        build_engine=None,  # type: ignore[arg-type]
        build_rewards=build,
        build_engine_around=None if build is None else partial(lambda rewards: rewards()),
    )
    layout = WorkerLayout(count=settings.replicas, cpus=settings.cpus_per_replica, gpus=0.0)
    return VerifierPool(parts, layout, actor_prefix=prefix, settings=settings)


@pytest.fixture
def two(ray_cluster: Cluster, settings: VerifiersConfig) -> Iterator[VerifierPool]:
    made = pool(settings, "test-", bright)
    yield made
    made.stop()


def test_scores_come_in_order_and_what_is_lost_for_good_is_said(two: VerifierPool) -> None:
    rewards: Any = two.build_engine()
    assert isinstance(rewards, PooledRewards)
    assert (rewards.name, rewards.names) == ("bright", ("bright",))
    images = np.random.default_rng(0).integers(0, 256, (37, 4, 4, 3), dtype=np.uint8)
    expected = bright().score(images, ["x"] * 37)
    scores = rewards.score(images, ["x"] * 37)
    np.testing.assert_array_equal(scores.rewards, expected.rewards)
    np.testing.assert_array_equal(scores.cut_texts, expected.cut_texts)
    with pytest.raises(RewardError, match="told to fail"):
        rewards.score(images[:2], ["x", "fail"])
    told = r"failed in a verifier: OutOfWordsError: words of image 1 \[test_verifiers\.py, line \d+\]"
    with pytest.raises(RewardError, match=told):
        rewards.score(images[:2], ["x", "lost"])
    first, second = replicas()
    ray.kill(ray.get_actor(first), no_restart=True)
    np.testing.assert_array_equal(rewards.score(images, ["x"] * 37).rewards, expected.rewards)
    ray.kill(ray.get_actor(second), no_restart=True)
    with pytest.raises(RewardError, match="all replicas are lost"):
        rewards.score(images, ["x"] * 37)


def test_what_no_replica_can_build_is_told_in_its_own_words(
    ray_cluster: Cluster, settings: VerifiersConfig
) -> None:
    with pytest.raises(ConfigurationError, match="brings a reward as an object"):
        pool(settings, "none-", None)
    made = pool(settings, "unusable-", unusable)
    try:
        with pytest.raises(ConfigurationError, match=r"reward\.path: nothing there"):
            made.build_engine()
    finally:
        made.stop()


def test_replicas_that_do_not_fit_are_refused(settings: VerifiersConfig) -> None:
    layout, left = lay_out_replicas(settings, {"CPU": 4.0}, on_gpu=False)
    assert (layout.count, layout.cpus, layout.gpus) == (2, 0.5, 0.0)
    assert left["CPU"] == 3.0
    with pytest.raises(ConfigurationError, match=r"2 replicas of 0\.5 CPUs, 1 GPU beside the workers, got a"):
        lay_out_replicas(settings, {"CPU": 4.0, "GPU": 1.0}, on_gpu=True)
