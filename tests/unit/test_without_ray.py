"""The engine and everything below it run without ray, and what a job means is found without transformers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

WHOLE_JOB = """
import sys
sys.modules["ray"] = None  # an import of ray fails from here on
from ttsvar_ray.cli import main
from ttsvar_ray.config.load import load_config
from ttsvar_ray.job.resolved import resolve

resolve(load_config(None, ["strategy.n=1", "output.path=unused"], needs_files=False))
assert "transformers" not in sys.modules, "seconds that each command and each driver would wait"
sys.argv = ["ttsvar-ray", "generate", "--prompts", sys.argv[1], "--output", sys.argv[2]]
try:
    main()
finally:
    assert not [name for name in sys.modules if name.startswith("ray.")]
"""


def test_a_small_job_runs_without_ray(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red ring\n")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_JOB, str(tmp_path / "p.txt"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "images       1" in done.stdout
    (row,) = pq.read_table(tmp_path / "out" / "data" / "part-00000.parquet").to_pylist()
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (48, 48)
    assert pq.read_table(tmp_path / "out" / "trace" / "part-00000.parquet").num_rows == 1
