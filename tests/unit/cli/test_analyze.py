"""Figures of a pool: their numbers, and a small pool from end to end."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray.cli.analyze import potentials
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.calibrate import pool_config
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import PotentialKind, Prompt

PROMPTS = 20
TEXT = "a photo of a red circle"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prompt that was drawn, and nineteen like it with rewards that grow clearer with the scale."""
    given = load_config(None, ["model.device=cpu", "output.bits=true"], needs_files=False)
    config = pool_config(given, 3, "4,8")
    job = resolve(config)
    (drawn,) = run_local(
        [Prompt(row=0, prompt_id="id0", ordinal=0, text=TEXT)],
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=0,
        settings=CoordinatorSettings(spread=1, keep="all"),
    )
    assert isinstance(drawn, PromptResult)
    random = np.random.default_rng(0)
    finished = []
    for row in range(PROMPTS):
        end = random.standard_normal(3)
        history = np.stack([random.standard_normal(3), end + 0.01 * random.standard_normal(3), end], axis=1)
        images = [
            dataclasses.replace(image, reward=float(one[-1]), reward_history=tuple(one.tolist()))
            for image, one in zip(drawn.images, history, strict=True)
        ]
        ranked = sorted(images, key=lambda image: -image.reward)
        finished.append(
            dataclasses.replace(
                drawn,
                prompt=Prompt(row=row, prompt_id=f"id{row}", ordinal=0, text=TEXT),
                images=tuple(dataclasses.replace(image, rank=rank) for rank, image in enumerate(ranked)),
            )
        )
    root = tmp_path_factory.mktemp("pool")
    layout = OutputLayout(root / "pool")
    open_output(layout, manifest(config=config, prompt_count=PROMPTS))
    context = RowContext(model="shapes", strategy="tts-var", seed=0, reward_name="shapes", bits=True)
    write_chunk(layout, 0, rows=range(PROMPTS), finished=finished, failed=[], context=context)
    return root / "pool"


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def test_a_pool_becomes_figures(pool: Path, tmp_path: Path) -> None:
    told = call("analyze", str(pool), "--to", str(tmp_path))
    assert told.startswith("20 prompts, 3 trajectories each")
    rows = {line.split()[0]: line.split() for line in told.splitlines()[2:5]}
    assert list(rows) == ["4", "8", "12"]
    assert float(rows["12"][1]) == 1.0
    assert float(rows["8"][1]) > 0.9
    assert float(rows["4"][1]) < 0.5
    assert "strip: 13 scales of 'a photo of a red circle', and the maps of pca" in told
    names = {"consistency", "correlation", "accuracy", "cost", "memory"}
    assert (
        {file.stem for file in tmp_path.glob("*.svg")}
        == {file.stem for file in tmp_path.glob("*.csv")}
        == names
    )
    with (tmp_path / "consistency.csv").open() as file:
        values = {(row["series"], row["x"]): float(row["y"]) for row in csv.DictReader(file)}
    assert values["VALUE", "8"] > 0.9 and values["VALUE", "4"] == values["MAX", "4"] == values["SUM", "4"]
    assert values["DIFF", "8"] < values["VALUE", "8"]
    with (tmp_path / "memory.csv").open() as file:
        memory = {(row["series"], row["x"]): float(row["y"]) for row in csv.DictReader(file)}
    assert memory["best-of-8", "12"] > 5 * memory["TTS-VAR, published plan, N=1", "12"]
    assert Image.open(tmp_path / "strip.png").height > 2 * 144


def test_a_pool_may_be_read_by_the_reward_alone(pool: Path, tmp_path: Path) -> None:
    call("analyze", str(pool), "--to", str(tmp_path), "--by-reward")
    assert {file.stem for file in tmp_path.glob("*.svg")} == {"consistency", "correlation", "cost", "memory"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (PotentialKind.VALUE, [1.0, -2.0, 4.0]),
        (PotentialKind.MAX, [1.0, 1.0, 4.0]),
        (PotentialKind.SUM, [1.0, -1.0, 3.0]),
        (PotentialKind.DIFF, [1.0, -3.0, 6.0]),
    ],
)
def test_potentials_are_those_of_the_search(kind: PotentialKind, expected: list[float]) -> None:
    assert potentials(np.array([[[1.0, -2.0, 4.0]]]), kind)[0, 0].tolist() == expected


def test_what_is_no_pool_is_refused(pool: Path, tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "run")
    open_output(layout, manifest("strategy.name=tts-var"))
    assert "expected a pool, in which no trajectory is dropped" in call(
        "analyze", str(tmp_path / "run"), code=2
    )
    told = call("analyze", str(pool), "--to", str(tmp_path / "to"), "--prompt", "nobody", code=2)
    assert "--prompt: expected a prompt of the pool, by id or text, got 'nobody'" in told
    assert "--to: expected where the figures go" in call("analyze", "memory://x", code=2)
