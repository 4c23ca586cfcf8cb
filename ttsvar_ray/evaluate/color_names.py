"""The color of an object, by CLIP: the nearest of ten descriptions, as GenEval asks.

Everything outside the object's mask is painted grey, what is left is cut to its box, and this is compared
with each color in three sentences. The official weights are CLIP ViT-L/14 of OpenAI, whose activation is
quick-GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.evaluate.geneval_prompts import COLORS
from ttsvar_ray.evaluate.geneval_rules import Detected
from ttsvar_ray.evaluate.mask2former_weights import sha256_of
from ttsvar_ray.rewards.clip import TextCleaning
from ttsvar_ray.rewards.clip_reward import ClipReward, load_clip
from ttsvar_ray.types import UInt8Array

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GREY = (0x99, 0x99, 0x99)
OFFICIAL_WIDTHS = (1024, 24, 224)
"""Width, layers and pixels of the vision tower of CLIP ViT-L/14."""


class ColorNames:
    """Names the colors of objects.

    Args:
        clip: a CLIP with its tokenizer.
        label, digest: whose weights they are, for results.
    """

    def __init__(self, clip: ClipReward, *, label: str, digest: str) -> None:
        self.clip = clip
        self.label, self.digest = label, digest
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> ColorNames:
        """Load a directory of transformers with a CLIP and its tokenizer.

        Raises:
            CheckpointError: a file is missing or does not fit, or the activation is another than quick-GELU.
        """
        # The sentences are plain ASCII, which ftfy leaves as they are.
        clip = load_clip(folder, name="colors", cleaning=TextCleaning.TRANSFORMERS.value, device=device)
        vision = clip.model.config.vision_config
        if vision.hidden_act != "quick_gelu":
            raise CheckpointError(
                f"{folder}: expected a CLIP with quick_gelu, as OpenAI's, found {vision.hidden_act}: GenEval "
                "names colors by ViT-L/14 of OpenAI; fetch openai/clip-vit-large-patch14"
            )
        sizes = (vision.hidden_size, vision.num_hidden_layers, vision.image_size)
        label = "CLIP ViT-L/14" if sizes == OFFICIAL_WIDTHS else f"not CLIP ViT-L/14: sizes {sizes}"
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        return cls(clip, label=label, digest=sha256_of(*weights))

    def name(self, image: UInt8Array, objects: Sequence[Detected], class_name: str) -> list[str]:
        """Return one of `COLORS` for each object.

        Args:
            image: uint8 RGB [height, width, 3].
            objects: with masks, bool [height, width].
            class_name: of all of them; part of the sentences.
        """
        crops = [self.clip.preprocess(cut_out(image, one)[None]) for one in objects]
        embeddings_BE = torch.from_numpy(self.clip.run(self._embed, torch.cat(crops)))
        cosines_BC = embeddings_BE @ self._texts_of(class_name).T
        return [COLORS[place] for place in cosines_BC.argmax(dim=1).tolist()]

    def _embed(self, pixels_BCHW: Tensor, contents: Sequence[None]) -> Tensor:
        return F.normalize(self.clip.encoder(pixels_BCHW), dim=-1)

    def _texts_of(self, class_name: str) -> Tensor:
        """Return float32 [colors, E] on the CPU: the mean direction of each color's sentences."""
        if class_name not in self._texts:
            sentences = [
                template.format(color=color, name=class_name) for color in COLORS for template in TEMPLATES
            ]
            texts = torch.stack([text.content for text in self.clip.encode_text(sentences)]).float().cpu()
            self._texts[class_name] = F.normalize(texts.unflatten(0, (len(COLORS), -1)).mean(dim=1), dim=-1)
        return self._texts[class_name]


def cut_out(image: UInt8Array, one: Detected) -> UInt8Array:
    """Return what is inside an object's box, with grey where its mask is not."""
    painted = np.where(one.mask[:, :, None], image, np.array(GREY, np.uint8))
    # As PIL crops: sides rounded half to even.
    left, top, right, bottom = (round(float(side)) for side in one.box)
    return np.asarray(Image.fromarray(painted).crop((left, top, right, bottom)))
