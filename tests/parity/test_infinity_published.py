"""Every name of the published checkpoints has its place, at full size, without weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from ttsvar_ray.models.infinity.key_map import map_tokenizer_keys, map_transformer_keys
from ttsvar_ray.models.infinity.presets import PRESETS, TOKENIZERS, InfinityPreset
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer

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


def test_every_list_of_names_is_used() -> None:
    assert {*TRANSFORMERS.values(), *TOKENIZER_NAMES.values()} == set(PUBLISHED)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_each_key_of_a_transformer_is_loaded_or_dropped_for_a_reason(name: str) -> None:
    published = PUBLISHED[TRANSFORMERS[name]]
    legacy = {"lvl_1L": [1, 10], "attn_bias_for_masking": [1, 1, 10, 10]}
    keys = map_transformer_keys({**published, **legacy})
    assert keys.kept.keys() | keys.dropped.keys() == published.keys() | legacy.keys()
    assert not keys.kept.keys() & keys.dropped.keys()
    assert keys.dropped.keys() == legacy.keys()
    assert all(keys.dropped.values())
    own = shapes(transformer_on_meta(PRESETS[name]))
    assert {keys.kept[key]: shape for key, shape in published.items()} == own


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
@pytest.mark.parametrize("form", ["wrapped", "unwrapped"])
def test_each_key_of_a_tokenizer_is_loaded_or_dropped_for_a_reason(name: str, form: str) -> None:
    published = PUBLISHED[TOKENIZER_NAMES[name]]
    if form == "unwrapped":
        plain = [key.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias") for key in published]
        plain = [key.replace(".norm.weight", ".weight").replace(".norm.bias", ".bias") for key in plain]
        assert len(set(plain)) == len(published)
        published = dict(zip(plain, published.values(), strict=True))
    keys = map_tokenizer_keys(published)
    assert keys.kept.keys() | keys.dropped.keys() == published.keys()
    assert not keys.kept.keys() & keys.dropped.keys()
    assert keys.dropped.keys() == {"quantizer.lfq.mask", "quantize.lfq.mask"}
    assert all(keys.dropped.values())
    with torch.device("meta"):
        own = shapes(ImageTokenizer(TOKENIZERS[name].config()))
    assert {keys.kept[key]: published[key] for key in keys.kept} == own


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
