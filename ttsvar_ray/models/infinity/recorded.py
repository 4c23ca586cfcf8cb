"""A recorded architecture with its weights and texts, as this implementation's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttsvar_ray.models.infinity.config import TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.directory import build_tokenizer, build_transformer
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.resolutions import FULL_SCHEDULES
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.types import ScaleSchedule


@dataclass(frozen=True, slots=True)
class RecordedTexts:
    """Text features by name, in place of a text encoder."""

    features: dict[str, Tensor]
    max_length: int

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = [self.features[text] for text in texts]
        padded = torch.zeros(len(found), self.max_length, found[0].shape[-1])
        for row, rows in zip(padded, found, strict=True):
            row[: len(rows)] = rows
        return padded, torch.tensor([len(rows) for rows in found])

    @classmethod
    def unpack(cls, compact: Tensor, lens: Sequence[int], max_length: int) -> RecordedTexts:
        """Split features [sum of lens, channels]; the texts are named "0", "1", ..."""
        parts = compact.float().split(list(lens))
        return cls({str(index): part for index, part in enumerate(parts)}, max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedArchitecture:
    """One letter of config.json with its weights."""

    values: dict[str, Any]
    transformer_weights: dict[str, Tensor]
    tokenizer_weights: dict[str, Tensor] | None
    device: torch.device
    dtype: torch.dtype

    def transformer(self, schedule: ScaleSchedule, rope_grid: tuple[int, int]) -> InfinityTransformer:
        model, dim = self.values["model"], self.values["vae"]["codebook_dim"]
        config = TransformerConfig(
            depth=model["depth"],
            embed_dim=model["embed_dim"],
            num_heads=model["num_heads"],
            block_chunks=model["block_chunks"],
            bits_per_token=dim * (4 if self.values["patchify"] else 1),
            text_channels=model["text_channels"],
            text_max_length=model["text_maxlen"],
            rope_grid=rope_grid,
            mlp_ratio=self.values["mlp_ratio"],
        )
        return build_transformer(
            config,
            schedule,
            self.transformer_weights,
            device=self.device,
            dtype=self.dtype,
            source="recorded transformer",
        )

    def tokenizer(self) -> ImageTokenizer:
        vae = self.values["vae"]
        config = TokenizerConfig(
            codebook_dim=vae["codebook_dim"],
            base_channels=vae["base_ch"],
            encoder_multipliers=tuple(vae["enc_mult"]),
            decoder_multipliers=tuple(vae["dec_mult"]),
            num_res_blocks=vae["num_res_blocks"],
        )
        if self.tokenizer_weights is None:
            return ImageTokenizer(config).to(self.device).eval()
        return build_tokenizer(
            config, self.tokenizer_weights, device=self.device, source="recorded tokenizer"
        )

    def quantizer(self, schedule: ScaleSchedule) -> Quantizer:
        return Quantizer(
            codebook_dim=self.values["vae"]["codebook_dim"],
            schedule=schedule,
            spatial_patchify=bool(self.values["patchify"]),
        )

    def model(
        self, texts: RecordedTexts, schedule: ScaleSchedule, aspect: float, sampling: SamplingSettings
    ) -> InfinityModel:
        return InfinityModel(
            name="recorded",
            transformer=self.transformer(schedule, FULL_SCHEDULES[aspect][-1]),
            tokenizer=self.tokenizer(),
            quantizer=self.quantizer(schedule),
            text_encoder=texts,
            sampling=sampling,
        )
