"""The sizes of a job's networks, as far as they decide its cost; read from settings, not from weights."""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.costs.decoder import DecoderShape
from ttsvar_ray.costs.encoder import EncoderShape
from ttsvar_ray.costs.memory import transformer_weight_bytes
from ttsvar_ray.costs.plan_cost import ComponentFlops
from ttsvar_ray.costs.shape import TransformerShape
from ttsvar_ray.models.decoding import decode_rows, selector_map_size
from ttsvar_ray.types import ScaleSchedule
from ttsvar_ray.vision.published import NetworkCost

_WIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """One job's networks.

    Attributes:
        name: of the model.
        schedule: (h, w) tokens of each scale.
        transformer: its sizes.
        decoder: the image tokenizer.
        cells_per_token: cells of the feature map on one side of a token: 2 with spatial patchify, else 1.
        text_encoder: its sizes; tokens are what it pads to.
        text_encoder_bytes: its weights in memory.
        reward, extractor: of the job; the extractor costs nothing where the plan does not cluster.
        reward_element_bytes: of one number of the reward's networks.
    """

    name: str
    schedule: ScaleSchedule
    transformer: TransformerShape
    decoder: DecoderShape
    cells_per_token: int
    text_encoder: EncoderShape
    text_encoder_bytes: int
    reward: NetworkCost
    extractor: NetworkCost
    reward_element_bytes: int = 4

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the full feature map in cells."""
        height, width = self.schedule[-1]
        return height * self.cells_per_token, width * self.cells_per_token

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a full image in pixels."""
        height, width = self.map_size
        return height * self.decoder.patch_size, width * self.decoder.patch_size

    @property
    def map_values(self) -> int:
        """Numbers in the feature map of one trajectory."""
        height, width = self.map_size
        return height * width * self.decoder.codebook_dim

    def decoded_map(self, size: str) -> tuple[int, int]:
        """Return (height, width) in cells of the map that is decoded at "full" or "selector" size."""
        if size == "full":
            return self.map_size
        return selector_map_size(*self.map_size, self.decoder.patch_size)

    def decode_rows(self, size: str) -> int:
        """Return how many images are decoded at once at a size."""
        height, width = self.decoded_map(size)
        return decode_rows(height * self.decoder.patch_size, width * self.decoder.patch_size)

    def decode_bytes(self, size: str, images: int) -> int:
        """Return the most bytes alive while `images` are decoded at a size, a few at a time."""
        peak = self.decoder.decode_peak_bytes(*self.decoded_map(size), self.transformer.element_bytes)
        return min(images, self.decode_rows(size)) * peak

    def component_flops(self, selector_decode: str, text_tokens: int) -> ComponentFlops:
        """Return the FLOPs of one call of each part beside the transformer.

        Args:
            selector_decode: "full" or "selector", the size of the images that selections look at.
            text_tokens: real tokens of a typical text; padding is not counted.
        """
        return ComponentFlops(
            decode=self.decoder.decode_flops(*self.map_size),
            selector_decode=self.decoder.decode_flops(*self.decoded_map(selector_decode)),
            embed=self.extractor.image_flops,
            score=self.reward.image_flops,
            encode_text=self.text_encoder.flops(text_tokens) + self.reward.text_flops,
        )

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of all weights in memory, by part."""
        return {
            "transformer": transformer_weight_bytes(self.transformer),
            "image tokenizer": _WIDE * (self.decoder.parameters + self.decoder.encoder_parameters),
            "text encoder": self.text_encoder_bytes,
            "reward": self.reward_element_bytes * self.reward.parameters,
            "features": _WIDE * self.extractor.parameters,
        }
