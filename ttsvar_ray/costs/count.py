"""A model's costs, counted from its own modules on the meta device: no weights, no arithmetic.

Blocks are alike, so everything counted is a straight line over the depth: a model is built with two and
with three blocks, and the line is followed to the real number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ttsvar_ray.costs.model import DecodeCost, ModelCost, ScaleCost, TextCost
from ttsvar_ray.costs.trace import tracing
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.decoding import decode_rows
from ttsvar_ray.models.state import ScaleState

_DEPTHS = (2, 3)
"""Two at least: the last scale holds the caches of two blocks at a time."""

_TEXT = "0"
"""Understood by models of texts and of classes."""


def count_model(make: Callable[[int], CachedModel], depth: int) -> ModelCost:
    """Return what a model costs.

    Args:
        make: number of blocks -> the model on the meta device.
        depth: blocks of the model that is meant.
    """
    model, (few, more) = make(depth), (make(blocks) for blocks in _DEPTHS)
    parts = {"transformer": model.transformer, "image tokenizer": model.tokenizer}
    scales = _follow(count_scales(few), count_scales(more), depth - _DEPTHS[0])
    return ModelCost(
        depth=depth,
        element_bytes=model.block_dtype.itemsize,
        scales=scales,
        text=_count_text(model),
        decodes={size: _count_decode(few, size) for size in ("full", "selector")},
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        weight_bytes={name: _weight_bytes(part) for name, part in parts.items()},
        block_bytes=depth * (_weight_bytes(more.transformer) - _weight_bytes(few.transformer)),
    )


def _follow(few: Any, more: Any, steps: int) -> Any:
    """Return the values `steps` steps from `few` to `more`, number by number."""
    if dataclasses.is_dataclass(few):
        names = [field.name for field in dataclasses.fields(few)]
        own = {name: _follow(getattr(few, name), getattr(more, name), steps) for name in names}
        return dataclasses.replace(few, **own)  # type: ignore[type-var]
    if isinstance(few, tuple):
        return tuple(_follow(one, other, steps) for one, other in zip(few, more, strict=True))
    if isinstance(few, dict):
        return {key: _follow(few[key], more[key], steps) for key in few}
    return few + steps * (more - few)


def count_scales(model: CachedModel) -> tuple[ScaleCost, ...]:
    """Return what each scale costs a model on the meta device as it is."""
    state = model.start(model.encode_text([_TEXT]), [0])
    # Tables that a model makes once belong to no scale.
    model.advance(state, _uniforms(model, 0))
    scales: list[ScaleCost] = []
    cumulative = 0
    for index, (height, width) in enumerate(model.scale_schedule):
        held, cumulative = _bytes(state), cumulative + height * width
        uniforms = _uniforms(model, index)
        with tracing() as trace:
            state = model.advance(state, uniforms)
        # Nothing reads the last scale's own keys: they are counted, though nobody keeps them.
        cached = state.cache.num_tokens
        scales.append(
            ScaleCost(
                tokens=height * width,
                cumulative_tokens=cumulative,
                linear_flops=trace.flops,
                attention_flops=trace.attention_flops,
                text_attention_flops=trace.masked_flops,
                text_tokens=trace.masked_tokens,
                kv_bytes=state.cache.nbytes * cumulative // cached if cached else 0,
                state_bytes=_bytes(state),
                running_bytes=held + trace.peak_bytes,
            )
        )
    return tuple(scales)


def _count_text(model: CachedModel) -> TextCost:
    with tracing() as trace:
        text = model.encode_text([_TEXT])
        held = trace.live_bytes
    del text
    return TextCost(flops=trace.flops, held_bytes=held, running_bytes=trace.peak_bytes)


def _count_decode(model: CachedModel, size: str) -> DecodeCost:
    summed = model.start(model.encode_text([_TEXT]), [0]).summed
    with tracing(narrow=None if model.block_dtype == torch.float32 else model.block_dtype) as trace:
        height, width = model.decode_float(summed, size=size).shape[-2:]
    return DecodeCost(
        height=height,
        width=width,
        rows=decode_rows(height, width),
        flops=trace.flops + trace.attention_flops,
        traffic_bytes=trace.traffic_bytes,
        peak_bytes=trace.peak_bytes,
    )


def _uniforms(model: CachedModel, scale_index: int) -> np.ndarray:
    height, width = model.scale_schedule[scale_index]
    return np.zeros((1, height * width * model.bits_per_token), dtype=np.float32)


def _bytes(state: ScaleState) -> int:
    return state.cache.nbytes + state.summed.nbytes + sum(bits.nbytes for bits in state.bits)


def _weight_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
