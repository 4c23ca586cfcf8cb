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
from ttsvar_ray.rewards.clip_reward import ClipImageEncoder, mlp_values
from ttsvar_ray.rewards.network_reward import LinearHead, NetworkReward
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Preprocessing
from ttsvar_ray.vision.batches import in_whole_blocks, rows_without_tail, settle
from ttsvar_ray.vision.checkpoints import load_pretrained, load_strict, read_published
from ttsvar_ray.vision.pixels import HALF, Fit, Library, PixelRecipe


class AestheticReward(NetworkReward):
    """The head's value of an image's embedding, brought to length 1 (`rewards.protocol.Reward`).

    Args:
        encoder: from pixels to embeddings.
        values_per_image: at the input of the encoder's activation functions.
        head: from embeddings [B, E] to [B]; always runs in float32.
        scale: factor of the head's value.
        how: as in `NetworkReward`; the dtype is the encoder's.
    """

    def __init__(
        self, *, encoder: nn.Module, values_per_image: int, head: LinearHead, scale: float = 1.0, **how: Any
    ) -> None:
        super().__init__(cpu_rows=rows_without_tail(values_per_image), **how)
        self.encoder = settle(encoder, self.device, self.dtype)
        self.head = settle(head, self.device, torch.float32)
        self.scale = scale

    def _encode(self, text: str) -> RewardText:
        return RewardText()

    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Any]) -> Tensor:
        unit_BE = F.normalize(self.encoder(pixels_BCHW).float(), dim=-1)
        return self.scale * self.head(unit_BE)[: len(contents)]


class _SiglipImageEncoder(nn.Module):
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
    head: str,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    **how: Any,
) -> AestheticReward:
    """Load LAION's improved aesthetic predictor (V2).

    Args:
        folder: holds the head, and `clip/`: the directory of `openai/clip-vit-large-patch14`.
        head: file of the head, in the folder.
        preprocessing: PIL as published, or tensors on the device.
        how: name, device and dtype, as in `NetworkReward`.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    model = load_pretrained(CLIPModel, folder / "clip")
    return AestheticReward(
        encoder=ClipImageEncoder(model),
        values_per_image=mlp_values(model),
        head=_load_linear_head(
            folder / head, prefix="layers", indices=(0, 2, 4, 6, 7), input_width=model.config.projection_dim
        ),
        recipe=PixelRecipe(size=model.config.vision_config.image_size, preprocessing=preprocessing),
        **how,
    )


def load_aesthetic_v25(
    folder: Path,
    *,
    head: str,
    scale: float,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    **how: Any,
) -> AestheticReward:
    """Load Aesthetic Predictor V2.5.

    Args:
        folder: holds the head (AGPL-3.0; get it from its own repository), and `siglip/`: the directory of
            `google/siglip-so400m-patch14-384`.
        head: file of the head, in the folder.
        scale: factor of the predictor's 1 to 10.
        preprocessing: PIL as published, or tensors on the device.
        how: name, device and dtype, as in `NetworkReward`.

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
    return AestheticReward(
        encoder=_SiglipImageEncoder(model),
        values_per_image=(vision.image_size // vision.patch_size) ** 2 * vision.intermediate_size,
        head=_load_linear_head(
            folder / head, prefix="scoring_head", indices=(0, 2, 4, 6, 8), input_width=vision.hidden_size
        ),
        recipe=PixelRecipe(
            size=vision.image_size,
            fit=Fit.STRETCH,
            mean=HALF,
            std=HALF,
            library=Library.TRANSFORMERS,
            preprocessing=preprocessing,
        ),
        scale=scale,
        **how,
    )


def _load_linear_head(path: Path, *, prefix: str, indices: Sequence[int], input_width: int) -> LinearHead:
    """Read a head (weights only): `{prefix}.{index}.weight` and `.bias`, ending in one output.

    Args:
        indices: places of the linear layers; a file with other places has other layers there, such as
            activations, so it is refused.

    Raises:
        CheckpointError: no such file, other layers, or widths that do not fit.
    """
    weights = read_published(path, expected="the published head of this reward")
    expected = {f"{prefix}.{index}.{part}" for index in indices for part in ("weight", "bias")}
    if set(weights) != expected:
        raise CheckpointError(f"{path}: expected exactly the keys {sorted(expected)}, got {sorted(weights)}")
    widths = [len(weights[f"{prefix}.{index}.weight"]) for index in indices]
    if widths[-1] != 1:
        raise CheckpointError(f"{path}: expected one output, got {widths[-1]}")
    head = LinearHead(input_width, widths, indices)
    own_names = {f"layers.{key.removeprefix(f'{prefix}.')}": weight for key, weight in weights.items()}
    load_strict(head, own_names, source=str(path))
    return head
