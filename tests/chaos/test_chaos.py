"""Thirty seeded kills of workers, coordinators, sinks, drivers and whole nodes: nothing lost, nothing twice.

    python -m pytest -m chaos

Ten minutes or so on two cores. `TTSVAR_CHAOS_SEED` plays other kills, `TTSVAR_CHAOS_KILLS` more of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from tests.support.chaos import KINDS, ROOT, Chaos, Driver, data_bytes, run_to_the_end, write_prompts

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("TTSVAR_CHAOS_SEED", "0"))
KILLS = int(os.environ.get("TTSVAR_CHAOS_KILLS", "30"))
PROMPTS = 240
RUN_LIMIT_S = 1500.0
VICTIMS = ("worker",) * 4 + ("coordinator",) * 3 + ("sink",) * 2 + ("driver", "node")
"""Drawn from evenly. Drivers and nodes are always there to be killed, actors only while a run goes on."""
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 150 * 1024 * 1024}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Start a head that computes nothing but coordinators, and two nodes of two workers each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A node that is killed is found dead in seconds, as a cloud's own health check would tell.
    settings = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": 150 * 1024 * 1024,
            "include_dashboard": False,
            "_system_config": settings,
        },
    )
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


def _driver(cluster: Cluster, prompts: Path, output: Path, *, pause: float) -> Driver:
    return Driver(
        arguments=[
            *("--address", cluster.address, "--prompts", str(prompts), "--output", str(output)),
            *("--workers", "4", "--workers-per-cell", "2", "--pause", str(pause)),
        ],
        log=output.with_suffix(".log"),
    )


def test_thirty_kills_change_nothing(nodes: Cluster, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    calm = _driver(nodes, prompts, tmp_path / "calm", pause=0.0)
    calm.start()
    run_to_the_end(
        Chaos(cluster=nodes, driver=calm, seed=SEED), strikes=0, least_s=0.5, most_s=1.0, limit_s=RUN_LIMIT_S
    )
    assert calm.starts == 1
    expected = data_bytes(tmp_path / "calm")
    assert len(expected) == PROMPTS // 10

    kills: Counter[str] = Counter()
    run = 0
    while sum(kills.values()) < KILLS:
        output = tmp_path / f"chaos-{run}"
        driver = _driver(nodes, prompts, output, pause=0.5)
        chaos = Chaos(cluster=nodes, driver=driver, seed=1000 * SEED + run, kinds=VICTIMS, node_options=NODE)
        driver.start()
        try:
            left = KILLS - sum(kills.values())
            run_to_the_end(chaos, strikes=left, least_s=1.0, most_s=8.0, limit_s=RUN_LIMIT_S)
        finally:
            driver.stop()
        kills += chaos.kills
        run += 1
        print(f"run {run}: {dict(chaos.kills)}, {driver.starts} sessions")
        assert data_bytes(output) == expected, chaos.history
        table = pq.read_table(output / "data", columns=["row", "tag"])
        assert table["row"].to_pylist() == table["tag"].to_pylist() == list(range(PROMPTS))
        assert not any((output / "failed").glob("*")), "a kill was taken for a prompt's own fault"
    assert set(kills) == set(KINDS), f"every kind of victim once at least: {dict(kills)}"
