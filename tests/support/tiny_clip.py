"""Small CLIP and SigLIP directories as transformers saves them, with CLIP's own token ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

TOKENS = Path(__file__).parents[1] / "data" / "clip_bpe"


def save_clip(folder: Path, *, activation: str = "quick_gelu", tokenizer: bool = True) -> CLIPModel:
    """Write a CLIP of 28 x 28 pixels with random weights to `folder`; return it."""
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": activation}
    config = CLIPConfig(
        projection_dim=24,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "image_size": 28,
            "patch_size": 7,
            **tower,
        },
        text_config={"hidden_size": 16, "intermediate_size": 32, **tower},
    )
    torch.manual_seed(4)
    model = CLIPModel(config).eval()
    # As initialised, so small a network maps everything to nearly one point.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.logit_scale.data.fill_(4.6)
    model.save_pretrained(folder)
    if tokenizer:
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(TOKENS / name, folder / name)
    return model


def save_siglip(folder: Path) -> SiglipModel:
    """Write a whole SigLIP (both towers) of 42 x 42 pixels with random weights to `folder`; return it."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={"image_size": 42, "patch_size": 14, **tower},
        text_config={"vocab_size": 50, "projection_size": 32, **tower},
    )
    torch.manual_seed(5)
    model = SiglipModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model
