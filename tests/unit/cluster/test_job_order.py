"""What is found before a run begins, and in which order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import InputError

try:
    run_job(load_config(None, ["prompts.path=absent.txt", "output.path=unwritten"]))
except InputError as error:
    print(error, "torch" in sys.modules)
"""


def test_a_missing_prompt_file_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
    )
    assert "absent.txt: no such prompt file" in done.stdout, done.stderr
    assert done.stdout.endswith("False\n")
    assert not list(tmp_path.iterdir())
