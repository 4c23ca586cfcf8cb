"""HPSv3++: HPSv3 on a Qwen3-VL, in the light of how able the generator seems that made the image.

Comes in: a folder as HPSv3's, with the files of Qwen3-VL-8B-Instruct and `hpsv3++.pth`. What the backbone is
told is the same.

From the hidden state that is read, a small network guesses the capability of the generator, in [0, 1]. It and
how far the generator's reinforcement learning is, 0 here as its authors advise for scoring, scale and shift
the hidden state (FiLM) before the head reads it. Positions are Qwen3-VL's own.

Source: HPSv3++ (arXiv 2606.14657) and its published code, whose evaluator guesses one capability for all
images of a batch. Here every image has its own, as in that code's calls with one image: a score does not
depend on its neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from ttsvar_ray.rewards.hps_v3 import PIXELS, HpsV3, rank_head
from ttsvar_ray.vision.checkpoints import read_published
from ttsvar_ray.vision.published import rounded_sides

CONDITION_WIDTH = 256
PROGRESS = 0.0
"""How far the generator's reinforcement learning is, of 1."""


class HpsV3PlusPlus(HpsV3):
    """Scores images by the preference that HPSv3++ predicts; one at a time. Higher is better.

    Arguments and errors as of `HpsV3`. What guesses the capability has the backbone's dtype, as published.
    """

    weights_file = "hpsv3++.pth"
    family = "Qwen3-VL"
    base = "Qwen3-VL-8B-Instruct"
    config_class = Qwen3VLConfig
    model_class = Qwen3VLModel

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self._judge["cap_encoder"].to(self._model.dtype)

    def _read(self, source: Path) -> dict[str, Tensor]:
        return read_published(source, expected="the published weights of HPSv3++")

    def _make_judge(self, width: int) -> nn.Module:
        condition = CONDITION_WIDTH
        return nn.ModuleDict(
            {
                "rm_head": rank_head(width),
                "cond_encoder": nn.Sequential(
                    nn.Linear(2, condition), nn.GELU(), nn.Linear(condition, condition)
                ),
                "film_gen": nn.Sequential(
                    nn.Linear(condition, width), nn.ReLU(), nn.Linear(width, 2 * width)
                ),
                "cap_encoder": nn.ModuleDict(
                    {
                        "proj": nn.Linear(width, condition),
                        # What weighs the images of a batch: of one, it is 1.
                        "pool_attn": nn.Linear(condition, 1),
                        "out_proj": nn.Linear(condition, 1),
                    }
                ),
            }
        )

    def _seen(self, image: Image.Image) -> Any:
        # As HPSv3's, by multiples of 28; then by Qwen3-VL's own, of 32.
        high, wide = rounded_sides(image.height, image.width, side=28, fewest=PIXELS, most=PIXELS)
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        return self._pixels(images=resized, return_tensors="pt")

    def _places(self, ids: Tensor) -> dict[str, Tensor]:
        return {}

    def _judged(self, read: Tensor) -> Tensor:
        guess = self._judge["cap_encoder"]
        capability = torch.sigmoid(guess["out_proj"](guess["proj"](read))).float()
        condition = torch.cat([capability, torch.full_like(capability, PROGRESS)], dim=-1)
        scale, shift = self._judge["film_gen"](self._judge["cond_encoder"](condition)).chunk(2, dim=-1)
        return super()._judged(read.float() * (1.0 + scale) + shift)
