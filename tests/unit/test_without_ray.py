"""The engine and everything below it run without ray, and what a job means is found without transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.modules["ray"] = None  # an import of ray fails from here on
from ttsvar_ray.config import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.types import Prompt

config = load_config(None, ["strategy.n=1", "output.path=unused"], needs_files=False)
job = resolve(config)
assert "transformers" not in sys.modules, "seconds that each command and each driver would wait"
prompt = Prompt(row=0, prompt_id="a", ordinal=0, text="a red ring")
(result,) = run_local(
    [prompt], plan=job.plan, engines=[build_engine(job)], run_seed=0, settings=CoordinatorSettings()
)
assert not [name for name in sys.modules if name.startswith("ray.")]
print(result.images[0].image.width, len(result.trace))
"""


def test_a_whole_search_runs_without_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["48", "1"]


WHOLE_JOB = """
import sys
sys.modules["ray"] = None  # an import of ray fails from here on
from ttsvar_ray.cli import main

sys.argv = ["ttsvar-ray", "generate", "--prompts", sys.argv[1], "--output", sys.argv[2]]
main()
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
    assert (tmp_path / "out" / "data" / "part-00000.parquet").is_file()
