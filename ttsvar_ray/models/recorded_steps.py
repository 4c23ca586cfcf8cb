"""Passes that are recorded once and played again: kernels of small scales then wait for no host.

A pass over the coarse scales is hundreds of kernels of a few microseconds; a host needs ten times as long to
start them one by one. A CUDA graph starts all of them at once, and always reads and writes the memory that it
was recorded with. So what such a pass reads is copied to memory of a fixed address first, and the cache that
it grows is copied there, too (`Arena`, `CacheArena`). One cache at a time has that memory: its tokens are
copied elsewhere before another one gets it.

What is computed does not change: the same kernels run on the same numbers.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.layers import Extend, extending_layers
from ttsvar_ray.models.protocol import RECORDED_TOKENS
from ttsvar_ray.models.state import FreshTokens, KVCache, Memory

MOST_RECORDED = 192
"""Passes that are kept; the one that was played longest ago is forgotten first."""

_ALIGNMENT = 256

_log = logging.getLogger(__name__)


def is_small(rows: int, tokens: int) -> bool:
    """Whether a pass of so many rows, of so many tokens each, is recorded."""
    return rows * tokens <= RECORDED_TOKENS


def recorded_capacity(
    token_counts: Sequence[int], scale_index: int, *, rows: int, capacity: int | None
) -> int | None:
    """Return the tokens to make room for where passes are recorded: no further than that goes on.

    Args:
        token_counts: n of every scale.
        scale_index: the scale that runs.
        rows: R.
        capacity: what the cache would have room for otherwise; None keeps nothing.
    """
    if capacity is None:
        return None
    total = sum(token_counts[: scale_index + 1])
    for tokens in token_counts[scale_index + 1 :]:
        if total + tokens > capacity or not is_small(rows, tokens):
            break
        total += tokens
    return total


class Recorder(Protocol):
    """Makes a pass repeatable."""

    def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what does once more what `call` does, with the memory that it reads and writes now.

        What it returns is overwritten when it is played again.
        """
        ...


_SPARE_BYTES = 2 * 10**9
"""Of a GPU, free beside what the allocator keeps: more than the intermediate results of a recorded pass."""


class _CudaRecorder:
    """Records CUDA graphs; they share the memory of their intermediate results, since one runs at a time."""

    def __init__(self) -> None:
        # One for all recordings: libraries keep a workspace for each stream that they have worked on.
        self._stream: Any = None
        # Shared memory lasts as long as some graph that was recorded with it.
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()

    def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        graph, pool = torch.cuda.CUDAGraph(), next((each.pool() for each in self._graphs), None)
        with torch.cuda.stream(self._stream):
            # Libraries choose and compile their kernels at the first call, which no recording can hold.
            call()
            torch.cuda.synchronize()
            # torch.cuda.graph would hand back all memory that is kept each time, for others to take anew.
            if torch.cuda.mem_get_info()[0] < _SPARE_BYTES:
                torch.cuda.empty_cache()
            # Other threads (image files, random numbers) may go on meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = call()
            finally:
                graph.capture_end()
        self._graphs.add(graph)

        def play() -> Tensor:
            graph.replay()
            return result

        return play


def cuda_recorder(setting: str, device: str) -> _CudaRecorder | None:
    """Return what records passes on a device; None where none are recorded.

    Args:
        setting: `engine.cuda_graphs`: "auto", "always" or "never".
        device: "cpu", "cuda", ...

    Raises:
        ConfigurationError: graphs are asked for on another device.
    """
    if setting == "always" and device != "cuda":
        raise ConfigurationError(
            f"engine.cuda_graphs: 'always' needs a CUDA device, but the model is on {device!r}; use 'auto'"
        )
    return _CudaRecorder() if device == "cuda" and setting != "never" else None


class Arena:
    """Memory of a fixed address; it is replaced by a larger piece when somebody needs more.

    Attributes:
        generation: rises with each new piece of memory; what was recorded with an earlier one is void.
    """

    def __init__(self) -> None:
        self._flat: Tensor | None = None
        self.generation = 0

    def tensors(
        self, shapes: Sequence[tuple[Sequence[int], torch.dtype]], device: torch.device
    ) -> list[Tensor]:
        """Return tensors of these shapes, one behind the other from the beginning; what they hold is old."""
        starts, end = [], 0
        for shape, dtype in shapes:
            starts.append(end)
            end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        if self._flat is None or self._flat.numel() < end or self._flat.device != device:
            self._flat = None
            self._flat = torch.empty(end, dtype=torch.uint8, device=device)
            self.generation += 1
        return [
            self._flat[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))
            for start, (shape, dtype) in zip(starts, shapes, strict=True)
        ]


