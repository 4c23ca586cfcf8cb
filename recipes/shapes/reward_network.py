"""The shapes reward before training: its sizes, its words, its first weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import BertTokenizer

from recipes.shapes.architecture import IMAGE_SIZE
from ttsvar_ray.rewards.blip import BlipRewardConfig, BlipRewardNetwork, TextSize, VisionSize
from ttsvar_ray.shapes.world import MAX_WORDS, VOCABULARY

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUNCTUATION = (".", ",")
PATCH_SIZE = 6
TEXT_TOKENS = 16
"""Thirteen words, [CLS], [SEP], and room for punctuation."""
assert MAX_WORDS + 3 <= TEXT_TOKENS

POSITION_SCALE = 0.25
"""Amplitude of the first position codes: coordinates are there from the first step on."""


def build_reward_tokenizer() -> BertTokenizer:
    """Return a BERT tokenizer whose words are the world's vocabulary; other words become [UNK]."""
    words = (*SPECIAL_TOKENS, *PUNCTUATION, *VOCABULARY)
    return BertTokenizer(
        vocab={word: index for index, word in enumerate(words)}, model_max_length=TEXT_TOKENS
    )


def reward_config() -> BlipRewardConfig:
    """Return the sizes of the shapes reward: ImageReward's structure with 2 million parameters."""
    words = len(SPECIAL_TOKENS) + len(PUNCTUATION) + len(VOCABULARY)
    return BlipRewardConfig(
        name="shapes",
        vision=VisionSize(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text=TextSize(
            vocab_size=words,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
        ),
        head_widths=(1,),
        max_text_tokens=TEXT_TOKENS,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.25, 0.25, 0.25),
    )


def new_reward_network(config: BlipRewardConfig) -> BlipRewardNetwork:
    """Return a network with first weights fit for training from nothing.

    The defaults of transformers are meant for loading: they start the vision tower at almost zero.
    """
    network = BlipRewardNetwork(config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
    embeddings = network.vision.embeddings
    grid = config.vision.image_size // config.vision.patch_size
    with torch.no_grad():
        nn.init.normal_(embeddings.class_embedding, std=0.1)
        embeddings.position_embedding.zero_()
        embeddings.position_embedding[0, 1:] = POSITION_SCALE * grid_code(grid, config.vision.hidden_size)
        # Small residual branches at the start: without them a small learning rate would be needed.
        for name, parameter in network.vision.named_parameters():
            if name.endswith(("self_attn.projection.weight", "mlp.fc2.weight")):
                parameter.mul_(0.3)
    return network


def grid_code(grid: int, width: int) -> Tensor:
    """Return float32 [grid * grid, width] sines and cosines of the patch centres' x and y."""
    quarter = width // 4
    frequencies = math.pi * torch.exp(torch.linspace(0, math.log(grid), quarter))
    places = (torch.arange(grid) + 0.5) / grid
    phases = places[:, None] * frequencies[None]
    one_axis = torch.cat([phases.sin(), phases.cos()], dim=1)
    down = one_axis[:, None].expand(grid, grid, -1)
    across = one_axis[None].expand(grid, grid, -1)
    return torch.cat([across, down], dim=-1).reshape(grid * grid, width)
