"""From published files to a data set: converted and run by the commands, and run as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.published_infinity import TINY, write_published
from tests.support.recorded import recorded_rewards
from tests.support.small_hub import write_reward_sizes
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.infinity.presets import PRESETS
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import Prompt

PROMPTS = ("two green rings above a blue square",)

SETTINGS = (
    "strategy.name=tts-var",
    "strategy.batch_schedule=[3, 3, 2, 2, 2, 1, 1]",
    "strategy.cluster_scales=[2]",
    "strategy.resample_scales=[5]",
    "engine.selector_decode=selector",
    "seed=5",
)


def tiny_image_reward(folder: Path) -> Path:
    """Write the recorded ImageReward as a user has it, with its reduced sizes."""
    folder.mkdir()
    for name in ("ImageReward.pt", "vocab.txt"):
        shutil.copy(recorded_rewards() / "imagereward" / name, folder)
    write_reward_sizes(folder)
    return folder


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.timeout(600)
def test_published_files_are_converted_and_generate_what_they_generate_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, TINY.name, TINY)
    files, model = write_published(tmp_path / "files", TINY), tmp_path / "model"
    backbone = recorded_rewards() / "dinov2_reg" / "dinov2_vitl14_reg4_pretrain.pth"
    converted = call(
        *("convert", str(files), "--to", str(model), "--preset", TINY.name, "--backbone", str(backbone)),
        *("--reward-path", str(tiny_image_reward(tmp_path / "reward"))),
    )
    assert converted.splitlines()[-1].startswith(f"{model}: a model directory")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    options = [option for setting in SETTINGS for option in ("--set", setting)]
    call(
        *("generate", "--model", str(model), "--prompts", str(prompts), "--output", str(tmp_path / "out")),
        *("--in-process", "--set", "model.device=cpu", *options),
    )
    (part,) = (tmp_path / "out" / "data").glob("*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert all((row["width"], row["height"]) == (256, 256) for row in rows)
    assert all(len(row["reward_history"]) == 2 for row in rows)
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())["content"]
    assert {"weights.transformer", "weights.reward.image-reward", "weights.features.pca"} <= recorded.keys()

    beside = tmp_path / "beside"
    shutil.copytree(files, beside)
    config = json.loads((model / "config.json").read_text())
    config["files"] = {"transformer": "infinity_tiny.pth", "tokenizer": "infinity_vae_tiny.pth"}
    config["text"] = {"path": "flan-t5-xl"}
    for companion in ("reward", "features"):
        shutil.copytree(model / companion, beside / companion)
    (beside / "config.json").write_text(json.dumps(config))
    as_they_are = load_config(
        None, [f"model.name={beside}", *SETTINGS, "model.device=cpu"], needs_files=False
    )
    job = resolve(as_they_are)
    outcomes = run_local(
        [
            Prompt(row=index, prompt_id=row["prompt_id"], text=row["prompt"], ordinal=row["ordinal"])
            for index, row in enumerate(rows)
        ],
        plan=job.plan,
        engines=[build_engine(job)],
        run_seed=as_they_are.seed,
        settings=CoordinatorSettings(),
    )
    images = {}
    for outcome in outcomes:
        assert isinstance(outcome, PromptResult), outcome
        images[outcome.prompt.prompt_id] = outcome.images[0].image.payload
    assert images == {row["prompt_id"]: row["image"]["bytes"] for row in rows}
