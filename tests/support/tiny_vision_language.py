"""Tiny random models of the Qwen-VL families, with a tokenizer of a few words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

FAMILIES = ("qwen2.5-vl", "qwen3-vl")
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SAID = "system user assistant You are a helpful Does this figure show Please answer yes or no red blue"
WORDS = re.findall(r"\w+", SAID)


def save_vision_language(path: Path, family: str = "qwen3-vl") -> Path:
    """Save a model of one of `FAMILIES` in a new folder and return that."""
    path.mkdir(parents=True)
    vocabulary = save_tokenizer(path)
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": len(vocabulary),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    tokens = {
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
    }
    torch.manual_seed(0)
    network: Any
    if family == FAMILIES[0]:
        vision_config = {**vision, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(vision_config=vision_config, text_config=text, **tokens)
        network, patch = Qwen2_5_VLForConditionalGeneration(config), 14
    else:
        vision_config = {**vision, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        network = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(vision_config=vision_config, text_config=text, **tokens)
        )
        patch = 16
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(path)
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    return path


def save_tokenizer(path: Path) -> dict[str, int]:
    """Save a tokenizer of the family's marks and a few words; return its vocabulary."""
    words = ["<unk>", *MARKS, *WORDS, '"', "?", ".", "Yes", "No", "three", "1"]
    vocabulary = {word: index for index, word in enumerate(words)}
    by_word = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    by_word.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=by_word, unk_token="<unk>", additional_special_tokens=MARKS
    )
    tokenizer.save_pretrained(path)
    return vocabulary
