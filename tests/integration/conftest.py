"""One small Ray cluster for all tests here; a test may add nodes to it and take them away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from tests.support.tiny_jobs import PROMPTS, data_bytes, job, write_prompts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        # Processes of a cluster on this machine inherit both; authentication would leave a token in the home.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "object_store_memory": 200 * 1024 * 1024,
                "include_dashboard": False,
                "include_log_monitor": False,
                "no_monitor": True,
            },
        )
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="package")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="package")
def expected(
    ray_cluster: Cluster, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one worker writes undisturbed."""
    output = tmp_path_factory.mktemp("expected") / "out"
    summary = job(prompts_file, output, cluster={"workers": 1})
    assert (summary.prompts, summary.images, summary.failed, summary.workers) == (PROMPTS, PROMPTS, 0, 1)
    assert summary.images_per_second > 0
    table = pq.read_table(output / "data")
    assert table["prompt"].to_pylist() == [f"a red circle number {i}" for i in range(PROMPTS)]
    assert table["tag"].to_pylist() == list(range(PROMPTS))
    assert set(table["model"].to_pylist()) == {"tiny"}
    assert set(table["reward_name"].to_pylist()) == {"tiny-reward"}
    assert not (output / ".lock").exists()
    return data_bytes(output)
