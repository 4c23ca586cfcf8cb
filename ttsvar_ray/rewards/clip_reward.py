"""Rewards of CLIP: how well an image and a text agree. HPS v2.0 and v2.1, the CLIP score and PickScore.

Shape legend: B rows, E embedding width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from ttsvar_ray.rewards.clip import ClipTokens, TextCleaning, load_open_clip, load_tokenizer, read_sizes
from ttsvar_ray.rewards.network_reward import NetworkReward
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Preprocessing
from ttsvar_ray.vision.batches import in_whole_blocks, rows_without_tail, settle
from ttsvar_ray.vision.checkpoints import load_pretrained
from ttsvar_ray.vision.pixels import Fit, Library, PixelRecipe


class ClipReward(NetworkReward):
    """Scale times the cosine between an image's and a text's embedding (`rewards.protocol.Reward`).

    Args:
        model: the network; its activation (GELU or quick-GELU) belongs to the weights.
        tokens: from a text to 77 ids.
        scale: factor of the cosine.
        how: as in `NetworkReward`.
    """

    def __init__(self, *, model: CLIPModel, tokens: ClipTokens, scale: float = 1.0, **how: Any) -> None:
        super().__init__(cpu_rows=rows_without_tail(mlp_values(model)), **how)
        self.model = settle(model, self.device, self.dtype)
        self.encoder = ClipImageEncoder(self.model)
        self.tokens = tokens
        self.scale = scale

    def _encode(self, text: str) -> RewardText:
        ids, truncated = self.tokens.encode(text)
        pooled = self.model.text_model(input_ids=torch.tensor([ids]).to(self.device)).pooler_output
        embedding_1E = F.normalize(self.model.text_projection(pooled), dim=-1)
        return RewardText(content=embedding_1E[0], truncated=truncated)

    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Tensor]) -> Tensor:
        image_BE = F.normalize(self.encoder(pixels_BCHW), dim=-1)
        text_BE = in_whole_blocks(torch.stack(list(contents)))
        return self.scale * (image_BE.float() * text_BE.float()).sum(dim=-1)[: len(contents)]


class ClipImageEncoder(nn.Module):
    """CLIP's projected image embeddings, one row per image and more to whole blocks."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.tower, self.projection = model.vision_model, model.visual_projection

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return [at least B, E]."""
        embedding: Tensor = self.projection(
            in_whole_blocks(self.tower(pixel_values=pixels_BCHW).pooler_output)
        )
        return embedding


def mlp_values(model: CLIPModel) -> int:
    """Return the values of one image at the input of the vision tower's activation functions."""
    vision = model.config.vision_config
    return int(((vision.image_size // vision.patch_size) ** 2 + 1) * vision.intermediate_size)


def load_hps(
    folder: Path,
    *,
    file: str,
    tokens: ClipTokens | None = None,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    **how: Any,
) -> ClipReward:
    """Load HPS v2.0 or v2.1: the plain cosine.

    Args:
        folder: holds the weights and CLIP's tokenizer; for other sizes than the published ViT-H-14's also
            open_clip's model file `ViT-*.json`.
        file: of the weights, in the folder.
        tokens: instead of the folder's tokenizer.
        preprocessing: not read: HPS resizes tensors as published, so both ways are one.
        how: name, device and dtype, as in `NetworkReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
        ConfigurationError: ftfy is not installed.
    """
    sizes = read_sizes(folder)
    return ClipReward(
        model=load_open_clip(folder / file, sizes),
        tokens=tokens or load_tokenizer(folder, TextCleaning.CLIP),
        recipe=PixelRecipe(size=sizes.image_size, fit=Fit.PAD),
        **how,
    )


def load_clip(
    folder: Path,
    *,
    cleaning: str,
    library: str = Library.TORCHVISION.value,
    scaled: bool = False,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    **how: Any,
) -> ClipReward:
    """Load a CLIP directory of transformers, with CLIP's tokenizer in it.

    Args:
        folder: of a network with its configuration, so of any size.
        cleaning: of the texts, see `TextCleaning`.
        library: whose arithmetic makes the pixels, see `Library`.
        scaled: multiply the cosine by exp(logit scale), as the network was trained.
        preprocessing: PIL as published, or tensors on the device.
        how: name, device and dtype, as in `NetworkReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
        ConfigurationError: ftfy is not installed.
    """
    model = load_pretrained(CLIPModel, folder)
    return ClipReward(
        model=model,
        tokens=load_tokenizer(folder, TextCleaning(cleaning)),
        recipe=PixelRecipe(
            size=model.config.vision_config.image_size,
            library=Library(library),
            preprocessing=preprocessing,
        ),
        scale=float(model.logit_scale.detach().exp()) if scaled else 1.0,
        **how,
    )
