"""What unfinished and imperfect images look like: augmentations of the reward's training images.

A search asks the reward about decodes of the first few scales, so the reward must judge those fairly. Once
the image tokenizer is trained, its own truncated decodes are used; before that, plain blur and noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.shapes.architecture import QUANTIZER, TOKENIZER
from recipes.shapes.progress import load_checkpoint, save_checkpoint
from ttsvar_ray.models.autoencoder import to_uint8
from ttsvar_ray.models.infinity.directory import load_infinity
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.types import UInt8Array

Degrade = Callable[[UInt8Array, np.random.Generator], UInt8Array]
"""(uint8 images [B, side, side, 3], source of choices) -> images of the same shape."""

DECODED_SHARE = 0.65
"""Images that go through the tokenizer, where there is one."""
CLEAN_SHARE = 0.4
"""Of the others, those that stay as they are."""
BLURRED_SHARE = 0.5
"""Of the others, those that are blurred (with or without noise); the rest only gets noise."""
_LOW_RESOLUTIONS = (10, 12, 16, 24)
_NOISE = 14.0
"""Largest standard deviation of pixel noise, in grey levels."""


def blur_and_noise(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Reduce a share of the images to a low resolution and back, and add noise to another share."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    side = pixels.shape[-1]
    choice = rng.random(len(images))
    parts = np.array_split(np.flatnonzero(choice > 1 - BLURRED_SHARE), len(_LOW_RESOLUTIONS))
    for resolution, rows in zip(_LOW_RESOLUTIONS, parts, strict=True):
        if len(rows):
            reduced = F.interpolate(pixels[rows], size=(resolution, resolution), mode="area")
            pixels[rows] = F.interpolate(reduced, size=(side, side), mode="bilinear", align_corners=False)
    strength = rng.uniform(0, _NOISE, len(images)) * (rng.random(len(images)) < 0.5) * (choice > CLEAN_SHARE)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * strength[:, None, None, None]
    noisy = pixels + torch.from_numpy(noise.astype(np.float32))
    return noisy.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def as_rendered(images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Leave the images as they are."""
    return images.copy()


class TruncatedDecodes:
    """Decodes of the first scales of a tokenizer; the images not chosen for it are spoilt otherwise.

    Args:
        tokenizer: the trained image tokenizer.
        quantizer: its quantiser with gains.
        num_scales: how many scales are kept, drawn evenly; repeat an entry to see it more often.
        flip_rate: largest share of bits turned over, at random places: the mistakes a generator makes.
        share: of the images that are decodes.
        others: what becomes of the rest.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        quantizer: Quantizer,
        num_scales: tuple[int, ...],
        *,
        flip_rate: float = 0.1,
        share: float = DECODED_SHARE,
        others: Degrade = blur_and_noise,
    ) -> None:
        self._others = others
        self._tokenizer = tokenizer.eval().requires_grad_(False)
        self._quantizer = quantizer
        self._num_scales = num_scales
        self._flip_rate = flip_rate
        self._share = share

    def __call__(self, images: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Return the images, most of them as decodes of some of their scales."""
        chosen = rng.random(len(images)) < self._share
        rows = np.flatnonzero(chosen)
        kept = rng.choice(self._num_scales, size=len(rows))
        flips = rng.uniform(0, self._flip_rate, len(rows)) * (rng.random(len(rows)) < 0.5)
        result = self._others(images, rng)
        if not len(rows):
            return result
        device = next(self._tokenizer.parameters()).device
        with torch.inference_mode():
            pixels = torch.from_numpy(images[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            features = self._tokenizer.encode(pixels).float()
            cut = torch.from_numpy(kept), torch.from_numpy(flips).float()
            maps = truncated_maps(self._quantizer, features, *cut, rng)
            result[rows] = to_uint8(self._tokenizer.decode(maps)).cpu().numpy()
        return result


def truncated_maps(
    quantizer: Quantizer, features: Tensor, kept: Tensor, flips: Tensor, rng: np.random.Generator
) -> Tensor:
    """Return the map [B, d, H, W] that the first `kept` [B] scales of bits add up to.

    Args:
        features: [B, d, H, W], the encoder's.
        flips: [B], the share of bits that are turned over.
        rng: names the bits.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    residual, summed, chosen = features, torch.zeros_like(features), torch.zeros_like(features)
    for scale_index in range(int(kept.max())):
        target = F.interpolate(residual, size=quantizer.map_size(scale_index), mode="area")
        bits = quantizer.map_to_tokens(target) > 0
        flipped = torch.rand(bits.shape, generator=generator) < flips[:, None, None]
        bits = bits != flipped.to(bits.device)
        step = quantizer.upsample(quantizer.codes(bits, scale_index), scale_index)
        residual, summed = residual - step, summed + step
        is_last = (kept == scale_index + 1).to(features.device)
        chosen = torch.where(is_last[:, None, None, None], summed, chosen)
    return chosen


TRUNCATIONS = (7, 8, 8, 9, 9, 10, 10, 11, 12, 13, 13, 13)
"""How many scales a truncated decode keeps: whole images most often, then what a search looks at."""
WHOLE = (13,)
"""All scales: decodes of finished images alone."""


def take_tokenizer(model: str, work_dir: Path) -> InfinityModel:
    """Write a finished model's image tokenizer as `work_dir`'s, and return the model.

    Args:
        model: name or folder, of the built-in sizes.
    """
    described = describe_model(model)
    loaded = load_infinity(
        described, device=torch.device("cpu"), dtype=torch.float32, sampling=described.sampling
    )
    saved = {"average": loaded.tokenizer.state_dict(), "gains": list(loaded.quantizer.gains)}
    save_checkpoint(work_dir / "tokenizer.pt", saved)
    return loaded


def load_truncated_decodes(
    work_dir: Path,
    *,
    num_scales: tuple[int, ...] = TRUNCATIONS,
    flip_rate: float = 0.1,
    share: float = DECODED_SHARE,
    others: Degrade = blur_and_noise,
) -> TruncatedDecodes | None:
    """Return the truncated decodes of `work_dir`'s tokenizer, or None where there is none yet.

    The other arguments are those of `TruncatedDecodes`.
    """
    saved = load_checkpoint(work_dir / "tokenizer.pt")
    if saved is None:
        return None
    tokenizer = ImageTokenizer(TOKENIZER)
    tokenizer.load_state_dict(saved["average"])
    quantizer = dataclasses.replace(QUANTIZER, gains=tuple(saved["gains"]))
    return TruncatedDecodes(tokenizer, quantizer, num_scales, flip_rate=flip_rate, share=share, others=others)
