"""The first evening of three users on a clean clone, by commands of README and docs, as far as no GPU and no
cloud allow. What the first of them generates, the others look at."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]

PROMPTS = """prompt,source,weight
a photo of a red circle,ours,1.5
a photo of a ring and a circle,ours,2
,ours,3
a photo of three bars,theirs,1
a photo of a green cross,theirs,
"""
PROMPTS += "a photo of a blue star,theirs,9\n" * 100
"""Enough of them that a quick machine is stopped in their middle."""


@dataclass(frozen=True)
class Clone:
    """A clean clone whose .venv has this environment's Python."""

    folder: Path
    environment: dict[str, str]

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *, ends: int = 0) -> str:
        """Run a command as it stands in the docs; return all that it prints."""
        process = self.start(command)
        shown, errors = process.communicate(timeout=250)
        assert process.returncode == ends, f"{command}\n{shown[-2000:]}\n{errors[-2000:]}"
        assert "Traceback" not in errors
        assert "unexpected" not in errors
        return shown + errors

    def rows(self, output: str, columns: list[str]) -> list[dict[str, object]]:
        import pyarrow.parquet as pq

        return list(pq.read_table(self.folder / output / "data", columns=columns).to_pylist())


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a clone itself")
    folder = tmp_path_factory.mktemp("evening") / "ttsvar_ray"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True, timeout=100)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, command in (("ttsvar-ray", "-m ttsvar_ray"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HF_", "TTSVAR"))}
    environment = {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return Clone(folder=folder, environment={**environment, "HF_HOME": str(folder.parent / "hub")})


@pytest.fixture(scope="module")
def mine(clone: Clone) -> str:
    """The engineer's run: stopped in the middle, gone on by the same command."""
    (clone.folder / "my_prompts.csv").write_text(PROMPTS)
    command = (
        ".venv/bin/ttsvar-ray generate jobs/shapes_demo.yaml --prompts my_prompts.csv --output outputs/mine "
        "--n 1 --set max_failed=1 --set output.rows_per_part=1 --in-process"
    )
    process = clone.start(command)
    assert process.stderr is not None
    assert any("workers 1/1" in line for line in process.stderr), "it never began to draw"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors
    assert "stopped" in clone.run(".venv/bin/ttsvar-ray status outputs/mine")
    shown = clone.run(command)
    assert "prompts      104" in shown
    assert "1 bad lines (within max_failed" in shown
    return "outputs/mine"


def test_an_engineer_with_eight_gpus_and_a_large_prompt_set(clone: Clone, mine: str) -> None:
    missing = clone.run(".venv/bin/ttsvar-ray doctor jobs/infinity_2b.yaml", ends=1)
    assert "ttsvar-ray fetch" in missing or "hf download" in missing
    large = "--prompts 200000 --gpus 8 --profile h200"
    planned = clone.run(f".venv/bin/ttsvar-ray plan jobs/infinity_2b.yaml {large}")
    assert "200,000 images to make, about 315 GB" in planned
    assert " h " in next(line for line in planned.splitlines() if line.startswith("time "))
    refused = clone.run(".venv/bin/ttsvar-ray generate jobs/infinity_2b.yaml --prompts absent.jsonl", ends=2)
    assert "absent.jsonl: no such prompt file" in refused
    assert len(refused.splitlines()) < 15
    looked = clone.run(".venv/bin/ttsvar-ray generate jobs/shapes_demo.yaml --dry-run")
    assert "48 in jobs/prompts/shapes_demo.jsonl" in looked
    assert not (clone.folder / "outputs" / "shapes-demo").exists()
    assert "done" in clone.run(f".venv/bin/ttsvar-ray status {mine}")
    rows = clone.rows(mine, ["prompt", "source", "weight", "image_rank"])
    assert [row["prompt"] for row in rows] == [
        line.split(",")[0] for line in PROMPTS.splitlines()[1:] if not line.startswith(",")
    ]


def test_a_researcher_with_an_operator_of_their_own(clone: Clone) -> None:
    before = clone.run(".venv/bin/ttsvar-ray plan --model shapes --strategy tts-var --n 2")
    assert "top-k" in before
    (clone.folder / "own_operator.py").write_text(
        (clone.folder / "docs" / "examples" / "own_operator.py").read_text()
    )
    own = 'strategy.selections=[{scale: 6, operator: "own_operator:Tournament", options: {rivals: 3}}]'
    schedule = "strategy.batch_schedule=[4,4,4,4,4,4,1,1,1,1,1,1,1]"
    settings = f"--set '{own}' --set '{schedule}' --set output.trace=bits"
    (clone.folder / "few.txt").write_text("a photo of a red circle\na photo of two rings\n")
    clone.run(f".venv/bin/ttsvar-ray generate --prompts few.txt --output outputs/own --in-process {settings}")
    show = "import pyarrow.parquet as pq; print(pq.read_table('outputs/own/trace')['kind'])"
    trace = clone.run(f'.venv/bin/python -c "{show}"')
    assert "tournament" in trace
    recorded = json.loads((clone.folder / "outputs" / "own" / "run.json").read_text())
    assert any("own_operator" in key for key in recorded["content"]), "its source is part of what the run is"


def test_a_data_team_that_hands_images_on(clone: Clone, mine: str) -> None:
    assert "max_failed" in clone.run(".venv/bin/ttsvar-ray settings failed")
    with (clone.folder / "my_prompts.csv").open("a") as prompts:
        prompts.write("a photo of a blue star,theirs,9\n")
    again = (
        ".venv/bin/ttsvar-ray generate jobs/shapes_demo.yaml --prompts my_prompts.csv --output outputs/mine "
        "--n 1 --set max_failed=1 --set output.rows_per_part=1 --in-process"
    )
    assert "--extend" in clone.run(again, ends=2)
    assert "prompts      105 (104 of them before)" in clone.run(f"{again} --extend")
    assert "105 prompts, 105 images" in clone.run(f".venv/bin/ttsvar-ray check {mine}")
    clone.run(f".venv/bin/ttsvar-ray report {mine}")
    assert "a photo of a blue star" in (clone.folder / mine / "report.html").read_text()
    clone.run(f".venv/bin/ttsvar-ray sheet {mine}")
    for layout, made in (("webdataset", "00000.tar"), ("folder", "metadata.jsonl")):
        clone.run(f".venv/bin/ttsvar-ray export {mine} --to outputs/{layout} --layout {layout}")
        assert list((clone.folder / "outputs" / layout).rglob(made))
    opened = clone.run(
        f".venv/bin/python -c \"import datasets; rows = datasets.load_dataset('{mine}', split='train'); "
        "print(len(rows), rows[4]['source'], rows[4]['image'].size)\""
    )
    assert "5 theirs (48, 48)" in opened
    part = next((clone.folder / mine / "data").glob("part-00001.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert "part-00001" in clone.run(f".venv/bin/ttsvar-ray check {mine}", ends=1)
