"""The shipped model trained on: it begins as what it was, learns, and never sees what the prompt sets say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipes.shapes import hard
from recipes.shapes.assemble import assemble, trained_tokenizer
from recipes.shapes.examples import make_examples, open_examples
from recipes.shapes.parallel import Rank
from recipes.shapes.progress import load_checkpoint
from recipes.shapes.prompt_set import PromptSet, distinct_captions
from recipes.shapes.reward_degrade import blur_and_noise
from recipes.shapes.reward_training import export_reward, train_reward
from recipes.shapes.transformer_stage import Course, train_transformer
from ttsvar_ray.models.description import WEIGHT_FILES
from ttsvar_ray.models.infinity.directory import TOKENIZER_KEYS
from ttsvar_ray.models.registry import model_path
from ttsvar_ray.shapes.world import HARD_KINDS, Kind
from ttsvar_ray.vision.checkpoints import rename_keys

SETTINGS = {"sampling": {"guidance": 2.0, "temperature": 1.0, "top_p": 1.0}, "plan": {}}
ONE = Rank(index=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    hard.begin_with("shapes", folder)
    return folder


def test_untrained_it_is_the_model_that_it_began_with(begun: Path, tmp_path: Path) -> None:
    assemble(begun, tmp_path, name="again", reward=None, features=None, **SETTINGS)
    export_reward(begun, tmp_path / "reward", degrade=blur_and_noise, calibration_images=100)
    for file in (
        *WEIGHT_FILES.values(),
        "text_encoder/model.safetensors",
        "reward/model.safetensors",
    ):
        first, second = (
            rename_keys(load_file(folder / file), TOKENIZER_KEYS, source=file)
            for folder in (model_path("shapes"), tmp_path)
        )
        assert first.keys() == second.keys()
        assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_both_networks_train_on(begun: Path, tmp_path: Path) -> None:
    hard.begin_with("shapes", tmp_path)
    make_examples(tmp_path, seed=1, size=6, sample=hard.sample_mixed_example, processes=1)
    tokenizer, quantizer = trained_tokenizer(tmp_path)
    examples = open_examples(tmp_path, tokenizer, seed=1, size=6)
    course = Course(num_scales=4, batch=3, early_share=1.0, late_share=1.0)
    train_transformer(
        ONE, replace(hard.TRANSFORMER, steps=2, courses=(course,)), quantizer, examples, tmp_path, None
    )
    assert train_reward(
        tmp_path, recipe=replace(hard.reward_recipe(), steps=2, batch=4, measure_images=4), budget_seconds=600
    )
    for stage, part in (("transformer", "model"), ("reward", "trainer")):
        before, after = (load_checkpoint(folder / f"{stage}.pt") for folder in (begun, tmp_path))
        assert before is not None
        assert after is not None
        assert after["step"] == 2
        assert any(not torch.equal(value, after[part][name]) for name, value in before[part].items())
    hard.begin_with("shapes", tmp_path)  # goes on with what is there
    again = load_checkpoint(tmp_path / "transformer.pt")
    assert again is not None
    assert again["step"] == 2


def test_no_text_of_the_harder_sets_is_trained_on() -> None:
    rng = np.random.default_rng(0)
    kept = {
        (caption.claims, caption.relations)
        for kind in HARD_KINDS
        for name in PromptSet
        for caption in distinct_captions(name, kind)
    }
    drawn = [hard.mix().example(rng)[1] for _ in range(400)]
    assert not {(caption.claims, caption.relations) for caption in drawn} & kept
    assert {caption.kind for caption in drawn} == set(Kind)
