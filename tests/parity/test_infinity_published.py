"""Every name of the published checkpoints has its place, at full size, without weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from ttsvar_ray.models.infinity.directory import TOKENIZER_KEYS, TRANSFORMER_KEYS
from ttsvar_ray.models.infinity.presets import PRESETS, TOKENIZERS, InfinityPreset
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.vision.checkpoints import KeyTable, rename_keys

KEYS = Path(__file__).parents[1] / "data" / "infinity" / "published_keys.json.gz"
PUBLISHED: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(KEYS.read_bytes()))
TRANSFORMERS = {
    "infinity-2b": "infinity_2b",
    "infinity-8b": "infinity_8b",
    "infinity-8b-512": "infinity_8b",
    "infinity-125m": "infinity_layer12",
}
TOKENIZER_NAMES = {
    "d16": "vae_f16_d16",
    "d24": "vae_f16_d24",
    "d32": "vae_f16_d32",
    "d32reg": "vae_f16_d32",
    "d56_f8_14_patchify": "vae_f8_d14_patchify(d56)",
}
BILLIONS = {
    "infinity-2b": "2.205",
    "infinity-8b": "8.376",
    "infinity-8b-512": "8.376",
    "infinity-125m": "0.125",
    "infinity-layer16": "0.362",
    "infinity-1b": "0.941",
    "infinity-layer32": "2.257",
    "infinity-layer40": "4.716",
    "infinity-layer48": "8.767",
    "infinity-20b": "19.95",
}


def transformer_on_meta(preset: InfinityPreset) -> InfinityTransformer:
    with torch.device("meta"):
        return InfinityTransformer(preset.transformer_config(), preset.quantizer().schedule)


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def dropped(names: dict[str, list[int]], table: KeyTable) -> set[str]:
    return {name for name in names if not rename_keys({name: torch.empty(0)}, table, source="here")}


def own_shapes(published: dict[str, list[int]], table: KeyTable) -> dict[str, list[int]]:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in published.items()}
    return {name: list(tensor.shape) for name, tensor in rename_keys(tensors, table, source="here").items()}


def test_every_list_of_names_is_used() -> None:
    assert {*TRANSFORMERS.values(), *TOKENIZER_NAMES.values()} == set(PUBLISHED)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_each_key_of_a_transformer_is_loaded_or_dropped_for_a_reason(name: str) -> None:
    published = PUBLISHED[TRANSFORMERS[name]]
    legacy = {"lvl_1L": [1, 10], "attn_bias_for_masking": [1, 1, 10, 10]}
    constant = {key for key in published if key.endswith(".zero_k_bias")}
    assert dropped({**published, **legacy}, TRANSFORMER_KEYS) == legacy.keys() | constant
    assert own_shapes(published, TRANSFORMER_KEYS) == shapes(transformer_on_meta(PRESETS[name]))


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
@pytest.mark.parametrize("form", ["wrapped", "unwrapped"])
def test_each_key_of_a_tokenizer_is_loaded_or_dropped_for_a_reason(name: str, form: str) -> None:
    published = PUBLISHED[TOKENIZER_NAMES[name]]
    if form == "unwrapped":
        plain = [key.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias") for key in published]
        plain = [key.replace(".norm.weight", ".weight").replace(".norm.bias", ".bias") for key in plain]
        assert len(set(plain)) == len(published)
        published = dict(zip(plain, published.values(), strict=True))
    assert dropped(published, TOKENIZER_KEYS) == {"quantizer.lfq.mask", "quantize.lfq.mask"}
    with torch.device("meta"):
        own = shapes(ImageTokenizer(TOKENIZERS[name].config()))
    assert own_shapes(published, TOKENIZER_KEYS) == own


@pytest.mark.parametrize("name", PRESETS)
def test_full_size_construction_has_the_published_number_of_parameters(name: str) -> None:
    preset = PRESETS[name]
    resolution = published_resolution(preset.size)
    with torch.device("meta"):
        transformer = InfinityTransformer(preset.transformer_config(resolution), resolution.schedule)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    digits = len(BILLIONS[name].partition(".")[2])
    assert f"{count / 1e9:.{digits}f}" == BILLIONS[name]


def test_tokenizers_have_the_published_number_of_parameters() -> None:
    counted = {}
    for name in ("d32reg", "d56_f8_14_patchify"):
        with torch.device("meta"):
            tokenizer = ImageTokenizer(TOKENIZERS[name].config())
        counted[name] = round(sum(p.numel() for p in tokenizer.parameters()) / 1e6, 1)
    assert counted == {"d32reg": 110.1, "d56_f8_14_patchify": 81.6}
