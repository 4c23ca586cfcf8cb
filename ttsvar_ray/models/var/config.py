"""Hyper-parameters of a VAR model, and the published ones by name: without any file, and without torch.

Source: VAR (arXiv 2404.02905) section 4.1: width 64 d and d heads for depth d; the 512-pixel model shares
one modulation layer among its blocks and has a longer schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.description import ModelDescription, section_values
from ttsvar_ray.models.registry import FamilyEntry, imported_when_called
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.models.weight_source import HubRepository, WeightSource, parse_root
from ttsvar_ray.types import ScaleSchedule

FAMILY = "var"

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def square_schedule(sides: tuple[int, ...]) -> ScaleSchedule:
    """Return the schedule of square scales with these sides."""
    return tuple((side, side) for side in sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarConfig:
    """Architecture of one transformer.

    Attributes:
        embed_dim: width C.
        num_heads: heads of self-attention; divides the width.
        vocabulary: entries of the codebook, V.
        codebook_dim: channels of the feature map.
        num_classes: classes; the embedding has one more row, "no class".
        mlp_ratio: feed-forward width over C.
        shared_modulation: one modulation layer for all blocks, with an offset for each.
    """

    embed_dim: int
    depth: int
    num_heads: int
    vocabulary: int = 4096
    codebook_dim: int = 32
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    shared_modulation: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"transformer.{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("embed_dim", "depth", "num_heads", "codebook_dim", "num_classes")
            if getattr(self, name) < 1
        ]
        if self.vocabulary < 2:
            problems.append(f"transformer.vocabulary: expected at least 2, got {self.vocabulary}")
        if not problems and self.embed_dim % self.num_heads:
            problems.append(
                f"transformer.num_heads: expected a divisor of embed_dim {self.embed_dim}, "
                f"got {self.num_heads}"
            )
        if problems:
            raise ConfigurationError(problems)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward part."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def bits_per_token(self) -> int:
        """Bits that name one entry of the codebook."""
        return (self.vocabulary - 1).bit_length()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VarConfig:
        """Read the transformer section of config.json.

        Raises:
            ConfigurationError: unknown or absent keys, or values that make no model.
        """
        # The bits are written for readers that know no family; here they follow from the vocabulary.
        config = cls(**section_values(cls, values, section="transformer", beside=("bits_per_token",)))
        stated = values.get("bits_per_token", config.bits_per_token)
        if stated != config.bits_per_token:
            raise ConfigurationError(
                f"transformer.bits_per_token: expected {config.bits_per_token} for a vocabulary of "
                f"{config.vocabulary}, got {stated}"
            )
        return config

    def to_json(self) -> dict[str, Any]:
        """Return the transformer section of config.json."""
        return {**dataclasses.asdict(self), "bits_per_token": self.bits_per_token}


@dataclass(frozen=True, slots=True, kw_only=True)
class VqConfig:
    """Architecture of one tokenizer.

    Attributes:
        vocabulary, codebook_dim: the codebook, V x d.
        base_channels: channels at multiplier 1; a multiple of 32, the norm's groups.
        multipliers: per level, image side first; one level less than this many halvings of the image.
        num_res_blocks: per encoder level; the decoder has one more.
        num_smoothers: convolutions that smooth what a scale adds, shared among neighbouring scales.
        smoothing: part of a scale's addition that is smoothed, in [0, 1].
    """

    vocabulary: int = 4096
    codebook_dim: int = 32
    base_channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_smoothers: int = 4
    smoothing: float = 0.5

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the feature map."""
        return int(2 ** (len(self.multipliers) - 1))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VqConfig:
        """Read the tokenizer section of config.json.

        Raises:
            ConfigurationError: unknown keys.
        """
        # `patch_size` is written for readers that know no family.
        return cls(**section_values(cls, values, section="tokenizer", beside=("patch_size",)))

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer section of config.json."""
        return {**dataclasses.asdict(self), "patch_size": self.patch_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class VarPreset:
    """A published model: architecture, schedule and files.

    Attributes:
        plan: search settings with the names of the job's `strategy` section. TTS-VAR was published for
            Infinity's 13 scales; these select where a VAR's map has about the same part of its final side.
        parameters: of the transformer, as published (rounded by its authors).
        guidance_peak: published guidance: the scale rises linearly from 1 to 1 + this.
    """

    name: str
    transformer: VarConfig
    scale_schedule: ScaleSchedule
    checkpoint: str
    plan: Mapping[str, Any]
    parameters: float
    tokenizer_checkpoint: str = "vae_ch160v4096z32.pth"
    repository: str = "FoundationVision/var"
    guidance_peak: float = 1.5
    top_k: int = 900
    top_p: float = 0.96


PLAN_256 = {
    "batch_schedule": (8, 8, 6, 4, 2, 2, 1, 1, 1, 1),
    "cluster_scales": (2, 3),
    "resample_scales": (4, 6),
}
PLAN_512 = {
    "batch_schedule": (8, 8, 6, 6, 4, 2, 2, 1, 1, 1),
    "cluster_scales": (2, 4),
    "resample_scales": (5, 7),
}


def _preset(depth: int, parameters: float, *, large: bool = False) -> VarPreset:
    return VarPreset(
        name=f"var-d{depth}",
        transformer=VarConfig(embed_dim=64 * depth, depth=depth, num_heads=depth, shared_modulation=large),
        scale_schedule=square_schedule(PATCH_NUMS_512 if large else PATCH_NUMS_256),
        checkpoint=f"var_d{depth}.pth",
        plan=PLAN_512 if large else PLAN_256,
        parameters=parameters,
    )


PRESETS: dict[str, VarPreset] = {
    preset.name: preset
    for preset in (
        _preset(16, 310e6),
        _preset(20, 600e6),
        _preset(24, 1.0e9),
        _preset(30, 2.0e9),
        _preset(36, 2.3e9, large=True),
    )
}
"""Published models by name."""


def linear_guidance(peak: float, num_scales: int) -> tuple[float, ...]:
    """Return the published guidance of each scale: 1 + peak * k / (K - 1).

    Differs: published code writes (1 + t) * conditional - t * unconditional; here the guidance scale is
    g = 1 + t, as for every family.
    """
    return tuple(1.0 + peak * k / max(1, num_scales - 1) for k in range(num_scales))


REWARD = "clip-score"
EXTRACTOR = "pca"


def describe_var_preset(preset: VarPreset, *, path: str | None = None) -> ModelDescription:
    """Describe a published model without reading its weights.

    Args:
        path: folder of its files under their published names, or `hf:owner/name[@revision]`; None is the
            repository they were published in.
    """
    root = HubRepository(preset.repository) if path is None else parse_root(path)
    schedule, scales = preset.scale_schedule, len(preset.scale_schedule)
    tokenizer = VqConfig(
        vocabulary=preset.transformer.vocabulary, codebook_dim=preset.transformer.codebook_dim
    )
    return ModelDescription(
        source=preset.name,
        name=preset.name,
        family=FAMILY,
        scale_schedule=schedule,
        bits_per_token=preset.transformer.bits_per_token,
        image_height=schedule[-1][0] * tokenizer.patch_size,
        image_width=schedule[-1][1] * tokenizer.patch_size,
        sampling=SamplingSettings(
            guidance=linear_guidance(preset.guidance_peak, scales),
            temperature=per_scale("temperature", 1.0, scales),
            top_p=preset.top_p,
            top_k=preset.top_k,
        ),
        plan=preset.plan,
        reward_name=REWARD,
        reward_path=None,
        extractor=EXTRACTOR,
        backbone_path=None,
        transformer=preset.transformer.to_json(),
        tokenizer=tokenizer.to_json(),
        weights={
            "transformer": WeightSource(root, preset.checkpoint),
            "tokenizer": WeightSource(root, preset.tokenizer_checkpoint),
        },
    )


ENTRY = FamilyEntry(
    load=imported_when_called("ttsvar_ray.models.var.directory:load_var"),
    on_meta=imported_when_called("ttsvar_ray.models.var.directory:var_on_meta"),
    published=PRESETS,
    describe=lambda choice: describe_var_preset(PRESETS[choice.name], path=choice.path),
    reads_texts=False,
    licence="mit",
)
