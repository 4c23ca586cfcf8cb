"""Multi-scale binary spherical quantisation: bits <-> feature map, residual accumulation.

Source: Infinity (arXiv 2412.04431) section 3.2. Two generalisations, both off for published
checkpoints: a gain per scale (coarse scales may carry larger steps than fine ones) and area instead
of bilinear reduction of the next input.

Shape legend: B rows, n tokens of a scale (h * w), D bits of a token, d channels of the feature map
(D = d, or 4d with spatial patchify), H, W size of the full feature map.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttsvar_ray.models.infinity.config import TokenizerConfig
from ttsvar_ray.types import ScaleSchedule

if TYPE_CHECKING:  # Plans ask for the sizes, in processes that run no network.
    import torch
    from torch import Tensor


class Downsample(str, enum.Enum):
    """How the accumulated map is reduced to the next scale's input."""

    BILINEAR = "bilinear"
    """As published at inference: no antialiasing."""
    AREA = "area"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """The map between bits and feature maps for one scale schedule.

    Attributes:
        codebook_dim: d, channels of the feature map.
        schedule: (h, w) tokens of each scale, as the transformer sees them.
        spatial_patchify: one token covers 2x2 cells of the feature map (published 8B models).
        gains: one factor per scale on the code +-1/sqrt(d); empty means 1 everywhere.
    """

    codebook_dim: int
    schedule: ScaleSchedule
    spatial_patchify: bool = False
    gains: tuple[float, ...] = ()
    downsample: Downsample = Downsample.BILINEAR

    def __post_init__(self) -> None:
        if self.gains and len(self.gains) != len(self.schedule):
            raise ValueError(f"gains: expected {len(self.schedule)} (one a scale), got {len(self.gains)}")

    @property
    def bits_per_token(self) -> int:
        """D."""
        return self.codebook_dim * (4 if self.spatial_patchify else 1)

    def map_size(self, scale_index: int) -> tuple[int, int]:
        """Return (height, width) of the feature map at one scale."""
        height, width = self.schedule[scale_index]
        factor = 2 if self.spatial_patchify else 1
        return height * factor, width * factor

    def gain(self, scale_index: int) -> float:
        """Return the factor on the codes of one scale."""
        return self.gains[scale_index] if self.gains else 1.0

    def tokens_to_map(self, tokens: Tensor, scale_index: int) -> Tensor:
        """Turn [B, n, D] into [B, d, h, w] (with patchify: each token into 2x2 cells)."""
        import torch.nn.functional as F

        height, width = self.schedule[scale_index]
        grid = tokens.reshape(tokens.shape[0], height, width, -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(grid, 2) if self.spatial_patchify else grid

    def map_to_tokens(self, grid: Tensor) -> Tensor:
        """Turn [B, d, h, w] into [B, n, D]: the inverse of `tokens_to_map`."""
        import torch.nn.functional as F

        if self.spatial_patchify:
            grid = F.pixel_unshuffle(grid, 2)
        return grid.flatten(2).transpose(1, 2)

    def codes(self, bits: Tensor, scale_index: int) -> Tensor:
        """Return float32 codes [B, d, h, w], +-gain/sqrt(d), of bits [B, n, D] in {0, 1}."""
        step = self.gain(scale_index) / math.sqrt(self.codebook_dim)
        return self.tokens_to_map((bits.float() * 2 - 1) * step, scale_index)

    def upsample(self, codes: Tensor, scale_index: int) -> Tensor:
        """Spread the codes of one scale over the full map [B, d, H, W]."""
        import torch.nn.functional as F

        if scale_index == len(self.schedule) - 1:
            return codes
        return F.interpolate(codes, size=self.map_size(-1), mode="bilinear", align_corners=False)

    def empty_map(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the feature map before scale 0: float32 zeros [rows, d, H, W]."""
        import torch

        return torch.zeros((rows, self.codebook_dim, *self.map_size(-1)), device=device)

    def accumulate(self, summed: Tensor, bits: Tensor, scale_index: int) -> Tensor:
        """Return the feature map after one more scale of bits [B, n, D]."""
        return summed + self.upsample(self.codes(bits, scale_index), scale_index)

    def next_input(self, summed: Tensor, scale_index: int) -> Tensor:
        """Return what the transformer sees at `scale_index` >= 1: tokens [B, n, D] of the map so far."""
        return self.map_to_tokens(self.reduce(summed, self.map_size(scale_index)))

    def reduce(self, summed: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduce a feature map to (height, width) as `downsample` says."""
        import torch.nn.functional as F

        from ttsvar_ray.models.row_stability import channels_first

        summed = channels_first(summed)
        if self.downsample is Downsample.AREA:
            return F.interpolate(summed, size=size, mode="area")
        return F.interpolate(summed, size=size, mode="bilinear", align_corners=False)

    def encode(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Quantise encoder output scale by scale, each on the residual of those before.

        Args:
            features: float32 [B, d, H, W].

        Returns:
            Bits, one uint8 [B, n, D] per scale, and the accumulated map [B, d, H, W].
        """
        import torch
        import torch.nn.functional as F

        residual, summed, all_bits = features, torch.zeros_like(features), []
        for scale_index in range(len(self.schedule)):
            # Reduction is by area here, also for published models: that is how they were trained.
            target = F.interpolate(residual, size=self.map_size(scale_index), mode="area")
            bits = (self.map_to_tokens(target) > 0).to(torch.uint8)
            step = self.upsample(self.codes(bits, scale_index), scale_index)
            residual, summed = residual - step, summed + step
            all_bits.append(bits)
        return all_bits, summed


def tokenizer_section(config: TokenizerConfig, quantizer: Quantizer) -> dict[str, Any]:
    """Return the tokenizer section of config.json; `directory.parse_tokenizer` reads it."""
    section = dataclasses.asdict(config)
    section |= {"norm": config.norm.value, "activation": config.activation.value}
    section |= {
        "spatial_patchify": quantizer.spatial_patchify,
        "gains": list(quantizer.gains),
        "downsample": quantizer.downsample.value,
    }
    return section
