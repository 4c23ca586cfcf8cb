"""What befalls a run beyond its workers: cells that die, nodes that are taken away, prompts that all fail."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from tests.support.tiny_jobs import PROMPTS, data_bytes, job, parts, write_prompts
from ttsvar_ray.errors import RunFailedError
from ttsvar_ray.results import JobProgress

pytestmark = pytest.mark.usefixtures("ray_cluster")


def living_actors() -> dict[str, dict[str, Any]]:
    """Return what Ray knows of each living actor of a job, by its name without the job's own prefix."""
    return {
        found.group(1): actor
        for actor in ray._private.state.actors().values()
        if actor["State"] == "ALIVE" and (found := re.search(r"-(sink|cell-\d+|worker-\d+)", actor["Name"]))
    }


def process_of(name: str, log: pytest.LogCaptureFixture) -> int:
    """Return the process of the newest life of an actor, as the log tells it."""
    found = re.findall(rf"{re.escape(name)}\S* is up on \S+ \(process (\d+)\)", log.text)
    return int(found[-1])


def test_a_cell_that_dies_costs_its_unfinished_prompts_and_a_sink_nothing(
    prompts_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images too large for a reply belong to the cell and die with it: those, too, are made again."""
    caplog.set_level(logging.INFO)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    job(prompts_file, undisturbed, noisy=True, cluster={"workers": 1, "in_process": True})
    images = pq.read_table(undisturbed / "data")["image"].to_pylist()
    assert len(images) == PROMPTS
    assert min(len(image["bytes"]) for image in images) > 90_000
    shapes = {np.asarray(Image.open(io.BytesIO(image["bytes"]))).shape for image in images}
    assert shapes == {(192, 192, 3)}

    killed: list[int] = []

    def kill_two(state: JobProgress) -> None:
        if not killed and parts(output) and state.workers == 2:
            killed.append(process_of("cell-1", caplog))
            os.kill(killed[0], signal.SIGKILL)
            (sink,) = [actor for name, actor in living_actors().items() if name == "sink"]
            os.kill(sink["Pid"], signal.SIGKILL)

    summary = job(
        prompts_file, output, noisy=True, pause_s=0.3, cluster={"workers_per_cell": 1}, progress=kill_two
    )
    assert killed
    (notice,) = [notice for notice in summary.notices if notice.startswith("cell-1 is lost")]
    assert "unfinished prompts are run again, and it is started anew" in notice
    assert data_bytes(output) == data_bytes(undisturbed)
    # The dead sink may have had nothing to write: then the next part finds another one.
    assert any(notice.startswith("the sink died") for notice in summary.notices)


def test_a_run_in_which_everything_fails_is_stopped_with_the_reason(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 80)
    output = tmp_path / "out"
    with pytest.raises(RunFailedError) as caught:
        job(prompts, output, fail_on="red", cluster={"workers": 1, "failure_window": 50})
    message = str(caught.value)
    assert "50 of the last 50 prompts failed, more than cluster.max_failure_rate (0.5) allows" in message
    assert "text cannot be encoded: 'a red circle number" in message
    letters = [line for path in (output / "failed").iterdir() for line in path.read_text().splitlines()]
    assert f"{len(parts(output))} of 20 parts are committed" in message
    assert len(letters) == 4 * len(parts(output)) > 0
    assert {tuple(json.loads(line)["columns"]) for line in letters} == {("tag",)}


def test_workers_of_a_node_that_is_taken_away_go_on_elsewhere(
    ray_cluster: Cluster,
    expected: dict[str, bytes],
    prompts_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    head = ray.get_runtime_context().get_node_id()
    nodes = {}
    for _ in range(2):
        node = ray_cluster.add_node(num_cpus=1, object_store_memory=80 * 1024 * 1024)
        nodes[node.node_id] = node
    output = tmp_path / "out"
    drained: list[str] = []

    def drain_one(state: JobProgress) -> None:
        if drained or state.workers < 3:
            return
        nodes_of = {name: actor["Address"]["NodeID"] for name, actor in living_actors().items()}
        name, node_id = next(
            (name, node) for name, node in nodes_of.items() if name.startswith("worker") and node != head
        )
        drained.append(name)
        accepted, why_not = GcsClient(address=ray_cluster.address).drain_node(
            node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "taken back", int(time.time() + 600) * 1000
        )
        assert accepted, why_not

    try:
        summary = job(
            prompts_file, output, pause_s=0.5, cluster={"workers": 3, "spread": 1}, progress=drain_one
        )
    finally:
        for node in nodes.values():
            ray_cluster.remove_node(node)
    assert drained
    assert data_bytes(output) == expected
    assert any(f"{drained[0]} is on a node that is taken away" in notice for notice in summary.notices)
    assert not any("is lost" in notice for notice in summary.notices), "nothing was interrupted"
