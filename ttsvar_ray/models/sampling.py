"""From logits to bits: temperature, guidance, top-p, and the draw itself.

Here each bit has two logits of its own and is drawn alone. Top-k with k >= 2 therefore never removes
anything (the published setting is 900); only models that draw from a codebook read it.

Legend: S streams (conditional, unconditional), B trajectories, n tokens, D bits of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttsvar_ray.errors import ConfigurationError

if TYPE_CHECKING:  # Plans ask for the settings, in processes that run no network.
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How bits are drawn at each scale.

    Attributes:
        guidance: classifier-free guidance scale per scale; 1 everywhere runs the conditional stream alone.
        temperature: divides the logits, per scale; greater than 0.
        top_p: in (0, 1]; the least likely values that together have probability <= 1 - top_p are not drawn.
        top_k: entries of a codebook that may be drawn, the most likely ones; None is all of them. Models
            that draw single bits have none.
    """

    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    top_p: float
    top_k: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if len(self.guidance) != len(self.temperature):
            problems.append(
                f"sampling: guidance has {len(self.guidance)} scales, temperature {len(self.temperature)}; "
                "give both the same number"
            )
        for index, value in enumerate(self.guidance):
            if not math.isfinite(value):
                problems.append(f"sampling.guidance[{index}]: expected a finite number, got {value}")
        for index, value in enumerate(self.temperature):
            if not (math.isfinite(value) and value > 0):
                problems.append(f"sampling.temperature[{index}]: expected a number above 0, got {value}")
        if not 0 < self.top_p <= 1:
            problems.append(f"sampling.top_p: expected 0 < top_p <= 1 (1 turns it off), got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"sampling.top_k: expected at least 1, or none for all, got {self.top_k}")
        if problems:
            raise ConfigurationError(problems)

    @property
    def uses_guidance(self) -> bool:
        return any(value != 1 for value in self.guidance)


def per_scale(name: str, value: float | Sequence[float], num_scales: int) -> tuple[float, ...]:
    """Return one number per scale from one number for all or a list.

    Raises:
        ConfigurationError: a list of another length.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * num_scales
    if len(value) != num_scales:
        raise ConfigurationError(
            f"sampling.{name}: expected one number or {num_scales} (one a scale), got {len(value)}"
        )
    return tuple(float(v) for v in value)


def guided_logits(logits: Tensor, *, temperature: float, guidance: float) -> Tensor:
    """Return float32 [B, n, D, 2] from raw logits [S, B, n, 2 * D].

    Temperature comes first, as published: the order only matters for rounding.
    """
    scaled = logits.float() * (1 / temperature)
    mixed = scaled[0]
    if guidance != 1:
        mixed = guidance * scaled[0] + (1 - guidance) * scaled[1]
    return mixed.unflatten(-1, (-1, 2))


def top_p_margin(top_p: float) -> float:
    """Return the gap between a bit's two logits from which it is certain: ln(p / (1 - p))."""
    return math.inf if top_p >= 1 else math.log(top_p / (1 - top_p))


def probability_of_one(logits: Tensor, *, top_p: float) -> Tensor:
    """Return float32 [...] in [0, 1], the probability that a bit is 1, of logits [..., 2].

    The published rule sorts the two probabilities and drops the rarer one when it is at most 1 - top_p;
    for two values that is a threshold on the gap of their logits. The other probabilities stay as they are.
    """
    import torch

    gap = logits[..., 1] - logits[..., 0]
    certain = gap.abs() >= top_p_margin(top_p)
    return torch.where(certain, (gap > 0).to(gap.dtype), torch.sigmoid(gap))


def draw_bits(probability: Tensor, uniforms: Tensor) -> Tensor:
    """Return uint8 bits: 1 where uniform < probability. Uniforms lie in [0, 1), so 0 and 1 are certain."""
    import torch

    return (uniforms < probability).to(torch.uint8)
