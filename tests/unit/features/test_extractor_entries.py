"""Each entry is complete: a loader that takes what it is given, files, a licence, costs as counted."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from ttsvar_ray.features.inception import InceptionNetwork
from ttsvar_ray.features.registry import EXTRACTORS, ExtractorEntry
from ttsvar_ray.own_code import named_object
from ttsvar_ray.types import Precision, Preprocessing

PAGE = (Path(__file__).parents[3] / "docs" / "features.md").read_text()

entries = pytest.mark.parametrize("entry", EXTRACTORS.values(), ids=EXTRACTORS)


@entries
def test_the_loader_takes_what_it_is_given(entry: ExtractorEntry) -> None:
    sign = {"pca_sign": "published"} if entry.reads_sign else {}
    loader = inspect.signature(named_object(entry.loader))
    given = {"preprocessing": Preprocessing.PUBLISHED, "precision": Precision.FLOAT32}
    loader.bind(Path("file"), device="cpu", **given, **sign)


@entries
def test_the_page_names_it_and_where_its_network_is_from(entry: ExtractorEntry) -> None:
    assert f"`{entry.name}`" in PAGE
    assert entry.weights.licence in PAGE
    for files in entry.weights.files:
        source = files.source.removeprefix("https://").removesuffix(files.names[0])
        assert f"`{source}`" in PAGE


def test_only_one_extractor_is_reduced_by_the_selection() -> None:
    assert [entry.name for entry in EXTRACTORS.values() if entry.is_joint] == ["pca_all"]


def dinov2() -> nn.Module:
    config = Dinov2WithRegistersConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14
    )
    config._attn_implementation = "eager"
    return Dinov2WithRegistersModel(config)


@pytest.mark.parametrize(
    ("name", "make", "side"), [("pca", dinov2, 224), ("inception", InceptionNetwork, 299)]
)
def test_the_cost_is_what_its_modules_have(name: str, make: type[nn.Module], side: int) -> None:
    cost = EXTRACTORS[name].weights.cost
    assert cost is not None
    with torch.device("meta"):
        network = make().eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    assert cost.image_flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    # InceptionV3's file also holds two classifiers that are not read.
    if name == "pca":
        count = sum(parameter.numel() for parameter in network.parameters())
        assert cost.parameters == pytest.approx(count, rel=0.005)
