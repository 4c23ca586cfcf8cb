"""A run of the built-in world is judged image by image, and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from recipes.shapes.captions import sample_scene_for
from recipes.shapes.render import render
from ttsvar_ray.cli import demo as demo_module
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.sheet import accuracy, shown_images
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.results import FinalImage, JobSummary, PromptFailure, PromptResult, ResultImage
from ttsvar_ray.shapes.world import Caption, parse_caption
from ttsvar_ray.types import Prompt

PROMPTS = ["a red circle", "two rings", "a circle above a cross", "a cross"]


def png(pixels: np.ndarray) -> FinalImage:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return FinalImage.of_bytes(
        file.getvalue(), width=pixels.shape[1], height=pixels.shape[0], image_format="png"
    )


def drawn(caption: Caption | str, seed: int) -> FinalImage:
    caption = parse_caption(caption) if isinstance(caption, str) else caption
    return png(render(sample_scene_for(np.random.default_rng(seed), caption), 96))


def prompt(row: int, text: str) -> Prompt:
    return Prompt(row=row, prompt_id=str(row), ordinal=0, text=text, columns=MappingProxyType({}))


def write_run(root: Path, shown: dict[int, str]) -> None:
    """Write a run whose best image of each row shows a caption; each second-best one is a blank."""
    blank = png(np.full((96, 96, 3), 200, dtype=np.uint8))
    finished = []
    for row, caption in shown.items():
        pictures = [drawn(caption, row), blank]
        images = tuple(
            ResultImage(
                rank=rank, image=image, reward=1.0 - rank, reward_history=(1.0,), lineage=(0,), bits=(b"",)
            )
            for rank, image in enumerate(pictures)
        )
        finished.append(
            PromptResult(prompt=prompt(row, PROMPTS[row]), images=images, trace=(), attempts=1, seconds=0.0)
        )
    failed = [
        PromptFailure(prompt=prompt(row, PROMPTS[row]), attempts=3, errors=("x",))
        for row in range(len(PROMPTS))
        if row not in shown
    ]
    context = RowContext(model="shapes", strategy="raw", seed=0, reward_name="shapes")
    write_chunk(
        OutputLayout(root), 0, rows=range(len(PROMPTS)), finished=finished, failed=failed, context=context
    )


def test_the_best_image_of_each_prompt_is_judged(tmp_path: Path) -> None:
    write_run(tmp_path, {0: PROMPTS[0], 1: "three rings", 2: PROMPTS[2]})
    judged = shown_images(tmp_path)
    assert [(image.prompt, image.kind, image.correct) for image in judged] == [
        ("a red circle", "colors", True),
        ("two rings", "counting", False),
        ("a circle above a cross", "position", True),
    ]
    share, error = accuracy(judged)
    assert share == pytest.approx(2 / 3)
    assert error == pytest.approx((2 / 9 / 3) ** 0.5)


def test_the_report_prints_the_accuracy_and_draws_a_sheet(tmp_path: Path) -> None:
    write_run(tmp_path, {0: PROMPTS[0], 1: "three rings", 2: PROMPTS[2]})
    result = CliRunner().invoke(app, ["sheet", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["counting", "0", "1", "0.000"] in lines
    assert ["all", "2", "3", "0.667", "(standard", "error", "0.272)"] in lines
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 144


def write_others(root: Path, caption: str) -> None:
    """Write a run of one prompt that is no caption of the built-in world."""
    context = RowContext(model="m", strategy="raw", seed=0, reward_name="r")
    image = ResultImage(rank=0, image=drawn("a cross", 0), reward=0.0, reward_history=(), lineage=(), bits=())
    done = PromptResult(prompt=prompt(0, caption), images=(image,), trace=(), attempts=1, seconds=0.0)
    write_chunk(OutputLayout(root), 0, rows=range(1), finished=[done], failed=[], context=context)


def test_prompts_of_another_world_are_shown_and_not_judged(tmp_path: Path) -> None:
    write_others(tmp_path, "a cat on a mat")
    result = CliRunner().invoke(app, ["sheet", str(tmp_path), "--to", str(tmp_path / "page.png")])
    assert result.exit_code == 0, result.output
    assert "1 not judged" in result.stdout
    assert "accuracy" not in result.stdout
    with Image.open(tmp_path / "page.png") as page:
        assert page.height > 144


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {0: PROMPTS[0], 1: "three rings", 2: PROMPTS[2]})
    write_run(tmp_path / "b", {1: PROMPTS[1], 2: PROMPTS[2]})
    page = tmp_path / "both.png"
    result = CliRunner().invoke(app, ["sheet", str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(page)])
    assert result.exit_code == 0, result.output
    assert [line.split()[:3] for line in result.stdout.splitlines() if line.startswith("all")] == [
        ["all", "2", "3"],
        ["all", "2", "2"],
    ]
    with Image.open(page) as image:
        colors = {color for _, color in image.getcolors(1 << 24)}
        # Two prompts of two runs in one line of tiles: three right, one wrong.
        assert image.width > 4 * 144 > image.height
        assert (25, 145, 70) in colors
        assert (205, 45, 45) in colors


def test_runs_without_a_prompt_in_common(tmp_path: Path) -> None:
    write_others(tmp_path / "a", "a cat")
    write_others(tmp_path / "b", "a dog")
    result = CliRunner().invoke(app, ["sheet", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "expected a prompt that all of a, b have an image of" in result.stderr


def test_the_demo_runs_three_strategies_and_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[JobConfig] = []

    def run(config: JobConfig, **_: Any) -> JobSummary:
        jobs.append(config)
        wrong = "a circle" if config.strategy.name == "raw" else PROMPTS[1]
        write_run(Path(config.output.path), {0: PROMPTS[0], 1: wrong, 2: PROMPTS[2], 3: PROMPTS[3]})
        return JobSummary(
            output=Path(config.output.path),
            uri=config.output.path,
            prompts=4,
            images=8,
            failed=0,
            bad_lines=0,
            mean_reward=1.0,
            cut=0,
            prompts_resumed=0,
            workers=1,
            seconds=1.0,
            images_per_second=8.0,
        )

    monkeypatch.setattr(demo_module, "run", run)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "job.yaml").write_text(
        json.dumps(
            {
                "prompts": {"path": str(tmp_path / "p.txt")},
                "strategy": {"plan": "published"},
                "output": {"path": str(tmp_path / "out")},
            }
        )
    )
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "job.yaml")])
    assert result.exit_code == 0, result.output
    assert [config.strategy.name for config in jobs] == ["tts-var", "raw", "best-of-n"]
    # Workers of a cluster start for the first of them alone.
    assert [config.cluster.in_process for config in jobs] == [False, True, True]
    assert jobs[0].output.path == str(tmp_path / "out")
    assert Path(jobs[2].output.path) == tmp_path / "out" / "baselines" / f"best-of-{jobs[2].strategy.n}"
    rows = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines()}
    assert rows["raw"][1:3] == ["1.00x", "0.750"]
    assert rows["tts-var N=1"][3] == "1.000"
    assert (tmp_path / "out" / "contact_sheet.png").exists()
    with Image.open(tmp_path / "out" / "side_by_side.png") as page:
        assert page.width > 6 * 144
