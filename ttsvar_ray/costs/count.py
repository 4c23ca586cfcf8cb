"""A model's costs, counted from its own modules on the meta device: no weights, no arithmetic.

Blocks are alike, so everything counted is a straight line over the depth: a model is built with two and
with three blocks, and the line is followed to the real number.

Whatever runs is traced operation by operation: FLOPs, memory traffic and live bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from ttsvar_ray.costs.model import DecodeCost, ModelCost, ScaleCost, TextCost
from ttsvar_ray.models.autoencoder import decode_rows
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.state import ScaleState

aten = torch.ops.aten

_FLOPS: dict[Any, Callable[..., int]] = {
    aten.linear: lambda out, x, weight, *_: 2 * out.numel() * weight.shape[1],
    aten.conv2d: lambda out, x, weight, *_: 2 * out.numel() * weight[0].numel(),
    aten.matmul: lambda out, x, *_: 2 * out.numel() * x.shape[-1],
}
"""Of operations that torch's own table knows by their parts only."""

_READ_TWICE = frozenset({aten.group_norm, aten.native_group_norm})
"""Once for the statistics, once for the values."""


class Trace(TorchDispatchMode):
    """What ran while this was entered; a multiplication and an addition are two FLOPs.

    Attributes:
        flops: of matrices and convolutions.
        attention_flops: of attention without a mask.
        masked_flops: of attention under a mask, that is to a padded text.
        masked_tokens: length of that text; 0 where there was none.
        traffic_bytes: read and written by everything else.
        live_bytes, peak_bytes: of tensors made since it was entered, now and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.attention_flops = self.masked_flops = self.masked_tokens = 0
        self.traffic_bytes = self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _tensors((args, kwargs or {}))
        for tensor in given:
            storage = tensor.untyped_storage()
            self._known.setdefault(storage._cdata, weakref.ref(storage))
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _FLOPS:
            self.flops += _FLOPS[packet](out, *args)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif fresh := [tensor for tensor in _tensors(out) if self._is_new(tensor)]:
            read = [*given, given[0]] if packet in _READ_TWICE else given
            self.traffic_bytes += sum(tensor.nbytes for tensor in (*read, *fresh))
        for tensor in _tensors(out):
            if self._is_new(tensor):
                self._count(tensor.untyped_storage())
        return out

    def _is_new(self, tensor: Tensor) -> bool:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known is None or known() is None

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def ended(_: Any) -> None:
            self.live_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, ended)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class _LikeAGpu(TorchFunctionMode):
    """What the meta device lacks: attention that keeps no scores, and autocast around a decoder."""

    def __init__(self, trace: Trace, narrow: torch.dtype | None) -> None:
        super().__init__()
        self._trace, self._narrow = trace, narrow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if self._narrow is not None and func is torch.conv2d:
            x, *weights = args[:3]
            # Weights are cast once, not at every call: their copies are no part of an image's bytes.
            narrow = [None if w is None else torch.empty_like(w, dtype=self._narrow) for w in weights]
            return self._convolve(func, x.to(self._narrow), *narrow, *args[3:], **kwargs)
        if self._narrow is not None and func is F.group_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)

    @staticmethod
    def _convolve(convolve: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run a convolution with what its library takes besides: copies with the channels last."""
        lies_so = x.is_contiguous(memory_format=torch.channels_last)
        copies = [] if lies_so else [torch.empty_like(x)]
        out: Tensor = convolve(x, *args, **kwargs)
        copies += [] if lies_so else [torch.empty_like(out)]
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        flops = 2 * q.numel() * (k.shape[-2] + v.shape[-2])
        if attn_mask is None:
            self._trace.attention_flops += flops
        else:
            self._trace.masked_flops += flops
            self._trace.masked_tokens = k.shape[-2]
        return torch.empty_like(q)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


@contextlib.contextmanager
def tracing(*, narrow: torch.dtype | None = None) -> Iterator[Trace]:
    """Count what runs on the meta device as a GPU would run it.

    Args:
        narrow: number format of convolutions, where the real code runs them under autocast.
    """
    trace = Trace()
    with torch.inference_mode(), _LikeAGpu(trace, narrow), trace:
        yield trace


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
                passes=1 + index if model.sampling.begins_unconditional(index) else 1,
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
