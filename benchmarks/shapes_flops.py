"""FLOPs of one prompt on the built-in model: transformer, decoder, reward and features together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ttsvar_ray.costs import ComponentFlops, TransformerShape, plan_cost
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.directory import parse_tokenizer
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.search.plan import Plan

IMAGES = 8
"""Measured together, so that padding of small batches does not count."""


def _counted(body: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        body()
    return counter.get_total_flops() / IMAGES


@cache
def component_flops(model: str) -> ComponentFlops:
    """Count decoder, reward and features of one image by running them."""
    description = describe_model(model)
    config, quantizer = parse_tokenizer(description.tokenizer, description.scale_schedule)
    tokenizer = ImageTokenizer(config)
    features = torch.zeros(IMAGES, config.codebook_dim, *quantizer.map_size(-1))
    images = np.zeros((IMAGES, description.image_height, description.image_width, 3), dtype=np.uint8)
    reward = build_reward("shapes", path=description.reward_path)
    extractor = build_extractor("pca", backbone=description.backbone_path)
    decode = _counted(lambda: tokenizer.decode(features))
    return ComponentFlops(
        decode=decode,
        selector_decode=decode,
        embed=_counted(lambda: extractor.extract(images)),
        score=_counted(lambda: reward.score(images, ["a ring"] * IMAGES)),
    )


def prompt_flops(plan: Plan, model: str) -> float:
    """Return the FLOPs of one prompt under a plan, everything counted but the text encoder."""
    description = describe_model(model)
    sizes = TransformerConfig.from_json(description.transformer)
    shape = TransformerShape(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        ffn_dim=sizes.ffn_dim,
        bits_per_token=sizes.bits_per_token,
        text_length=sizes.text_max_length,
        guidance=True,
        kv_element_bytes=4,
    )
    return plan_cost(plan, shape, component_flops(model)).flops
