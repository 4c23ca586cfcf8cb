"""A small run to be scored and selected from, and the commands that do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray.cli.app import app
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.results import FinalImage, PromptResult, ResultImage
from ttsvar_ray.types import Prompt

IMAGES = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0))
COLOURS = {0: (250, 20, 20), 1: (20, 250, 20), 2: (20, 20, 250), 3: (250, 250, 250)}
OWN = """
import numpy as np
from ttsvar_ray.rewards.protocol import PlainReward

class Red(PlainReward):
    name = "red"
    def __init__(self, device="cpu"):
        pass
    def score(self, images, texts):
        return images[:, 0, 0, 0].astype(np.float32)

class Colours:
    name = "colours"
    def __init__(self, device="cpu"):
        pass
    def extract(self, images):
        patches = images.reshape(len(images), -1, 3).astype(np.float32)
        return patches if images[0, 0, 0, 0] > 200 else patches.mean(axis=1)
"""


def picture(row: int, rank: int) -> bytes:
    pixels = np.full((16, 16, 3), COLOURS[row], dtype=np.uint8)
    pixels[4 : 12 - rank, 4:12] = 127
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def images(row: int, rewards: tuple[float, ...]) -> tuple[ResultImage, ...]:
    return tuple(
        ResultImage(
            rank=rank,
            image=FinalImage.of_bytes(picture(row, rank), width=16, height=16, image_format="png"),
            reward=reward,
            reward_history=(reward,),
            lineage=(rank,),
            bits=(),
        )
        for rank, reward in enumerate(rewards)
    )


def scored_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two parts of two prompts each; the first prompt of each has two images."""
    (tmp_path / "mine_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    layout = OutputLayout(tmp_path / "out")
    open_output(layout, manifest("model.device=cpu", prompt_count=4, rows_per_chunk=2))
    context = RowContext(model="shapes", strategy="best-of-n", seed=0, reward_name="shapes")
    for chunk in (0, 1):
        done = [
            PromptResult(
                prompt=Prompt(row=row, prompt_id=f"id{row}", ordinal=0, text=f"a photo of {row} rings"),
                images=images(row, (0.5 + row, 0.25) if row % 2 == 0 else (0.1,)),
                trace=(),
                attempts=1,
                seconds=0.1,
            )
            for row in (2 * chunk, 2 * chunk + 1)
        ]
        write_chunk(
            layout, chunk, rows=range(2 * chunk, 2 * chunk + 2), finished=done, failed=[], context=context
        )
    return tmp_path / "out"


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def score(output: Path, *arguments: str, code: int = 0) -> str:
    return call("score", str(output), *arguments, "--device", "cpu", code=code)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]
