"""What a convolutional image decoder costs: FLOPs, memory traffic, live memory, parameters.

The decoder of the published tokenizers: a convolution, two residual blocks, then per level residual blocks
and, but for the last, doubling and a convolution; norm, activation and a convolution at the end. Counted by
walking through it at a size; 2 FLOPs per multiplication and addition.

Legend: c channels, p pixels (cells of the map at that level).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WIDE = 4
"""Bytes of float32, in which norms and activations run whatever the convolutions' format."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """One convolution or residual block at one resolution.

    Attributes:
        kind: "conv" (3x3), "upscale" (nearest to `pixels`, then conv), "block", or "out" (norm, conv).
        cin, cout: channels.
        pixels: of the output.
        level_cin: channels of the enclosing level's input, which stays alive until the level is done,
            where it is not this stage's own input.
    """

    kind: str
    cin: int
    cout: int
    pixels: int
    level_cin: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of a tokenizer, named as in its configuration.

    Attributes:
        codebook_dim: channels of the feature map.
        base_channels: channels at multiplier 1.
        encoder_multipliers, decoder_multipliers: per level, image side first.
        num_res_blocks: per encoder level; the decoder has one more.
        pixel_shuffle: side of the pixel blocks folded into channels at the image side.
        normed: whether there are norms with weights.
    """

    codebook_dim: int
    base_channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    decoder_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    pixel_shuffle: int = 1
    normed: bool = True

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> DecoderShape:
        """Read the tokenizer section of a model's config.json; what it leaves out has the default."""
        numbers = {
            name: int(section[name])
            for name in ("codebook_dim", "base_channels", "num_res_blocks", "pixel_shuffle")
            if name in section
        }
        multipliers = {
            name: tuple(int(value) for value in section[name])
            for name in ("encoder_multipliers", "decoder_multipliers")
            if name in section
        }
        return cls(**numbers, **multipliers, normed=section.get("norm", "group") != "none")  # type: ignore[arg-type]

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the feature map."""
        return int(self.pixel_shuffle * 2 ** (len(self.encoder_multipliers) - 1))

    @property
    def parameters(self) -> int:
        """Parameters of the decoder."""
        return sum(self._weights(stage) for stage in self._decoder(1, 1))

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the encoder, which is loaded with the decoder though only training runs it."""
        return sum(self._weights(stage) for stage in self._encoder(1, 1))

    def decode_flops(self, height: int, width: int) -> float:
        """Return the FLOPs to decode one feature map of `height` x `width` cells."""
        return sum(_flops(stage) for stage in self._decoder(height, width))

    def encode_flops(self, height: int, width: int) -> float:
        """Return the FLOPs to encode one image whose feature map has `height` x `width` cells."""
        return sum(_flops(stage) for stage in self._encoder(height, width))

    def decode_traffic(self, height: int, width: int, element_bytes: int) -> float:
        """Return the bytes that one decode moves outside its convolutions, roughly.

        Args:
            element_bytes: of the convolutions' inputs and outputs.
        """
        cast = 2 * (element_bytes + _WIDE) if element_bytes < _WIDE else 0
        # The norm reads twice (statistics, then values) and writes; the activation reads and writes.
        norm = (5 if self.normed else 2) * _WIDE + cast
        total = 0.0
        for stage in self._decoder(height, width):
            if stage.kind == "block":
                total += (norm * (stage.cin + stage.cout) + 3 * element_bytes * stage.cout) * stage.pixels
            elif stage.kind == "out":
                total += norm * stage.cin * stage.pixels
            elif stage.kind == "upscale":
                total += 1.25 * element_bytes * stage.cin * stage.pixels
        return total

    def decode_peak_bytes(self, height: int, width: int, element_bytes: int) -> int:
        """Return the most bytes that are alive at once while one map is decoded; weights and the
        convolutions' own workspace are not counted.

        Args:
            element_bytes: of the convolutions' inputs and outputs, 2 or 4.
        """
        return max(self._live(stage, element_bytes) for stage in self._decoder(height, width))

    def _live(self, stage: _Stage, narrow: int) -> int:
        """Return the bytes alive in the worst moment of a stage."""
        cin, cout = stage.cin, stage.cout
        cast = narrow if narrow < _WIDE else 0
        # The norm's output, or its input cast, beside the activation's; without a norm only the latter.
        norm, wide = (2 * _WIDE, _WIDE) if self.normed else (narrow, narrow)
        if not self.normed:
            cast = 0
        if stage.kind == "conv":
            return (_WIDE + cast) * cin * stage.pixels + narrow * cout * stage.pixels
        if stage.kind == "upscale":
            return narrow * (cin + cout) * stage.pixels + narrow * cin * stage.pixels // 4
        held = narrow * (cin + stage.level_cin) * stage.pixels
        if stage.kind == "out":
            return held + max(norm * cin, (wide + cast) * cin + narrow * cout) * stage.pixels
        first = max(norm * cin, (wide + cast) * cin + narrow * cout)
        # The first convolution's output is alive while the second half runs.
        second = narrow * cout + max(norm * cout, (wide + cast) * cout + narrow * cout)
        added = narrow * cout * (3 if cin != cout else 2)
        return held + max(first, second, added) * stage.pixels

    def _weights(self, stage: _Stage) -> int:
        norms = 2 if self.normed else 0
        if stage.kind == "block":
            shortcut = (stage.cin + 1) * stage.cout if stage.cin != stage.cout else 0
            convs = (9 * stage.cin + 1) * stage.cout + (9 * stage.cout + 1) * stage.cout
            return convs + shortcut + norms * (stage.cin + stage.cout)
        own = norms * stage.cin if stage.kind == "out" else 0
        return (9 * stage.cin + 1) * stage.cout + own

    def _decoder(self, height: int, width: int) -> Iterator[_Stage]:
        multipliers = self.decoder_multipliers
        pixels = height * width
        channels = self.base_channels * multipliers[-1]
        yield _Stage("conv", self.codebook_dim, channels, pixels)
        for _ in range(2):
            yield _Stage("block", channels, channels, pixels)
        for index in reversed(range(len(multipliers))):
            entered = channels
            out = self.base_channels * multipliers[index]
            for number in range(self.num_res_blocks + 1):
                yield _Stage("block", channels, out, pixels, entered if number else 0)
                channels = out
            if index > 0:
                pixels *= 4
                yield _Stage("upscale", channels, channels, pixels)
        yield _Stage("out", channels, 3 * self.pixel_shuffle**2, pixels)

    def _encoder(self, height: int, width: int) -> Iterator[_Stage]:
        multipliers = self.encoder_multipliers
        pixels = height * width * 4 ** (len(multipliers) - 1)
        channels = self.base_channels
        yield _Stage("conv", 3 * self.pixel_shuffle**2, channels, pixels)
        for index, multiplier in enumerate(multipliers):
            out = self.base_channels * multiplier
            for _ in range(self.num_res_blocks):
                yield _Stage("block", channels, out, pixels)
                channels = out
            if index < len(multipliers) - 1:
                pixels //= 4
                yield _Stage("conv", channels, channels, pixels)
        for _ in range(2):
            yield _Stage("block", channels, channels, pixels)
        yield _Stage("out", channels, self.codebook_dim, pixels)


def _flops(stage: _Stage) -> float:
    flops = 18.0 * stage.cin * stage.cout * stage.pixels
    if stage.kind == "block":
        flops += 18.0 * stage.cout**2 * stage.pixels
        if stage.cin != stage.cout:
            flops += 2.0 * stage.cin * stage.cout * stage.pixels
    return flops
