"""Small sweeps, and the command that compares their variants."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from ttsvar_ray.cli.app import app


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def write_sweep(folder: Path, text: str) -> Path:
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "a photo of a red circle"}\n{"prompt": "a photo of a ring and a circle"}\n'
    )
    file = folder / "sweep.yaml"
    file.write_text(text.replace("HERE", str(folder)))
    return file


SMALL = """
name: small
base:
  model: {name: shapes, device: cpu}
  prompts: {path: HERE/prompts.jsonl}
  cluster: {in_process: true}
  seed: 3
control: raw
evaluators: [shapes-checker, constant]
repetitions: 2
variants:
  raw: {strategy: {name: raw}}
  best-of-2: {strategy: {name: best-of-n, n: 2}}
published:
  raw: {shapes-checker: 0.75}
notes: Of no importance.
"""


GRID = """
name: grid
base: {strategy: {name: resampling, plan: published}}
grid: {strategy.n: [2, 4], strategy.lambda: [1, 10]}
control: n=2, lambda=1
evaluators: [constant]
repetitions: 3
"""
