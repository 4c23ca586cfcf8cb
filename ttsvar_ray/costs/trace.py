"""FLOPs, memory traffic and live bytes of whatever runs, counted operation by operation.

Made for the meta device, where modules run without weights and without arithmetic; live bytes are counted
on any device.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

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
            args = (x.to(self._narrow), *narrow, *args[3:])
        elif self._narrow is not None and func is F.group_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)

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
