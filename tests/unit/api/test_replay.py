"""An image rebuilt from its bits is the image of the run, at every scale."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray.api.replay import is_same_file, replay
from ttsvar_ray.cli.app import app
from ttsvar_ray.config import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.dataset import OutputLayout, RowContext, open_output, write_chunk
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.errors import OutputError
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import Prompt

TEXT = "a photo of a ring and a circle"


@pytest.fixture(scope="module")
def job() -> ResolvedJob:
    settings = ["strategy.name=best-of-n", "strategy.n=2", "output.keep=all", "engine.threads=1"]
    return resolve(load_config(None, [*settings, "model.device=cpu"], needs_files=False))


@pytest.fixture(scope="module")
def outcome(job: ResolvedJob) -> PromptResult:
    (found,) = run_local(
        [Prompt(row=0, prompt_id="the id", ordinal=0, text=TEXT)],
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=0,
        settings=CoordinatorSettings(spread=1, keep="all"),
    )
    assert isinstance(found, PromptResult)
    return found


@pytest.fixture(scope="module")
def output(job: ResolvedJob, outcome: PromptResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replay") / "out"
    layout = OutputLayout(root)
    open_output(layout, manifest(config=job.config, rows_per_chunk=1))
    context = RowContext(model="shapes", strategy="best-of-n", seed=0, reward_name="shapes", bits=True)
    write_chunk(layout, 0, rows=range(1), finished=[outcome], failed=[], context=context)
    return root


def test_every_scale_has_its_picture_and_the_last_is_the_image(
    job: ResolvedJob, outcome: PromptResult
) -> None:
    best, other = outcome.images
    pictures = replay(job, TEXT, best.bits)
    assert [picture.shape for picture in pictures] == [(48, 48, 3)] * 13
    assert is_same_file(job, pictures[-1], best.image.payload)
    assert not is_same_file(job, pictures[-2], best.image.payload)
    assert not is_same_file(job, pictures[-1], other.image.payload)
    early, late = (np.abs(p.astype(int) - pictures[-1]).mean() for p in (pictures[0], pictures[9]))
    assert early > late > 0


def test_fewer_scales_are_a_trajectory_on_its_way(job: ResolvedJob, outcome: PromptResult) -> None:
    bits = outcome.images[0].bits
    np.testing.assert_array_equal(replay(job, TEXT, bits[:5])[-1], replay(job, TEXT, bits)[4])


@pytest.mark.parametrize("bits", [(b"",), (b"\0" * 99,) * 13])
def test_bits_of_another_model_are_refused(job: ResolvedJob, bits: tuple[bytes, ...]) -> None:
    with pytest.raises(OutputError, match="expected those of shapes, got others"):
        replay(job, TEXT, bits)


def test_the_command_writes_a_strip_and_says_whether_it_is_the_image(output: Path, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    done = CliRunner().invoke(app, ["replay", str(output), "the id", "--to", str(strip)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{strip}: 13 scales; the last is the image of the run\n"
    assert strip.stat().st_size > 10_000
    other = ["--set", "output.image_format=webp"]
    done = CliRunner().invoke(app, ["replay", str(output), "the id", "--to", str(strip), *other])
    assert done.exit_code == 1
    assert "the last is NOT the image of the run" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nobody"], "expected a finished prompt with the id or text 'nobody'"),
        (["the id", "--rank", "2"], "--rank: expected 0 to 1"),
        (["the id", "--set", "model.nam=x"], "did you mean 'name'"),
    ],
)
def test_what_is_not_there_is_said(output: Path, arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, ["replay", str(output), *arguments])
    assert done.exit_code == 2
    assert complaint in done.output


def test_a_run_without_bits_says_which_setting_keeps_them(outcome: PromptResult, output: Path) -> None:
    layout = OutputLayout(output.with_name("without"))
    manifest_text = (output / "run.json").read_text()
    layout.root.local_path.mkdir(parents=True)  # type: ignore[union-attr]
    (output.with_name("without") / "run.json").write_text(manifest_text)
    context = RowContext(model="shapes", strategy="best-of-n", seed=0, reward_name="shapes")
    one = dataclasses.replace(outcome, images=outcome.images[:1])
    write_chunk(layout, 0, rows=range(1), finished=[one], failed=[], context=context)
    done = CliRunner().invoke(app, ["replay", str(layout.root), "the id"])
    assert done.exit_code == 2
    assert "output.bits: true" in done.output
