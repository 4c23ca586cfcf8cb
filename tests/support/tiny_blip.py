"""A BLIP that answers questions, small enough for tests, with ids of a few of bert-base-uncased's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BlipConfig, BlipForQuestionAnswering

from ttsvar_ray.evaluate.question_judge import FIRST_ID

IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "?": 1029, "the": 1996, "a": 1037}
IDS |= {"on": 2006, "two": 2048, "no": 2053, "red": 2417, "green": 2665, "yes": 2748, "table": 2795}
IDS |= {"bus": 3902, "wooden": 4799, "cat": 4937, "apples": 18108}
"""Of bert-base-uncased."""


def save_blip(path: Path, *, size: int = 32, weights: dict[str, Any] | None = None) -> Path:
    """Save a tiny BLIP with random weights, or with those given, in a new folder."""
    torch.manual_seed(0)
    width = {"hidden_size": 16, "num_hidden_layers": 2}
    vision = {
        **width,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 16,
    }
    text = {**width, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": FIRST_ID + 1}
    text |= {"encoder_hidden_size": 16, "is_decoder": True}
    network = BlipForQuestionAnswering(
        BlipConfig(vision_config={**vision, "layer_norm_eps": 1e-6}, text_config=text)
    )
    if weights is not None:
        network.load_state_dict(weights)
    else:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(path)
    names = {index: word for word, index in IDS.items()}
    (path / "vocab.txt").write_text(
        "\n".join(names.get(i, f"[unused{i}]") for i in range(FIRST_ID - 1)) + "\n"
    )
    return path
