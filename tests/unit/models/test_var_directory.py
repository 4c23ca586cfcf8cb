"""VAR models from files: a directory of ours, and published files under their published names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.var import load_case, public_keys, save_var, seed
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.registry import describe_model, load_model
from ttsvar_ray.models.var.config import (
    PRESETS,
    VarConfig,
    VarPreset,
    VqConfig,
    describe_var_preset,
    square_schedule,
)
from ttsvar_ray.models.var.directory import load_var
from ttsvar_ray.models.var.tokenizer import VqDecoder
from ttsvar_ray.models.var.transformer import VarTransformer


def _draw(model, label: str, scales: int | None = None):  # type: ignore[no-untyped-def]
    state = model.start(model.encode_text([label]), [0, 0])
    for scale_index in range(model.num_scales if scales is None else scales):
        height, width = model.scale_schedule[scale_index]
        count = height * width * model.bits_per_token
        state = model.advance(state, np.random.default_rng(scale_index).random((2, count), dtype=np.float32))
    return model.decode(state)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_var(
        tmp_path / "model",
        model=load_case("own_modulation").model,
        dtype=torch.float32,
        plan={"batch_schedule": [4, 4, 2, 1], "cluster_scales": [1], "resample_scales": [2]},
        reward={"name": "constant"},
    )
    return tmp_path / "model"


def test_a_saved_model_draws_the_same_images(directory: Path) -> None:
    model = load_model(str(directory), device="cpu")
    assert np.array_equal(_draw(model, "thing 3"), _draw(load_case("own_modulation").model, "thing 3"))


def test_a_directory_says_what_it_is(directory: Path) -> None:
    description = describe_model(str(directory))
    assert description.family == "var"
    assert (description.image_height, description.image_width) == (64, 64)
    assert description.bits_per_token == 6
    assert description.sampling.top_k == 20


def test_settings_of_text_models_are_refused_all_at_once(directory: Path) -> None:
    for name in (str(directory), "var-d16"):
        with pytest.raises(ConfigurationError) as caught:
            describe_model(ModelChoice(name=name, text_encoder="somewhere", positive_prompt=True))
        assert len(caught.value.problems) == 2


def test_top_k_is_for_models_with_a_codebook(directory: Path) -> None:
    assert load_model(str(directory), device="cpu", top_k=1).sampling.top_k == 1
    with pytest.raises(ConfigurationError, match=r"sampling.top_k: model .* draws bits of two values"):
        load_model("shapes", device="cpu", top_k=2)


def test_weights_that_do_not_fit_are_listed(directory: Path) -> None:
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(CheckpointError, match=r"12 missing: blocks\.2\."):
        load_model(str(directory), device="cpu")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_published_names_are_described_without_files(name: str) -> None:
    description = describe_model(name)
    assert description.image_height == (512 if name == "var-d36" else 256)
    assert description.sampling.guidance[0] == 1
    assert description.sampling.guidance[-1] == 2.5
    assert description.plan["batch_schedule"][-1] == 1


def test_published_files_are_read_as_they_are(tmp_path: Path) -> None:
    """A small network in files like the published ones: training's buffers and the encoder included."""
    config = VarConfig(embed_dim=16, depth=1, num_heads=2, vocabulary=16, codebook_dim=4)
    schedule = square_schedule((1, 2))
    tokenizer_config = VqConfig(vocabulary=16, codebook_dim=4, base_channels=32, multipliers=(1, 1))
    transformer, tokenizer = VarTransformer(config, schedule), VqDecoder(tokenizer_config)
    seed(transformer, "tiny")
    seed(tokenizer, "tiny")
    buffers = {"lvl_1L": torch.zeros(1, 5), "attn_bias_for_masking": torch.zeros(1, 1, 5, 5)}
    torch.save({**transformer.state_dict(), **buffers}, tmp_path / "var_tiny.pth")
    encoder = {
        key: torch.zeros((2,) * len(shape))
        for key, shape in public_keys()["vae_ch160v4096z32"].items()
        if key.startswith(("encoder.", "quant_conv.", "quantize.ema"))
    }
    torch.save({**tokenizer.state_dict(), **encoder}, tmp_path / "vae_tiny.pth")
    preset = VarPreset(
        name="tiny",
        transformer=config,
        scale_schedule=schedule,
        checkpoint="var_tiny.pth",
        tokenizer_checkpoint="vae_tiny.pth",
        plan={},
        parameters=0,
    )
    # All published models share one tokenizer; the description states its sizes.
    description = dataclasses.replace(
        describe_var_preset(preset, path=str(tmp_path)), tokenizer=tokenizer_config.to_json()
    )
    model = load_var(
        description, device=torch.device("cpu"), dtype=torch.float32, sampling=description.sampling
    )
    assert model.encode_text(["Egyptian cat"]) == (285,)
    images = _draw(model, "Egyptian cat")
    assert images.shape == (2, 4, 4, 3)
    assert images.std() > 0
    assert not np.array_equal(images, _draw(model, "tench"))
