"""What trajectories and their forward passes keep in memory, in bytes: counted from the engine's own code.

The counts follow what `models/infinity` keeps alive while a scale runs. They are exact for its tensors
(a test compares them with the live tensors of the real code); what a GPU's libraries take beside them is
for a reserve.

Legend: C width, F feed-forward width, n tokens of a scale, S streams (2 with guidance), e bytes of a number
of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.costs.shape import ScaleCost, TransformerShape

_WIDE = 4
"""Bytes of float32: the residual stream, norms, conditioning vectors, the feature map."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of a transformer.

    Attributes:
        blocks: held in the number format of the job.
        rest: text side, modulation, embedding and head, held in float32.
    """

    blocks: int
    rest: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.blocks + self.rest


def transformer_parameters(shape: TransformerShape) -> ParameterCount:
    """Return the number of parameters of an Infinity transformer; buffers are not parameters."""
    c, text = shape.embed_dim, shape.text_channels
    block = 8 * c**2 + 2 * c * shape.ffn_dim + shape.ffn_dim + 15 * c + shape.num_heads
    pool = 2 * c * text + c**2 + 3 * c
    text_side = shape.text_max_length * text + text + pool + (text + 1) * c + (c + 1) * c
    modulation = 8 * (c + 1) * c
    tokens = (1 + shape.max_scales) * c + (shape.bits_per_token + 1) * c + 2 * (c + 1) * shape.bits_per_token
    return ParameterCount(blocks=shape.depth * block, rest=text_side + modulation + tokens)


def transformer_weight_bytes(shape: TransformerShape) -> int:
    """Return the bytes of a transformer's weights as the engine holds them, buffers included."""
    count = transformer_parameters(shape)
    buffers = 2 * shape.embed_dim * shape.depth
    pool_buffer = shape.embed_dim
    return (count.blocks + buffers) * shape.element_bytes + (count.rest + pool_buffer) * _WIDE


def conditioning_bytes(shape: TransformerShape) -> int:
    """Return the bytes that a worker keeps for one prompt's text: keys and values of every block for the
    padded text, and the vectors that modulate the blocks."""
    keys_values = 2 * shape.depth * shape.text_max_length * shape.embed_dim * shape.element_bytes
    vectors = 9 * shape.embed_dim * _WIDE
    return shape.sequences * (keys_values + vectors) + shape.text_max_length


def state_bytes(cost: ScaleCost, shape: TransformerShape, map_values: int) -> int:
    """Return the bytes of one trajectory after a scale that is not the last: keys, values, map, bits.

    Args:
        cost: of that scale.
        map_values: numbers in the feature map (channels x height x width).
    """
    return cost.kv_bytes + map_values * _WIDE + cost.cumulative_tokens * shape.bits_per_token


def step_bytes(
    before: ScaleCost | None, cost: ScaleCost, shape: TransformerShape, map_values: int, *, is_last: bool
) -> int:
    """Return the most bytes alive for one trajectory while a scale runs, its own state before and after
    included.

    The old cache stays until the new one is whole. The worst moment is the feed-forward part of the last
    block; the last scale keeps no cache, but the current and the previous block's are alive.

    Args:
        before: the scale before; None at scale 0.
        cost: the scale that runs.
        map_values: numbers in the feature map.
        is_last: whether it is the model's last scale.
    """
    element = shape.element_bytes
    old = 0 if before is None else before.kv_bytes
    new = 2 * cost.kv_bytes // shape.depth if is_last else cost.kv_bytes
    # Residual stream three times, its norm twice (20 bytes); the hidden layer before and after its
    # activation; queries, keys, the fused projection and the attended values. In float32 the keys are a
    # view that keeps the queries alive, too.
    ffn = 2 * shape.ffn_dim * element
    width = (20 + (6 if element < _WIDE else 7) * element) * shape.embed_dim
    activations = cost.tokens * shape.sequences * (ffn + width)
    text = 2 * shape.text_max_length * shape.embed_dim * shape.sequences * element
    maps = 3 * map_values * _WIDE + cost.cumulative_tokens * shape.bits_per_token
    return old + new + activations + text + maps
