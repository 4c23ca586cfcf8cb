"""From logits to bits: temperature, guidance, top-k and top-p, and the draw itself.

Infinity has two logits for each bit and draws every bit alone: top-k with k >= 2 never removes anything there
(the published setting is 900). VAR draws entries of a codebook: a token of V entries is ceil(log2 V) bits,
drawn from the most significant down, each with the probability that the bits before it leave. Together that
is exactly one draw from the softmax, and every bit is decided by one named uniform, as in every family.

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

    from ttsvar_ray.types import Float64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How bits are drawn at each scale.

    Attributes:
        guidance: classifier-free guidance scale per scale; 1 is none. See `streams_at` for what 1 leaves out.
        temperature: divides the logits, per scale; greater than 0.
        top_p: in (0, 1]; the least likely values that together have probability <= 1 - top_p are not drawn.
        top_k: entries of a codebook that may be drawn, the most likely ones; None is all of them. Models
            that draw single bits have none.
        confidence: per scale, the most that a trajectory's bits may be sure of on average, 0.5 to 1; None: as
            sure as they are; empty for all scales. Only models that draw single bits have it.
    """

    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    top_p: float
    top_k: int | None = None
    confidence: tuple[float | None, ...] = ()

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
        for index, target in enumerate(self.confidence):
            if target is not None and not 0.5 < target <= 1:
                problems.append(
                    f"sampling.confidence[{index}]: expected more than 0.5, a coin, to 1, got {target}"
                )
        if not 0 < self.top_p <= 1:
            problems.append(f"sampling.top_p: expected 0 < top_p <= 1 (1 turns it off), got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"sampling.top_k: expected at least 1, or none for all, got {self.top_k}")
        if problems:
            raise ConfigurationError(problems)

    def streams_at(self, scale_index: int) -> int:
        """Return how many sequences of each trajectory run at a scale: conditional, and unconditional (2).

        The unconditional one runs from the first scale that has guidance to the last: what a later scale
        attends to has to be computed. What it has missed before is caught up on at the first
        (`begins_unconditional`), by whoever is left then. To catch up on the first scale alone, a token or
        so, would be a pass for nothing: VAR's guidance, 1 there by its formula, has both from the beginning.
        """
        guided = [scale for scale, value in enumerate(self.guidance) if value != 1]
        if not guided:
            return 1
        first = guided[0] if guided[0] > 1 else 0
        return 2 if first <= scale_index <= guided[-1] else 1

    def begins_unconditional(self, scale_index: int) -> bool:
        """Whether the unconditional stream begins at a scale that others were run before without it."""
        return scale_index > 0 and self.streams_at(scale_index) > self.streams_at(scale_index - 1)


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


_MOST_SOFTENING = 1e4
_BISECTIONS = 40


def softened(logits: Tensor, confidence: float) -> Tensor:
    """Return logits [B, n, D, 2] of a higher temperature, for rows whose bits are surer than wanted.

    Each trajectory has a temperature of its own, found by bisection: the least at which the mean probability
    of the likelier value of its bits is at most `confidence`. Sums are of whole numbers, as in `exact_sums`,
    so that no row depends on its batch.

    Source: the adaptive scaling of bit distributions of DiverseAR (arXiv 2512.02931), from its description.
    Differs: one temperature for all bits of a trajectory's scale; rows that are unsure stay as they are.
    """
    import torch

    gap = (logits[..., 1] - logits[..., 0]).abs().double().flatten(1)
    wanted = int(confidence * _STEPS) * gap.shape[1]

    def is_too_sure(temperature: Tensor) -> Tensor:
        steps = torch.round(torch.sigmoid(gap / temperature[:, None]) * _STEPS).to(torch.int64)
        return steps.sum(dim=1) > wanted

    low = torch.ones(len(gap), dtype=torch.float64, device=gap.device)
    high = torch.where(is_too_sure(low), torch.full_like(low, _MOST_SOFTENING), low)
    for _ in range(_BISECTIONS):
        middle = torch.sqrt(low * high)
        too_sure = is_too_sure(middle)
        low, high = torch.where(too_sure, middle, low), torch.where(too_sure, high, middle)
    return logits / high.to(logits.dtype)[:, None, None, None]


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


def log_probability_of_bits(logits: Tensor, bits: Tensor) -> Tensor:
    """Return float64 [...], the log probability of bits [...] of logits [..., 2], without top-p."""
    import torch

    gap = (logits[..., 1] - logits[..., 0]).double()
    return -torch.nn.functional.softplus(torch.where(bits.bool(), -gap, gap))


_STEPS = 2**20
"""Parts of a nat that log probabilities are rounded to before they are added."""


def exact_sums(values: Tensor) -> Float64Array:
    """Return float64 [B], the sums of log probabilities [B, ...] in an order that does not matter.

    Floats added in another order give another sum, and devices choose the order by the shape of the batch. So
    each is rounded to a millionth of a nat first, and whole numbers are added. Less than -1000, what a float
    can call impossible though it was drawn, counts as -1000.
    """
    import torch

    steps = torch.round(values.clamp(min=-1000.0) * _STEPS).to(torch.int64)
    sums: Float64Array = steps.flatten(1).sum(dim=1).cpu().numpy() / _STEPS
    return sums


def restricted_probabilities(logits: Tensor, *, top_k: int | None, top_p: float) -> Tensor:
    """Return float32 probabilities [..., V] after top-k and top-p.

    Args:
        logits: float32 [..., V], temperature and guidance applied.
        top_k: entries kept, the most likely ones (ties with the last one too); None keeps all.
        top_p: in (0, 1]; of what top-k left, the least likely entries that together have probability of
            at most 1 - top_p are dropped; 1 drops none.
    """
    import torch

    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1)
        dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits.softmax(dim=-1)


def draw_token_bits(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a position, bit by bit.

    Args:
        probabilities: float32 [B, n, V], each position summing to 1.
        uniforms: float32 [B, n, bits] in [0, 1), bits = ceil(log2 V).

    Returns:
        uint8 [B, n, bits], the most significant bit first.
    """
    import torch

    bits_per_token = uniforms.shape[-1]
    missing = 2**bits_per_token - probabilities.shape[-1]
    # Double precision: sums of thousands of float32 would make rare halves vanish. Entries beyond V
    # have probability 0 and are never drawn, since uniforms are below 1.
    left = torch.nn.functional.pad(probabilities.double(), (0, missing))
    drawn = []
    for index in range(bits_per_token):
        zero, one = left.unflatten(-1, (2, -1)).unbind(dim=-2)
        mass_zero, mass_one = zero.sum(dim=-1), one.sum(dim=-1)
        bit = uniforms[..., index].double() * (mass_zero + mass_one) >= mass_zero
        # A uniform close to 1 may round up to a half that holds nothing.
        bit &= mass_one > 0
        left = torch.where(bit[..., None], one, zero)
        drawn.append(bit)
    return torch.stack(drawn, dim=-1).to(torch.uint8)
