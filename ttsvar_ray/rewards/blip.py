"""A BLIP reward: what defines it, its network, and the names of the published weights.

A vision transformer sees the image, a text transformer reads the text in the light of it, a linear head says
the score.

Shape legend: B rows, P patches + 1 (class token), T text tokens, V vision width, W text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.rewards.network_reward import LinearHead
from ttsvar_ray.vision.batches import in_whole_blocks
from ttsvar_ray.vision.checkpoints import KeyTable
from ttsvar_ray.vision.pixels import CLIP_MEAN, CLIP_STD

FORMAT_VERSION = 1
KIND = "blip-reward"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSize:
    """Size of the vision transformer. Field names are those of `BlipVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    """The published vision transformer uses 1e-6; the default of transformers, 1e-5, moves scores."""

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSize:
    """Size of the text transformer with cross-attention. Field names are those of `BlipTextConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipRewardConfig:
    """A BLIP reward, whole.

    Attributes:
        name: reward name, written to the output rows.
        vision, text: sizes of the two transformers.
        head_widths: widths of the linear head after the text width; the last one is 1.
        max_text_tokens: texts are cut and padded to exactly this many tokens.
        pixel_mean, pixel_std: per channel, of pixels in [0, 1].
        score_mean, score_std: the score is (head output - score_mean) / score_std.
    """

    name: str
    vision: VisionSize
    text: TextSize
    head_widths: tuple[int, ...]
    max_text_tokens: int
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    score_mean: float = 0.0
    score_std: float = 1.0

    def __post_init__(self) -> None:
        problems = []
        if self.vision.image_size % self.vision.patch_size:
            problems.append(
                f"vision.patch_size: expected a divisor of vision.image_size {self.vision.image_size}, "
                f"got {self.vision.patch_size}"
            )
        for part in ("vision", "text"):
            size = getattr(self, part)
            if size.hidden_size % size.num_attention_heads:
                problems.append(
                    f"{part}.num_attention_heads: expected a divisor of {part}.hidden_size "
                    f"{size.hidden_size}, got {size.num_attention_heads}"
                )
        if not self.head_widths or self.head_widths[-1] != 1:
            problems.append(f"head_widths: expected widths that end in 1, got {list(self.head_widths)}")
        if not 3 <= self.max_text_tokens <= self.text.max_position_embeddings:
            problems.append(
                f"max_text_tokens: expected 3 to text.max_position_embeddings "
                f"{self.text.max_position_embeddings}, got {self.max_text_tokens}"
            )
        if not self.score_std > 0:
            problems.append(f"score_std: expected a positive number, got {self.score_std}")
        if problems:
            raise ConfigurationError(problems)

    def transformers_text(self) -> BlipTextConfig:
        """Return the text part as transformers wants it.

        `is_decoder=True` only creates the cross-attention layers; the mask stays bidirectional as long
        as the forward call does not say `is_decoder`. Dropout is zero: the network is used for scoring,
        and at the size of the built-in reward dropout hinders training.
        """
        return BlipTextConfig(
            **asdict(self.text),
            encoder_hidden_size=self.vision.hidden_size,
            is_decoder=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            # Only generation reads these, and their defaults lie outside small vocabularies.
            bos_token_id=None,
            eos_token_id=None,
            sep_token_id=None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of a reward directory's config.json."""
        return {"format_version": FORMAT_VERSION, "kind": KIND, **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any], *, where: str) -> BlipRewardConfig:
        """Read the content of a config.json.

        Args:
            where: its path, for messages.

        Raises:
            ConfigurationError: another kind of directory, a newer format, unknown or missing keys.
        """
        if content.get("kind") != KIND:
            raise ConfigurationError(
                f"{where}: kind: expected {KIND!r}, got {content.get('kind')!r}; is this a reward directory?"
            )
        if content.get("format_version") != FORMAT_VERSION:
            raise ConfigurationError(
                f"{where}: format_version: expected {FORMAT_VERSION}, got {content.get('format_version')!r}; "
                "it was written by another version of this package"
            )
        plain = {key: value for key, value in content.items() if key not in ("format_version", "kind")}
        try:
            return BlipRewardConfig(
                **{
                    **plain,
                    "vision": VisionSize(**plain["vision"]),
                    "text": TextSize(**plain["text"]),
                    "head_widths": tuple(plain["head_widths"]),
                    "pixel_mean": tuple(plain.get("pixel_mean", CLIP_MEAN)),
                    "pixel_std": tuple(plain.get("pixel_std", CLIP_STD)),
                }
            )
        except (KeyError, TypeError) as error:
            expected = ", ".join(field.name for field in fields(BlipRewardConfig))
            raise ConfigurationError(f"{where}: {error}; expected the keys {expected}") from error


