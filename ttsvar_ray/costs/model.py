"""What a job's networks cost: of its model as counted from the modules, of the rest as it is known."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.costs.encoder import EncoderShape
from ttsvar_ray.search.plan import Look
from ttsvar_ray.types import Precision
from ttsvar_ray.vision.published import NO_COST, NetworkCost


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleCost:
    """What one scale costs one trajectory, guidance included.

    Attributes:
        tokens, cumulative_tokens: of this scale, and with all before it.
        linear_flops: matrices.
        attention_flops: attention to the tokens so far.
        text_attention_flops: attention to the padded text.
        text_tokens: most of a text; 0 for models that read no texts.
        kv_bytes: keys and values of all tokens so far, the last scale's included, which are never kept.
        state_bytes: of the trajectory after the scale: keys and values kept, map, bits.
        running_bytes: most alive while the scale runs, the state before and after included.
        passes: through the blocks; more than one where the unconditional stream catches up on earlier scales.
    """

    tokens: int
    cumulative_tokens: int
    linear_flops: float
    attention_flops: float
    text_attention_flops: float
    text_tokens: int
    kv_bytes: int
    state_bytes: int
    running_bytes: int
    passes: int = 1

    def flops(self, text_share: float = 1.0) -> float:
        """Return all FLOPs, where `text_share` of the padded text is real."""
        return self.linear_flops + self.attention_flops + text_share * self.text_attention_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCost:
    """What the model itself makes of one prompt's text features, once.

    Attributes:
        flops: of the padded text.
        held_bytes: that a worker keeps while the prompt lasts.
        running_bytes: most alive meanwhile.
    """

    flops: float
    held_bytes: int
    running_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """What decoding one image costs.

    Attributes:
        height, width: pixels.
        rows: images decoded at once.
        flops: of convolutions and attention.
        traffic_bytes: read and written by everything else.
        peak_bytes: most alive; weights and the convolutions' own workspace are not counted.
    """

    height: int
    width: int
    rows: int
    flops: float
    traffic_bytes: int
    peak_bytes: int

    @property
    def pixels(self) -> int:
        """Pixels of the image."""
        return self.height * self.width

    def bytes_of(self, images: int) -> int:
        """Return the most bytes alive while images are decoded, a few at a time."""
        return min(images, self.rows) * self.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What a next-scale model costs.

    Attributes:
        depth: blocks.
        element_bytes: of one number of the blocks.
        scales: of one trajectory.
        text: of one prompt.
        decodes: by size, "full" and "selector".
        parameters, weight_bytes: by part; buffers are bytes, but no parameters.
        block_bytes: weights of all blocks.
    """

    depth: int
    element_bytes: int
    scales: tuple[ScaleCost, ...]
    text: TextCost
    decodes: Mapping[str, DecodeCost]
    parameters: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    block_bytes: int

    @property
    def text_tokens(self) -> int:
        """Most tokens of a text, which memory and seconds count; 0 for models that read no texts."""
        return self.scales[0].text_tokens


@functools.cache
def recorded_costs() -> Mapping[str, ModelCost]:
    """Return the costs in `counted.json`, by the digest of all that decides them.

    Counting takes seconds, and torch: those of the built-in model and of the published ones at their usual
    size are in the package (`python -m tools.counted_costs` writes them, a test counts them again).
    """
    text = importlib.resources.files("ttsvar_ray").joinpath("costs/counted.json").read_text(encoding="utf-8")
    return {digest: _model_cost(**values) for digest, values in json.loads(text).items()}


def _model_cost(
    *, scales: list[dict[str, Any]], text: dict[str, Any], decodes: dict[str, dict[str, Any]], **values: Any
) -> ModelCost:
    return ModelCost(
        scales=tuple(ScaleCost(**scale) for scale in scales),
        text=TextCost(**text),
        decodes={size: DecodeCost(**decode) for size, decode in decodes.items()},
        **values,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNetworks:
    """All networks of one job.

    Attributes:
        text_tokens: real tokens of a typical text.
        text_encoder: its sizes; tokens are what it pads to.
        text_encoder_bytes: its weights in memory.
        reward, extractor: of the job; the extractor costs nothing where the plan does not cluster.
        reward_precision, extractor_precision: what their networks compute in.
        recorded_bytes: that a GPU keeps for passes recorded as CUDA graphs, whatever runs.
        map_reward: what reads rewards off feature maps, beyond the reward's own weights; no cost where the
            plan has no such scales.
        ahead: the model's scales without guidance, which looks ahead run; empty where the plan has none.
    """

    model: ModelCost
    text_tokens: int
    text_encoder: EncoderShape
    text_encoder_bytes: int
    reward: NetworkCost
    extractor: NetworkCost
    reward_precision: Precision = Precision.FLOAT32
    extractor_precision: Precision = Precision.FLOAT32
    recorded_bytes: int = 0
    map_reward: NetworkCost = NO_COST
    ahead: tuple[ScaleCost, ...] = ()

    def ahead_of(self, look: Look | None) -> tuple[ScaleCost, ...]:
        """Return the scales that a look at a trajectory runs and that are not kept."""
        if look is None or look.ahead_to is None:
            return ()
        return self.ahead[look.scale_index + 1 : look.ahead_to + 1]

    @property
    def text_share(self) -> float:
        """Part of a padded text that is real."""
        return self.text_tokens / self.model.text_tokens if self.model.text_tokens else 0.0

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters by part."""
        return {
            **self.model.parameters,
            "text encoder": self.text_encoder.parameters,
            "reward": self.reward.parameters,
            "features": self.extractor.parameters,
            "map reward": self.map_reward.parameters,
        }

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of all weights in memory, by part."""
        return {
            **self.model.weight_bytes,
            "text encoder": self.text_encoder_bytes,
            "reward": self.reward_precision.element_bytes * self.reward.parameters,
            "features": self.extractor_precision.element_bytes * self.extractor.parameters,
            "map reward": self.reward_precision.element_bytes * self.map_reward.parameters,
        }
