"""A job whose processes are killed at random, coordinator and driver included: the same bytes in the end.

The large version, with whole nodes, is `pytest -m chaos`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from tests.support.chaos import Chaos, Driver, data_bytes, run_to_the_end, write_prompts
from tests.support.chaos_driver import SEED
from tests.support.plans import tts_var_plan
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.job.runnable import JobParts

PROMPTS = 60
ROWS_PER_PART = 10


def test_kills_of_random_processes_change_nothing(ray_cluster: Cluster, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    config = JobConfig.model_validate(
        {
            "prompts": {"path": str(prompts)},
            "output": {"path": str(tmp_path / "calm"), "rows_per_part": ROWS_PER_PART},
            "cluster": {"workers": 1, "in_process": True},
            "model": {"device": "cpu"},
            "seed": SEED,
        }
    )
    run_job(config, parts=JobParts(plan=tts_var_plan(), build_engine=TinyEngineBuilder(seed=SEED)))
    driver = Driver(
        arguments=[
            *("--address", ray_cluster.address, "--prompts", str(prompts)),
            *("--output", str(tmp_path / "chaos"), "--rows-per-part", str(ROWS_PER_PART)),
            *("--workers", "2", "--workers-per-cell", "1", "--rows", "5", "--pause", "0.3"),
        ],
        log=tmp_path / "driver.log",
    )
    chaos = Chaos(cluster=ray_cluster, driver=driver, seed=3, kinds=("worker", "coordinator", "driver"))
    driver.start()
    try:
        _wait_for_a_part(tmp_path / "chaos", driver)
        run_to_the_end(chaos, strikes=4, least_s=0.5, most_s=2.0, limit_s=240)
    finally:
        driver.stop()
    assert sum(chaos.kills.values()) == 4, chaos.history
    assert data_bytes(tmp_path / "chaos") == data_bytes(tmp_path / "calm")
    rows = pq.read_table(tmp_path / "chaos" / "data")["row"].to_pylist()
    assert rows == list(range(PROMPTS))


def _wait_for_a_part(output: Path, driver: Driver) -> None:
    """Let the run get going, so that the kills hit work and not only start-up."""

    deadline = time.monotonic() + 120
    while not any((output / "data").glob("part-*")):
        assert time.monotonic() < deadline, driver.log.read_text()[-4000:]
        assert not driver.go_on(), "done before anything was killed: give it more work"
        time.sleep(0.2)
