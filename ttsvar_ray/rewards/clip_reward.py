"""Rewards of CLIP: how well an image and a text agree. HPS v2.0 and v2.1, the CLIP score and PickScore.

Shape legend: B rows, E embedding width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.clip_tokens import ClipTokens, TextCleaning, load_tokenizer
from ttsvar_ray.rewards.network_reward import NetworkReward, in_whole_blocks, rows_without_tail, settle
from ttsvar_ray.rewards.open_clip_checkpoint import load_open_clip, read_sizes
from ttsvar_ray.rewards.pixel_recipe import Fit, Library, PixelRecipe
from ttsvar_ray.rewards.pretrained import load_pretrained
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Preprocessing

HPS_FILES = {"hps-v2.0": "HPS_v2_compressed.pt", "hps-v2.1": "HPS_v2.1_compressed.pt"}
"""Files of the published xswu/HPSv2."""


class ClipReward(NetworkReward):
    """Scale times the cosine between an image's and a text's embedding (`rewards.protocol.Reward`).

    Args:
        name: written to the output rows.
        model: the network; its activation (GELU or quick-GELU) belongs to the weights.
        tokens: from a text to 77 ids.
        recipe: from images to pixels.
        scale: factor of the cosine.
        device: torch device name.
        dtype: of weights and activations.
        batch_rows: most images in one forward.
    """

    def __init__(
        self,
        *,
        name: str,
        model: CLIPModel,
        tokens: ClipTokens,
        recipe: PixelRecipe,
        scale: float = 1.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_rows: int = 32,
    ) -> None:
        vision = model.config.vision_config
        tokens_of_an_image = (vision.image_size // vision.patch_size) ** 2 + 1
        super().__init__(
            name=name,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch_rows=batch_rows,
            cpu_rows=rows_without_tail(tokens_of_an_image * vision.intermediate_size),
        )
        self.model = settle(model, self.device, dtype)
        self.tokens = tokens
        self.scale = scale

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        """Return [B, E] embeddings of length 1, padded with more rows to whole blocks."""
        pooled = in_whole_blocks(self.model.vision_model(pixel_values=pixels_BCHW).pooler_output)
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def encode_ids(self, ids_BT: Tensor) -> Tensor:
        """Return [B, E] embeddings of length 1."""
        pooled = self.model.text_model(input_ids=ids_BT.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)

    def _encode(self, text: str) -> RewardText:
        ids, truncated = self.tokens.encode(text)
        return RewardText(content=self.encode_ids(torch.tensor([ids]))[0], truncated=truncated)

    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Tensor]) -> Tensor:
        image_BE = self.encode_image(pixels_BCHW)
        text_BE = in_whole_blocks(torch.stack(list(contents)))
        return self.scale * (image_BE.float() * text_BE.float()).sum(dim=-1)[: len(contents)]


def load_hps(
    name: str,
    folder: Path,
    *,
    tokens: ClipTokens | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_rows: int = 32,
) -> ClipReward:
    """Load HPS v2.0 or v2.1: the plain cosine, 0.2 to 0.35 for most images.

    Args:
        name: a key of `HPS_FILES`.
        folder: holds that file and CLIP's tokenizer; for other sizes than the published ViT-H-14's also
            open_clip's model file `ViT-*.json`.
        tokens: instead of the folder's tokenizer.
        device, dtype, batch_rows: as in `ClipReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
        ConfigurationError: ftfy is not installed.
    """
    path = folder / HPS_FILES[name]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {name} is that file of xswu/HPSv2")
    sizes = read_sizes(folder)
    return ClipReward(
        name=name,
        model=load_open_clip(path, sizes),
        tokens=tokens or load_tokenizer(folder, TextCleaning.CLIP),
        recipe=PixelRecipe(size=sizes.image_size, fit=Fit.PAD),
        device=device,
        dtype=dtype,
        batch_rows=batch_rows,
    )


def load_clip_score(
    folder: Path,
    *,
    tokens: ClipTokens | None = None,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_rows: int = 32,
) -> ClipReward:
    """Load a CLIP directory of transformers: the plain cosine, -1 to 1, not scaled.

    Args:
        folder: `openai/clip-vit-large-patch14` for the CLIP score that ImageReward reports; any other CLIP,
            as LAION's, gives its own.
        tokens: instead of the folder's tokenizer.
        preprocessing: PIL as published, or tensors on the device.
        device, dtype, batch_rows: as in `ClipReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
        ConfigurationError: ftfy is not installed.
    """
    model = load_pretrained(CLIPModel, folder)
    return ClipReward(
        name="clip-score",
        model=model,
        tokens=tokens or load_tokenizer(folder, TextCleaning.CLIP),
        recipe=PixelRecipe(size=model.config.vision_config.image_size, preprocessing=preprocessing),
        device=device,
        dtype=dtype,
        batch_rows=batch_rows,
    )


def load_pick_score(
    folder: Path,
    *,
    tokens: ClipTokens | None = None,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_rows: int = 32,
) -> ClipReward:
    """Load `yuvalkirstain/PickScore_v1`: exp(logit scale) times the cosine, 18 to 24 for most images.

    Its texts and pixels are those of transformers' processor for `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.

    Args:
        folder: the model's directory, with CLIP's tokenizer in it.
        tokens: instead of the folder's tokenizer.
        preprocessing: PIL as published, or tensors on the device.
        device, dtype, batch_rows: as in `ClipReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    model = load_pretrained(CLIPModel, folder)
    return ClipReward(
        name="pick-score",
        model=model,
        tokens=tokens or load_tokenizer(folder, TextCleaning.TRANSFORMERS),
        recipe=PixelRecipe(
            size=model.config.vision_config.image_size,
            library=Library.TRANSFORMERS,
            preprocessing=preprocessing,
        ),
        scale=float(model.logit_scale.detach().exp()),
        device=device,
        dtype=dtype,
        batch_rows=batch_rows,
    )
