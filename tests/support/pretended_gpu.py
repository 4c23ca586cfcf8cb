"""A GPU that is not there: torch's fake tensors, which have a device, a shape and a dtype but no numbers.

Whole models run on it where torch has no CUDA: an operation between devices raises, and so does a number that
the host would need to go on. What the host waits for on a GPU is written down: copies from there, and copies
to there that do not go through pinned memory.
"""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
_IN_PLACE = ("copy_", "fill_", "masked_fill_", "zero_")
_COMPUTES = ("linear", "relu", "scaled_dot_product_attention", "silu")
"""Of a transformer and a decoder, beside kernels that know their device by themselves."""


@dataclass
class Waits:
    """What happened.

    Attributes:
        on_gpu: where the code of this package waited for the GPU, "file function", in order.
        current: the devices that were the current one while layers computed.
    """

    on_gpu: list[str] = field(default_factory=list)
    current: set[int] = field(default_factory=set)

    def taken(self) -> list[str]:
        """Return the waits so far, and begin anew."""
        found, self.on_gpu = self.on_gpu, []
        return found


class _Watched(TorchFunctionMode):
    def __init__(self, device: torch.device, waits: Waits) -> None:
        super().__init__()
        self._device, self._waits = device, waits
        self.current = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named, name = named or {}, getattr(function, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in _COMPUTES:
            self._waits.current.add(self.current)
        if name == "tensor" and torch.device(named.get("device") or "cpu").type == "cuda":
            self._wait()
        if first is None:
            return function(*args, **named)
        if name == "pin_memory":
            return first
        if name == "numpy":
            assert first.device.type == "cpu", "a tensor of a GPU is no array"
            return np.zeros(tuple(first.shape), str(first.dtype).removeprefix("torch."))
        if name == "to" and (target := self._target(args[1:], named)) is not None:
            return self._moved(first, target, args[1:], named)
        if name == "cpu" and first.device.type == "cuda":
            self._wait()
        return self._on_gpu(function, name, first, args, named)

    def _on_gpu(self, function: Any, name: str, first: Tensor, args: Any, named: dict[str, Any]) -> Any:
        """Call what torch without CUDA has only below Python's own methods."""
        if first.device.type != "cuda":
            return function(*args, **named)
        if name == "__getitem__":
            return _picked(*args)
        if name == "__setitem__":
            place, value = _picked(first, args[1]), args[2]
            return aten.copy_(place, value) if isinstance(value, Tensor) else aten.fill_(place, value)
        if name == "interpolate" and named.get("mode") == "bicubic":
            return torch.empty((*first.shape[:2], *named["size"]), dtype=first.dtype, device=first.device)
        if name == "__invert__":
            return aten.bitwise_not(first)
        if name == "contiguous":
            order = named.get("memory_format", torch.contiguous_format)
            lies_so = first.is_contiguous(memory_format=order)
            return first if lies_so else aten.clone(first, memory_format=order)
        if name in _IN_PLACE:
            return getattr(aten, name)(*args, **named)
        return function(*args, **named)

    @staticmethod
    def _target(args: Any, named: dict[str, Any]) -> torch.device | None:
        return next((each for each in (*args, *named.values()) if isinstance(each, torch.device)), None)

    def _moved(self, tensor: Tensor, target: torch.device, args: Any, named: dict[str, Any]) -> Tensor:
        dtype = next(
            (each for each in (*args, *named.values()) if isinstance(each, torch.dtype)), tensor.dtype
        )
        if target == tensor.device:
            return aten._to_copy(tensor, dtype=dtype) if dtype != tensor.dtype else tensor
        if target.type == "cuda":
            assert target == self._device, target
        if not named.get("non_blocking"):
            self._wait()
        return torch.empty(tensor.shape, dtype=dtype, device=target)

    def _wait(self) -> None:
        frames = [each for each in traceback.extract_stack() if "/ttsvar_ray/" in each.filename]
        self._waits.on_gpu.append(f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "?")


def _picked(tensor: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    places = [at for at, each in enumerate(index) if each is Ellipsis]
    if places:
        rest = tensor.dim() - sum(each is not None and each is not Ellipsis for each in index)
        index = (*index[: places[0]], *[slice(None)] * rest, *index[places[0] + 1 :])
    axis, by_tensor = 0, []
    for each in index:
        if each is None:
            tensor = aten.unsqueeze(tensor, axis)
        elif isinstance(each, slice):
            tensor = aten.slice(tensor, axis, each.start, each.stop, each.step or 1)
        elif isinstance(each, Tensor):
            by_tensor += [None] * (axis - len(by_tensor)) + [each]
        else:
            tensor, axis = aten.select(tensor, axis, int(each)), axis - 1
        axis += 1
    return aten.index(tensor, by_tensor) if by_tensor else tensor


@contextlib.contextmanager
def pretended_gpu(
    monkeypatch: pytest.MonkeyPatch, *modules: nn.Module, index: int = 0
) -> Iterator[tuple[torch.device, Waits]]:
    """Have modules on a GPU, whose numbers nobody knows, for as long as the context lasts.

    Args:
        modules: lose their weights.
        index: of the GPU; the current one is 0.
    """
    device, waits = torch.device("cuda", index), Waits()
    watched = _Watched(device, waits)

    @contextlib.contextmanager
    def current(chosen: torch.device | int) -> Iterator[None]:
        before = watched.current
        number = chosen.index if isinstance(chosen, torch.device) else chosen
        watched.current = before if number is None or number < 0 else number
        yield
        watched.current = before

    monkeypatch.setattr(torch.cuda, "device", current)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in itertools.chain.from_iterable(each.modules() for each in modules):
            _replace(module._parameters, lambda old: nn.Parameter(_like(old, device), requires_grad=False))
            _replace(module._buffers, lambda old: _like(old, device))
        with watched:
            yield device, waits


def _like(old: Tensor, device: torch.device) -> Tensor:
    return torch.empty(old.shape, dtype=old.dtype, device=device)


def _replace(tensors: dict[str, Any], make: Callable[[Tensor], Tensor]) -> None:
    for name, old in tensors.items():
        if old is not None:
            tensors[name] = make(old)
