"""From logits over a codebook to tokens, drawn bit by bit.

A token of V entries is ceil(log2 V) bits. Its bits are drawn from the most significant down, each with
the probability that the bits before it leave: together that is exactly one draw from the softmax, and every
bit is decided by one named uniform, as in every family.
"""

from __future__ import annotations

import torch
from torch import Tensor


def restricted_probabilities(logits: Tensor, *, top_k: int | None, top_p: float) -> Tensor:
    """Return float32 probabilities [..., V] after top-k and top-p.

    Args:
        logits: float32 [..., V], temperature and guidance applied.
        top_k: entries kept, the most likely ones (ties with the last one too); None keeps all.
        top_p: in (0, 1]; of what top-k left, the least likely entries that together have probability of
            at most 1 - top_p are dropped; 1 drops none.
    """
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
