"""A fixed list of jobs decides and draws what it did when it was recorded.

A change that is meant to change results records anew, says so in its commit and in CHANGELOG.md:

    python -m tests.integration/test_recorded_jobs.py > tests/data/recorded_jobs.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recorded_jobs import FIXED_ARITHMETIC

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "recorded_jobs.json"


def _digests() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.recorded_jobs"],
        cwd=ROOT,
        env=os.environ | FIXED_ARITHMETIC,
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, str] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(600)
def test_jobs_give_what_was_recorded() -> None:
    assert _digests() == json.loads(RECORDED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    json.dump(_digests(), sys.stdout, indent=2, ensure_ascii=False)
    print()
