"""One `pip install` brings rewards, ray, transformers and open_clip together, and they agree.

    pytest -m slow tests/environment

Makes an environment in a temporary folder and installs this package with `[rewards]` and open_clip into it,
in one command, as pip is configured here. With PyPI's own torch (a CUDA build, which runs without a GPU too)
that is 6.3 GB. `$TTSVAR_FRESH_PIP` holds more arguments for pip.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("fresh_probe.py")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_installs_together_and_open_clip_agrees(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=300)
    python = venv / "bin" / "python"
    more = shlex.split(os.environ.get("TTSVAR_FRESH_PIP", ""))
    install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[rewards]", "open_clip_torch>=3.0", *more]
    subprocess.run(install, check=True, timeout=3000)
    subprocess.run([python, "-m", "pip", "check"], check=True, timeout=300)

    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    ran = subprocess.run(
        [python, PROBE, ROOT / "tests" / "data" / "clip_bpe"],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    print(found)
    assert found["tokens_equal"]
    assert found["score_difference"] < 2e-6
