"""A folder of published files in miniature: official names, official wrappings, random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from tests.support.tiny_infinity import text_parts
from ttsvar_ray.models.infinity.presets import (
    PRESETS,
    TEXT_CHANNELS,
    TEXT_ENCODER_FOLDER,
    InfinityPreset,
    TokenizerPreset,
)
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer

SIZES = {"depth": 4, "embed_dim": 64, "num_heads": 4, "block_chunks": 2, "size": "0.06M"}


def _tokenizer(preset: str, name: str, *, codebook_dim: int) -> TokenizerPreset:
    published = PRESETS[preset].tokenizer
    return dataclasses.replace(
        published,
        name=name,
        file=f"infinity_vae_{name}.pth",
        codebook_dim=codebook_dim,
        multipliers=(1,) * len(published.multipliers),
        base_channels=32,
        num_res_blocks=1,
    )


TINY = dataclasses.replace(
    PRESETS["infinity-2b"],
    name="infinity-tiny",
    published_name="infinity_tiny",
    tokenizer=_tokenizer("infinity-2b", "tiny", codebook_dim=8),
    weights="infinity_tiny.pth",
    **SIZES,
)
"""The layout of the 2B files: 16x tokenizer, one token a cell."""

TINY_PATCHIFIED = dataclasses.replace(
    PRESETS["infinity-8b"],
    name="infinity-tiny-8",
    published_name="infinity_tiny_8",
    tokenizer=_tokenizer("infinity-8b", "tiny8", codebook_dim=4),
    weights="infinity_tiny_8_weights",
    **SIZES,
)
"""The layout of the 8B files: 8x tokenizer, one token for 2x2 cells, weights in shards."""

TINY_PRESETS = {preset.name: preset for preset in (TINY, TINY_PATCHIFIED)}


def register() -> None:
    """Let this process know the tiny models by name."""
    PRESETS.update(TINY_PRESETS)


def write_published(folder: Path, preset: InfinityPreset) -> Path:
    """Write a preset's files as they are published: in `folder`, with the text encoder beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    assert preset.weights is not None
    weights = random_weights(InfinityTransformer(preset.transformer_config(), preset.quantizer().schedule))
    biases = [name for name in weights if name.endswith(".v_bias")]
    weights |= {name.replace(".v_bias", ".zero_k_bias"): torch.zeros_like(weights[name]) for name in biases}
    if preset.weights.endswith(".pth"):
        legacy = {"lvl_1L": torch.zeros(1, 521), "attn_bias_for_masking": torch.zeros(1, 1, 4, 4)}
        torch.save({**weights, **legacy}, folder / preset.weights)
    else:
        _write_shards(folder / preset.weights, weights)
    tokenizer = random_weights(ImageTokenizer(preset.tokenizer.config()))
    mask = 2 ** torch.arange(preset.tokenizer.codebook_dim - 1, -1, -1)
    masks = {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask}
    torch.save({"vae": {**_wrapped(tokenizer), **masks}, "ema": {}}, folder / preset.tokenizer.file)
    _write_text_encoder(folder / TEXT_ENCODER_FOLDER)
    return folder


def random_weights(module: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return a module's state dict with nothing at its quiet initial value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + torch.randn(value.shape, generator=generator) * 0.05
        for name, value in module.state_dict().items()
    }


def _wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of the names in the form with `.conv` and `.norm` around convolutions and norms: both occur."""
    renamed = {}
    for index, (name, value) in enumerate(weights.items()):
        owner, _, leaf = name.rpartition(".")
        wrapper = "norm" if "norm" in owner.rpartition(".")[2] else "conv"
        renamed[f"{owner}.{wrapper}.{leaf}" if index % 2 else name] = value
    return renamed


def _write_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    folder.mkdir()
    names = sorted(weights)
    placed: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[number::3]}, folder / file)
        placed |= dict.fromkeys(names[number::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def _write_text_encoder(folder: Path) -> None:
    _, words = text_parts()
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(words),
        d_model=TEXT_CHANNELS,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    # Published with its decoder, which nothing here needs.
    T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
