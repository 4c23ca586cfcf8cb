"""Each entry is complete: a loader that takes what it is given, files, a licence, costs as counted."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel

from ttsvar_ray.own_code import named_object
from ttsvar_ray.rewards.blip import PUBLISHED_IMAGE_REWARD, BlipRewardNetwork
from ttsvar_ray.rewards.clip import VIT_H_14
from ttsvar_ray.rewards.registry import REWARDS, RewardEntry

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
GIVEN = {"name": "x", "preprocessing": "published", "device": "cpu", "dtype": torch.float32}

entries = pytest.mark.parametrize("entry", REWARDS.values(), ids=REWARDS)


@entries
def test_the_loader_takes_what_it_is_given(entry: RewardEntry) -> None:
    loader = named_object(entry.loader)
    if entry.has_folder:
        inspect.signature(loader).bind(Path("folder"), **GIVEN, **entry.settings)
    else:
        assert loader(**entry.settings).name == entry.name


@entries
def test_the_page_names_it_and_its_files(entry: RewardEntry) -> None:
    assert f"`{entry.name}`" in PAGE
    assert entry.weights.licence
    for files in entry.weights.files:
        for name in files.names:
            assert f"`{Path(files.folder) / name}`" in PAGE, name


@entries
def test_what_its_settings_name_is_fetched(entry: RewardEntry) -> None:
    fetched = {name for files in entry.weights.files for name in files.names}
    named = {value for value in entry.settings.values() if str(value).endswith((".pt", ".pth"))}
    assert named <= fetched
    # The built-in model brings its own; a reward without a folder has none.
    assert bool(fetched) == (entry.name not in ("shapes", "constant"))


def counted(network: nn.Module, **inputs: Tensor) -> float:
    """Return the FLOPs of one forward; on the meta device, so nothing is computed."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops()


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def clip(config: CLIPConfig) -> tuple[int, float, float]:
    """Return the parameters, the FLOPs of an image and those of a text."""
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = CLIPModel(config)
        image = counted(model.vision_model, pixel_values=torch.empty(1, 3, 224, 224))
        text = counted(model.text_model, input_ids=torch.zeros(1, 77, dtype=torch.long))
    return parameters(model), image, text


def vit_l_14() -> CLIPConfig:
    return CLIPConfig(
        projection_dim=768,
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        text_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    )


@pytest.mark.parametrize(
    ("name", "config"), [("hps-v2.1", VIT_H_14.transformers()), ("clip-score", vit_l_14())]
)
def test_clips_cost_is_what_its_modules_have(name: str, config: CLIPConfig) -> None:
    cost = REWARDS[name].weights.cost
    assert cost is not None
    count, image, text = clip(config)
    assert cost.parameters == pytest.approx(count, rel=0.005)
    assert cost.image_flops == pytest.approx(image, rel=0.02)
    assert cost.text_flops == pytest.approx(text, rel=0.02)


def test_image_rewards_cost_is_what_its_modules_have() -> None:
    # Its text tower cannot run on the meta device; its FLOPs are counted from its sizes in tests/unit/costs.
    cost = REWARDS["image-reward"].weights.cost
    assert cost is not None
    with torch.device("meta"):
        network = BlipRewardNetwork(PUBLISHED_IMAGE_REWARD)
    assert cost.parameters == pytest.approx(parameters(network), rel=0.01)


def test_siglips_cost_is_what_its_modules_have() -> None:
    cost = REWARDS["aesthetic-v2.5"].weights.cost
    assert cost is not None
    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        network = SiglipVisionModel(config)
        flops = counted(network, pixel_values=torch.empty(1, 3, 384, 384))
    assert cost.parameters == pytest.approx(parameters(network), rel=0.005)
    assert cost.image_flops == pytest.approx(flops, rel=0.02)
