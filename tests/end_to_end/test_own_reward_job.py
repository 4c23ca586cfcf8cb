"""A job with a reward and an extractor of one's own, on Ray's workers; changed code is refused on resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_a_job_runs_with_ones_own_reward_and_is_refused_when_its_code_changed(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "docs" / "examples" / "own_reward.py", tmp_path / "mine.py")
    (tmp_path / "prompts.txt").write_text("a red circle\na green square\n")
    command = [sys.executable, "-m", "ttsvar_ray", "generate", "--prompts", "prompts.txt", "--output", "out"]
    for setting in (
        "reward.name=mine:Greenness",
        "reward.options={weight: 5.0}",
        "features.extractor=mine:CoarseColours",
        "cluster.workers=1",
    ):
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "data")
    assert set(table["reward_name"].to_pylist()) == {"greenness"}
    assert np.isfinite(table["reward"].to_numpy()).all()
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())["content"]
    assert len(recorded["code.reward.mine:Greenness"]) == 64
    assert recorded["reward.options.weight"] == 5.0

    with (tmp_path / "mine.py").open("a") as source:
        source.write("\n# Changed.\n")
    changed = run()
    assert changed.returncode == 2
    assert "code.reward.mine:Greenness" in changed.stderr