class CacheArena:
    """An arena with the keys and values of one cache at a time."""

    def __init__(self) -> None:
        self._arena = Arena()
        self._owner: weakref.ref[Memory] | None = None

    @property
    def generation(self) -> int:
        """See `Arena`."""
        return self._arena.generation

    def moved(self, cache: KVCache, fresh: FreshTokens, *, capacity: int) -> KVCache:
        """Return a cache of the same tokens in this memory.

        Args:
            cache: as it is.
            fresh: the tokens that it will take up; not yet taken up here.
            capacity: tokens to make room for, at least.
        """
        owner = None if self._owner is None else self._owner()
        memory = cache.memory
        capacity = max(capacity, cache.num_tokens)
        if (
            memory is not None
            and memory is owner
            and memory.taken == cache.num_tokens
            and memory.tensor.shape[-2] >= capacity
            and memory.tensor.shape[2] == fresh.streams
        ):
            return cache
        if owner is not None:
            # Whoever still has a cache here keeps its tokens.
            owner.tensor = owner.tensor[..., : owner.taken, :].clone()
        shape = (fresh.layers, 2, fresh.streams, fresh.rows, fresh.heads, capacity, fresh.width)
        (tensor,) = self._arena.tensors([(shape, fresh.dtype)], fresh.device)
        if memory is not None:
            tensor[..., : cache.num_tokens, :] = cache.tensor[:, :, : fresh.streams]
        moved = Memory(tensor, cache.num_tokens)
        self._owner = weakref.ref(moved)
        return KVCache(moved, cache.num_tokens)


Pass = Callable[[tuple[Tensor, ...], Callable[[int], Extend]], Tensor]
"""From inputs, and how each layer takes up its keys and values, to a result."""


class RecordedSteps:
    """Runs the passes of a transformer; those that it has seen before, from a recording.

    Args:
        recorder: how passes are made repeatable.
        must_record: whether a recording that fails is an error; else passes go on without, and the log says
            so once.
    """

    def __init__(self, recorder: Recorder, *, must_record: bool = True) -> None:
        self._recorder: Recorder | None = recorder
        self._must_record = must_record
        self._arena = CacheArena()
        self._generation = 0
        self._known: OrderedDict[Hashable, tuple[tuple[Tensor, ...], Callable[[], Tensor]] | None] = (
            OrderedDict()
        )
        self.played = 0
        """Passes that came from a recording."""

    def forget(self) -> None:
        """Drop all recordings and the memory for caches; caches that are in use keep theirs."""
        self._known.clear()
        self._arena, self._generation = CacheArena(), 0

    def run(
        self,
        name: Hashable,
        call: Pass,
        inputs: Sequence[Tensor],
        cache: KVCache,
        fresh: FreshTokens,
        *,
        capacity: int | None,
    ) -> tuple[Tensor, KVCache]:
        """Run one pass.

        Args:
            name: of everything that decides what it computes and is neither an input's values or shape nor
                the size of the cache; what else it reads must lie at an address that belongs to the name.
            inputs: what it reads anew each time.
            cache: keys and values so far.
            fresh: the tokens that it adds to them.
            capacity: tokens to make room for; None: nothing of this pass is kept.

        Returns:
            The result, and the cache with what was kept.
        """
        total = cache.num_tokens + fresh.tokens
        placed = self._arena.moved(cache, fresh, capacity=0 if capacity is None else max(capacity, total))
        if self._arena.generation != self._generation:
            # Recordings are void; that a pass was seen still counts.
            self._known = OrderedDict.fromkeys(self._known)
            self._generation = self._arena.generation
        kept = placed if capacity is None else placed.grown(fresh, capacity=capacity)
        assert kept.memory is not None
        assert placed.memory is kept.memory, "the arena has room"
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        key = (name, capacity is None, cache.num_tokens, tuple(kept.memory.tensor.shape), shapes)
        recorded = self._known.get(key)
        if recorded is None and key in self._known:
            # Under a memory object of its own, which nobody moves away when the cache has to go.
            fixed = KVCache(Memory(kept.memory.tensor, kept.num_tokens), kept.num_tokens)
            static = tuple(tensor.clone() for tensor in inputs)
            extend = extending_layers(fixed, keeps=capacity is not None)
            play = self._record(lambda: call(static, extend))
            recorded = None if play is None else (static, play)
        # The first time is not worth a recording: it may be the last.
        self._remember(key, recorded)
        if recorded is None:
            return call(tuple(inputs), extending_layers(kept, keeps=capacity is not None)), kept
        static, play = recorded
        for mine, given in zip(static, inputs, strict=True):
            mine.copy_(given)
        self.played += 1
        return play().clone(), kept

    def _record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
        if self._recorder is None:
            return None
        try:
            return self._recorder.record(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._must_record:
                raise
            reason = " ".join(str(error).split())[:300]
            _log.warning("engine.cuda_graphs: a recording failed, passes go on without: %s", reason)
            self._recorder = None
            return None

    def _remember(
        self, key: Hashable, recorded: tuple[tuple[Tensor, ...], Callable[[], Tensor]] | None
    ) -> None:
        self._known[key] = recorded
        self._known.move_to_end(key)
        while len(self._known) > MOST_RECORDED:
            self._known.popitem(last=False)