PUBLISHED_IMAGE_REWARD = BlipRewardConfig(
    name="image-reward",
    vision=VisionSize(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
    ),
    text=TextSize(
        vocab_size=30524,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=512,
    ),
    head_widths=(1024, 128, 64, 16, 1),
    max_text_tokens=35,
    score_mean=0.16717362830052426,
    score_std=1.0333394966054072,
)
"""ImageReward v1.0: BLIP ViT-L/16 at 224 pixels, BERT-base with cross-attention, 446.7 M parameters."""

HEAD_INDICES = (0, 2, 4, 6, 7)
"""Places of the linear layers in the published head; the places between them held dropouts."""


class BlipRewardNetwork(nn.Module):
    """Scores pixels against token ids; the affine map of the config is applied by `forward`."""

    def __init__(self, config: BlipRewardConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**asdict(config.vision), attention_dropout=0.0))
        self.text = BlipTextModel(config.transformers_text(), add_pooling_layer=False)
        depth = len(config.head_widths)
        indices = HEAD_INDICES if depth == len(HEAD_INDICES) else range(depth)
        self.mlp = LinearHead(config.text.hidden_size, config.head_widths, indices)
        self.score_mean = config.score_mean
        self.score_std = config.score_std

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return [B, P, V]: the class token and then the patches, row by row, after the last norm."""
        hidden_BPV: Tensor = self.vision(pixel_values=pixels_BCHW).last_hidden_state
        return hidden_BPV

    def encode_patches(self, patches_BVGG: Tensor) -> Tensor:
        """Return what `encode_image` does, of an image's patch embeddings [B, V, G, G] from elsewhere."""
        own = self.vision.embeddings
        tokens = patches_BVGG.flatten(2).transpose(1, 2)
        every = torch.cat([own.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1)
        seen = self.vision.encoder(inputs_embeds=every + own.position_embedding).last_hidden_state
        hidden_BPV: Tensor = self.vision.post_layernorm(seen)
        return hidden_BPV

    def read_text(self, image_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return [B, T, W]: the text after looking at the image (all its tokens: no image mask)."""
        hidden_BTW: Tensor = self.text(
            input_ids=ids_BT, attention_mask=mask_BT, encoder_hidden_states=image_BPV
        ).last_hidden_state
        return hidden_BTW

    def forward(self, pixels_BCHW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the scores [B]."""
        text_BTW = self.read_text(self.encode_image(pixels_BCHW), ids_BT, mask_BT)
        return self.normalise(self.head(text_BTW))

    def head(self, text_BTW: Tensor) -> Tensor:
        """Return the raw head output [B] from the first token's state.

        The head sees one row per image, so it is computed in whole blocks of rows.
        """
        raw: Tensor = self.mlp(in_whole_blocks(text_BTW[:, 0]))
        return raw[: text_BTW.shape[0]]

    def normalise(self, raw: Tensor) -> Tensor:
        """Apply the config's affine map."""
        return (raw - self.score_mean) / self.score_std


IMAGE_REWARD_KEYS: KeyTable = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(\w+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(\w+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"vision.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"vision.encoder.layers.\1.mlp.fc\2.\3"),
    (r"blip\.visual_encoder\.norm\.(\w+)", r"vision.post_layernorm.\1"),
    # A buffer of older transformers, not a weight.
    (r"blip\.text_encoder\.embeddings\.position_ids", None),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    # BLIP's contrastive heads; the reward never used them.
    (r"blip\.(vision|text)_proj\.\w+", None),
    (r"mlp\.layers\.(\d+)\.(\w+)", r"mlp.layers.\1.\2"),
)
"""From the names in the published ImageReward.pt to those of `BlipRewardNetwork`."""
