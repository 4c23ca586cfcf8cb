"""What an engine asks of a next-scale model.

    text  = model.encode_text(["a red circle", "two green squares"])
    state = model.start(text, text_rows=[0, 0, 0, 0, 1, 1, 1, 1])     # 4 trajectories of each
    for scale_index in range(model.num_scales):
        state = model.advance(state, uniforms)     # draws one scale of bits
        # any time: images = model.decode(state); state = model.gather(state, survivors)

A state is a value: `advance` and `gather` return new states and never change their argument.
Rows of a state are trajectories, possibly of many prompts; a row's result does not depend on which
other rows are in the batch.

A model that can also say how likely what it draws is has `advance_scored` (`ScoringModel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ttsvar_ray.types import Float32Array, Float64Array, ScaleSchedule, UInt8Array


class NextScaleModel(Protocol):
    """A next-scale (VAR) image generator over opaque states.

    Attributes:
        name: model name, written to the output rows.
        scale_schedule: (h, w) tokens of each scale.
        bits_per_token: bits in one token of any scale.
        image_height, image_width: pixels of a fully decoded image.
    """

    name: str
    scale_schedule: ScaleSchedule
    bits_per_token: int
    image_height: int
    image_width: int

    @property
    def num_scales(self) -> int: ...

    def encode_text(self, texts: Sequence[str]) -> Any:
        """Encode [prompts] texts once; the result is passed to `start` and may be cached."""
        ...

    def start(self, text: Any, text_rows: Sequence[int]) -> Any:
        """Return a state before scale 0 with one trajectory per entry of `text_rows`."""
        ...

    def advance(self, state: Any, uniforms: Float32Array) -> Any:
        """Run the next scale and draw its bits.

        Args:
            state: rows of trajectories, all before the same scale k.
            uniforms: float32 [rows, h_k * w_k * bits_per_token] in [0, 1); entry i decides bit i.
        """
        ...

    def replay(self, state: Any, bits: Sequence[np.ndarray]) -> Any:
        """Run further scales with given bits instead of drawing them.

        Args:
            state: rows of trajectories before scale k.
            bits: one uint8 [rows, h_s * w_s, bits_per_token] array (values 0/1) for each of the
                scales k, k+1, ...; the result equals the state that drew these bits.
        """
        ...

    def gather(self, state: Any, rows: Sequence[int]) -> Any:
        """Select and repeat trajectories; rows may repeat and need not be sorted."""
        ...

    def concatenate(self, states: Sequence[Any]) -> Any:
        """Stack the trajectories of several states that are before the same scale."""
        ...

    def scale_index(self, state: Any) -> int:
        """Return the scale that `advance` would run next (= number of finished scales)."""
        ...

    def bits(self, state: Any) -> tuple[np.ndarray, ...]:
        """Return the bits of the finished scales, each uint8 [rows, h_s * w_s, bits_per_token]."""
        ...

    def decode(self, state: Any, *, size: str = "full") -> UInt8Array:
        """Decode the feature map after the finished scales to uint8 RGB [rows, height, width, 3].

        Args:
            size: "full" (the model's image size) or "selector": the feature map reduced so that the
                image is at most 256 pixels on its longer side (cheap, for selectors; equals "full"
                for models that are small already).
        """
        ...


@runtime_checkable
class ScoringModel(Protocol):
    """What a plan that reads likelihoods asks of a model beside `NextScaleModel`."""

    def advance_scored(self, state: Any, uniforms: Float32Array) -> tuple[Any, Float64Array]:
        """Return what `advance` returns, byte for byte, and the log probability of each row's drawn bits.

        float64 [rows], nats, of this scale alone: temperature and guidance applied, top-p and top-k not. As
        everything of a row, it must not depend on the other rows, to the last bit.
        """
        ...


@runtime_checkable
class ShowsMaps(Protocol):
    """What a plan that reads rewards off feature maps asks of a model."""

    def feature_map(self, state: Any) -> Any:
        """Return the feature map of the finished scales, what `decode` decodes: float32 [rows, d, H, W]."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """What a plan that looks ahead asks of a model."""

    def look_ahead(self, state: Any, scale_index: int) -> Any:
        """Return a state to decode: what the trajectories cheaply come to at a later scale.

        Nothing is drawn, so that no stream of random numbers is touched, and the argument can be gone on
        from as before. As everything of a row, it must not depend on the other rows.
        """
        ...


@runtime_checkable
class CutsTexts(Protocol):
    """What a model has beside, which reads no more than the beginning of a long text."""

    def cuts_text(self, text: str) -> bool:
        """Whether a prompt is longer than what is read of it."""
        ...


@runtime_checkable
class KeepsMemory(Protocol):
    """A model that keeps memory it could do without."""

    def free_memory(self) -> None:
        """Let go of it; called when a device is out of memory."""
        ...


@runtime_checkable
class DrawsBits(Protocol):
    """A model whose pictures follow from bits alone, without its transformer."""

    def drawn(self, bits: Sequence[UInt8Array]) -> Any:
        """Return a state to decode, as `replay` from the beginning gives; it cannot be gone on from.

        Args:
            bits: uint8 [rows, n, bits_per_token] of the first scales, at least one.
        """
        ...


RECORDED_TOKENS = 4096
"""Most tokens of a recorded pass, all rows together. Larger ones keep a GPU busy for longer than a host needs
to start their kernels, and would take memory of their own size."""


PACKED_BYTES = 3_000_000_000
"""Most bytes of the texts of a pass of fixed shapes that are packed (`infinity.batch_texts.TextMemory`); more
are gathered layer by layer, and such passes are not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a model computes.

    Attributes:
        kernels: "auto", "plain" or "fused"; see `ttsvar_ray.kernels`.
        cuda_graphs: "auto", on CUDA devices, "always" or "never"; see `models.recorded_steps`.
        fixed_shapes: every pass over so many rows has the same shapes, whatever the rows: texts are padded to
            the model's longest. For devices that choose kernels by shape; a CPU needs none of it.
        stops: scales, rising, after which trajectories are selected. Memory for keys and values is taken for
            all scales up to the next stop at once; without any, scale by scale.
    """

    kernels: str = "auto"
    cuda_graphs: str = "auto"
    fixed_shapes: bool = False
    stops: tuple[int, ...] = ()
