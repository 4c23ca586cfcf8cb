"""A run's numbers in Ray's own metrics, as Prometheus reads them from the node."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from tests.support.tiny_jobs import PROMPTS, job

PARTS = 6
SECONDS = 60.0
"""Ray's processes hand their numbers on every ten seconds."""

Samples = dict[tuple[str, str, str], float]


def scrape(run: str) -> Samples:
    """Return the run's samples of all nodes, by name, tag `outcome` or `state`, and segment."""
    found: Samples = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            match = re.fullmatch(r"ray_ttsvar_(\w+)\{(.*)\} (\S+)", line)
            if match is None or f'run="{run}-' not in match[2]:
                continue
            tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            key = (match[1], tags.get("outcome", tags.get("state", "")), tags.get("segment", ""))
            found[key] = found.get(key, 0.0) + float(match[3])
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_serves_the_numbers_of_a_run(prompts_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "counted"
    summary = job(prompts_file, output, cluster={"workers": 1})
    end = time.monotonic() + SECONDS
    samples: Samples = {}
    # Driver and coordinator hand theirs on at times of their own.
    last = {("prompts_total", "finished", ""): PROMPTS, ("parts_total", "", ""): PARTS}
    while time.monotonic() < end and any(samples.get(key) != value for key, value in last.items()):
        time.sleep(1)
        samples = scrape("counted")
    assert samples["prompts_total", "finished", ""] == summary.prompts == PROMPTS
    assert samples["images_total", "", ""] == summary.images
    assert samples["prompts_left", "", ""] == 0
    assert samples["parts_total", "", ""] == PARTS
    # The published schedule at N = 1, and a micro-batch of each segment at least.
    ran = [samples["trajectories_total", "", str(segment)] for segment in range(5)]
    assert ran == [PROMPTS * population for population in (8, 6, 4, 2, 1)]
    assert all(samples["segment_seconds_count", "", str(segment)] >= 1 for segment in range(5))
    assert samples["workers", "idle", ""] + samples["workers", "busy", ""] == 1
