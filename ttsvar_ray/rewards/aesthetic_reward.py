"""Aesthetic rewards: an image's embedding through a linear head; the text is not looked at.

Neither head is part of this package. The head of Aesthetic Predictor V2.5 is licensed AGPL-3.0: it is
loaded from the file that the user names, and its code was not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, SiglipVisionModel

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.linear_head import load_linear_head
from ttsvar_ray.rewards.network_reward import NetworkReward, in_whole_blocks, rows_without_tail, settle
from ttsvar_ray.rewards.pixel_recipe import HALF, Fit, Library, PixelRecipe
from ttsvar_ray.rewards.pretrained import load_pretrained
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Preprocessing

LAION_HEAD = "sac+logos+ava1-l14-linearMSE.pth"
V25_HEAD = "aesthetic_predictor_v2_5.pth"
TTS_VAR_SCALE = 0.1


class AestheticReward(NetworkReward):
    """The head's value of an image's embedding, brought to length 1 (`rewards.protocol.Reward`).

    Args:
        name: written to the output rows.
        encoder: from pixels to embeddings.
        values_per_image: at the input of the encoder's activation functions.
        head: from embeddings [B, E] to [B, 1]; always runs in float32.
        recipe: from images to pixels.
        scale: factor of the head's value.
        device: torch device name.
        dtype: of the encoder.
        batch_rows: most images in one forward.
    """

    def __init__(
        self,
        *,
        name: str,
        encoder: nn.Module,
        values_per_image: int,
        head: nn.Module,
        recipe: PixelRecipe,
        scale: float = 1.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_rows: int = 32,
    ) -> None:
        super().__init__(
            name=name,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch_rows=batch_rows,
            cpu_rows=rows_without_tail(values_per_image),
        )
        self.encoder = settle(encoder, self.device, dtype)
        self.head = settle(head, self.device, torch.float32)
        self.scale = scale

    def _encode(self, text: str) -> RewardText:
        return RewardText()

    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Any]) -> Tensor:
        unit_BE = F.normalize(self.encoder(pixels_BCHW).float(), dim=-1)
        return self.scale * self.head(unit_BE)[: len(contents), 0]


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


class SiglipImageEncoder(nn.Module):
    """SigLIP's pooled image embeddings, one row per image and more to whole blocks.

    The pooling asks one question of all patches: from there on an image is a single row. Where CPU kernels
    would round it by its neighbours, the images are padded before the pooling.
    """

    def __init__(self, model: SiglipVisionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return [at least B, E]."""
        hidden = self.model.encoder(inputs_embeds=self.model.embeddings(pixels_BCHW)).last_hidden_state
        embedding: Tensor = self.model.head(in_whole_blocks(self.model.post_layernorm(hidden)))
        return embedding


def load_laion_aesthetic(
    folder: Path,
    *,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_rows: int = 32,
) -> AestheticReward:
    """Load LAION's improved aesthetic predictor (V2): about 1 to 10.

    Args:
        folder: holds the head `sac+logos+ava1-l14-linearMSE.pth`, and `clip/`: the directory of
            `openai/clip-vit-large-patch14`.
        preprocessing: PIL as published, or tensors on the device.
        device, dtype, batch_rows: as in `AestheticReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    model = load_pretrained(CLIPModel, folder / "clip")
    indices = (0, 2, 4, 6, 7)
    vision, width = model.config.vision_config, model.config.projection_dim
    head = load_linear_head(folder / LAION_HEAD, prefix="layers", indices=indices, input_width=width)
    return AestheticReward(
        name="laion-aesthetic",
        encoder=ClipImageEncoder(model),
        values_per_image=((vision.image_size // vision.patch_size) ** 2 + 1) * vision.intermediate_size,
        head=head,
        recipe=PixelRecipe(size=vision.image_size, preprocessing=preprocessing),
        device=device,
        dtype=dtype,
        batch_rows=batch_rows,
    )


def load_aesthetic_v25(
    folder: Path,
    *,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_rows: int = 32,
) -> AestheticReward:
    """Load Aesthetic Predictor V2.5 as TTS-VAR uses it: the predictor's 1 to 10, divided by 10.

    Args:
        folder: holds the head `aesthetic_predictor_v2_5.pth` (AGPL-3.0; get it from its own repository), and
            `siglip/`: the directory of `google/siglip-so400m-patch14-384`.
        preprocessing: PIL as published, or tensors on the device.
        device, dtype, batch_rows: as in `AestheticReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    model = load_pretrained(
        SiglipVisionModel, folder / "siglip", ignored=r"text_model\..*|logit_(scale|bias)"
    )
    if not model.use_head:
        raise CheckpointError(
            f"{folder / 'siglip'}: expected a SigLIP with its pooling head, got one without"
        )
    vision = model.config
    indices = (0, 2, 4, 6, 8)
    head = load_linear_head(
        folder / V25_HEAD, prefix="scoring_head", indices=indices, input_width=vision.hidden_size
    )
    recipe = PixelRecipe(
        size=vision.image_size,
        fit=Fit.STRETCH,
        mean=HALF,
        std=HALF,
        library=Library.TRANSFORMERS,
        preprocessing=preprocessing,
    )
    return AestheticReward(
        name="aesthetic-v2.5",
        encoder=SiglipImageEncoder(model),
        values_per_image=(vision.image_size // vision.patch_size) ** 2 * vision.intermediate_size,
        head=head,
        recipe=recipe,
        scale=TTS_VAR_SCALE,
        device=device,
        dtype=dtype,
        batch_rows=batch_rows,
    )
