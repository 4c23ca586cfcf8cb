"""The vision tower of a BLIP reward directory as a patch backbone.

It was trained to tell objects, colours and places apart, it is at hand wherever the reward is, and it
sees images of its own size as they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import BlipVisionConfig, BlipVisionModel

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.batches import run_in_batches
from ttsvar_ray.features.pixels import SquarePixels
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

PREFIX = "vision."


class VisionTower:
    """Patch states of the reward's vision transformer after its last norm, the class token left out."""

    def __init__(
        self,
        network: BlipVisionModel,
        *,
        name: str,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        device: str = "cpu",
        batch_rows: int = 32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.batch_rows = batch_rows
        self.network = network.eval().requires_grad_(False)
        self.network.to(device=self.device)
        # The whole image, aspect ignored: structure at the borders counts as much as in the middle.
        self.pixels = SquarePixels(
            size=network.config.image_size,
            resample="bicubic",
            mean=pixel_mean,
            std=pixel_std,
            mode=preprocessing,
        )

    def patches(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, num_patches, width]."""
        return run_in_batches(images, self._forward, batch_rows=self.batch_rows, device=self.device)

    def _forward(self, images: UInt8Array) -> Tensor:
        hidden: Tensor = self.network(pixel_values=self.pixels(images, self.device)).last_hidden_state
        return hidden[:, 1:]


def load_vision_tower(
    path: Path, *, device: str = "cpu", preprocessing: Preprocessing = Preprocessing.PUBLISHED
) -> VisionTower:
    """Load the vision tower of a reward directory (config.json and model.safetensors).

    Raises:
        CheckpointError: the directory is not a reward's, or its weights do not fit.
    """
    config = json.loads((path / "config.json").read_text())
    weights_file = path / "model.safetensors"
    if not weights_file.is_file():
        raise CheckpointError(
            f"{path}: expected model.safetensors beside config.json; is this a reward directory?"
        )
    network = BlipVisionModel(BlipVisionConfig(**config["vision"]))
    with safe_open(weights_file, framework="pt") as file:
        weights = {
            key.removeprefix(PREFIX): file.get_tensor(key).float()
            for key in file.keys()  # noqa: SIM118 (the file is no mapping)
            if key.startswith(PREFIX)
        }
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{weights_file}: vision tower: missing {sorted(missing)[:8]}, "
            f"unexpected {sorted(unexpected)[:8]}"
        )
    return VisionTower(
        network,
        name=f"{config['name']}-vision",
        pixel_mean=tuple(config["pixel_mean"]),
        pixel_std=tuple(config["pixel_std"]),
        device=device,
        preprocessing=preprocessing,
    )
