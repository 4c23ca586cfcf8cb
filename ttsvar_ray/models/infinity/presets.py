"""The published Infinity models by name: sizes, tokenizers, files, defaults of their scripts.

A preset says everything that a published checkpoint leaves out, so that its files can be used as they are.
Source: Infinity (arXiv 2412.04431) and its released scripts, notebooks and model list.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.errors import ConfigurationError, nearest
from ttsvar_ray.models.infinity.config import TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.resolutions import Resolution, published_resolution

HUB_REPOSITORY = "FoundationVision/Infinity"
TEXT_ENCODER_REPOSITORY = "google/flan-t5-xl"
TEXT_ENCODER_FOLDER = "flan-t5-xl"
"""Name of the text encoder's folder beside the published files, as the released scripts expect it."""

TEXT_CHANNELS = 2048
TEXT_MAX_LENGTH = 512
TOP_P = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerPreset:
    """One published tokenizer.

    Attributes:
        name: how the published files call it.
        file: its weights in `HUB_REPOSITORY`.
        codebook_dim: d, channels of the feature map.
        multipliers: channel multipliers of both sides, image side first.
        spatial_patchify: whether one token covers 2x2 cells of the feature map.
        base_channels, num_res_blocks: of both sides.
    """

    name: str
    file: str
    codebook_dim: int
    multipliers: tuple[int, ...]
    spatial_patchify: bool = False
    base_channels: int = 128
    num_res_blocks: int = 2

    @property
    def bits_per_token(self) -> int:
        """Bits of one transformer token."""
        return self.codebook_dim * (4 if self.spatial_patchify else 1)

    def config(self) -> TokenizerConfig:
        """Return the architecture."""
        return TokenizerConfig(
            codebook_dim=self.codebook_dim,
            base_channels=self.base_channels,
            encoder_multipliers=self.multipliers,
            decoder_multipliers=self.multipliers,
            num_res_blocks=self.num_res_blocks,
        )


def _f16(dim: int, name: str = "") -> TokenizerPreset:
    name = name or f"d{dim}"
    return TokenizerPreset(
        name=name, file=f"infinity_vae_{name}.pth", codebook_dim=dim, multipliers=(1, 2, 4, 4, 4)
    )


TOKENIZERS: dict[str, TokenizerPreset] = {
    preset.name: preset
    for preset in (
        _f16(16),
        _f16(24),
        _f16(32),
        _f16(64),
        _f16(32, "d32reg"),
        TokenizerPreset(
            name="d56_f8_14_patchify",
            file="infinity_vae_d56_f8_14_patchify.pth",
            codebook_dim=14,
            multipliers=(1, 2, 4, 4),
            spatial_patchify=True,
        ),
    )
}
"""Published tokenizers; those with five multipliers reduce the image 16 times, the last one 8 times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfinityPreset:
    """One published model.

    Attributes:
        name: how settings call it.
        published_name: how the released code calls its architecture.
        depth, embed_dim, num_heads, block_chunks: of the transformer.
        tokenizer: the tokenizer it was trained with.
        size: image size it was trained for last, a key of `SCALES_OF_SIZE`; the default.
        guidance, temperature: of the released scripts.
        weights: its file, or folder of shards, in `HUB_REPOSITORY`; None where nothing was released.
    """

    name: str
    published_name: str
    depth: int
    embed_dim: int
    num_heads: int
    block_chunks: int
    tokenizer: TokenizerPreset
    size: str
    guidance: float = 3.0
    temperature: float = 0.5
    weights: str | None = None

    # Reward and features of the published search; their weights are named by the job.
    reward: str = "image-reward"
    extractor: str = "pca"

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def bits_per_token(self) -> int:
        return self.tokenizer.bits_per_token

    @property
    def files(self) -> tuple[str, ...]:
        """What to fetch from `HUB_REPOSITORY`, as patterns; empty where nothing was released."""
        if self.weights is None:
            return ()
        pattern = self.weights if self.weights.endswith(".pth") else f"{self.weights}/*"
        return (pattern, self.tokenizer.file)

    def transformer_config(self, resolution: Resolution | None = None) -> TransformerConfig:
        """Return the transformer's sizes; positions are stretched to the resolution's grid."""
        chosen = resolution or published_resolution(self.size)
        return TransformerConfig(
            depth=self.depth,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            block_chunks=self.block_chunks,
            bits_per_token=self.bits_per_token,
            text_channels=TEXT_CHANNELS,
            text_max_length=TEXT_MAX_LENGTH,
            rope_grid=chosen.rope_grid,
        )

    def quantizer(self, resolution: Resolution | None = None) -> Quantizer:
        """Return the map between bits and feature maps at a resolution."""
        return Quantizer(
            codebook_dim=self.tokenizer.codebook_dim,
            schedule=(resolution or published_resolution(self.size)).schedule,
            spatial_patchify=self.tokenizer.spatial_patchify,
        )


def _layers(name: str, layers: int, width: int, heads: int, tokenizer: str) -> InfinityPreset:
    return InfinityPreset(
        name=name,
        published_name=f"infinity_layer{layers}",
        depth=layers,
        embed_dim=width,
        num_heads=heads,
        block_chunks=4,
        tokenizer=TOKENIZERS[tokenizer],
        size="0.06M",
    )


def _eight_billion(name: str, size: str, weights: str) -> InfinityPreset:
    return InfinityPreset(
        name=name,
        published_name="infinity_8b",
        depth=40,
        embed_dim=3584,
        num_heads=28,
        block_chunks=8,
        tokenizer=TOKENIZERS["d56_f8_14_patchify"],
        size=size,
        temperature=1.0,
        weights=weights,
    )


PRESETS: dict[str, InfinityPreset] = {
    preset.name: preset
    for preset in (
        InfinityPreset(
            name="infinity-2b",
            published_name="infinity_2b",
            depth=32,
            embed_dim=2048,
            num_heads=16,
            block_chunks=8,
            tokenizer=TOKENIZERS["d32reg"],
            size="1M",
            weights="infinity_2b_reg.pth",
        ),
        _eight_billion("infinity-8b", "1M", "infinity_8b_weights"),
        _eight_billion("infinity-8b-512", "0.25M", "infinity_8b_512x512_weights"),
        # Architectures of the scaling study: no checkpoint was released. The first is named with d16,
        # the others take the tokenizer of the released training script.
        _layers("infinity-125m", 12, 768, 8, "d16"),
        _layers("infinity-layer16", 16, 1152, 12, "d32"),
        _layers("infinity-1b", 24, 1536, 16, "d32"),
        _layers("infinity-layer32", 32, 2080, 20, "d32"),
        _layers("infinity-layer40", 40, 2688, 24, "d32"),
        _layers("infinity-layer48", 48, 3360, 28, "d32"),
        InfinityPreset(
            name="infinity-20b",
            published_name="infinity_20b",
            depth=58,
            embed_dim=4608,
            num_heads=36,
            # Nothing says how its blocks are grouped; only names in the state dict depend on it.
            block_chunks=2,
            tokenizer=TOKENIZERS["d32reg"],
            size="1M",
        ),
    )
}
"""Every published architecture, by the name that settings use."""


def find_preset(name: str) -> InfinityPreset:
    """Return a preset.

    Raises:
        ConfigurationError: no such name.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigurationError(f"preset: expected one of {known}, got {name!r}{nearest(name, [*PRESETS])}")
    return PRESETS[name]
