"""The engine and everything below it run without ray, and what a job means is found without transformers."""

from __future__ import annotations

import subprocess
import sys

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
    assert done.stdout.split() == ["48", "3"]
