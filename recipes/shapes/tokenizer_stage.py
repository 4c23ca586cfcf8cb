"""Stage 1: the image tokenizer, with truncated decodes that carry content.

Three things make coarse scales useful to a search that looks at unfinished images:
the gain of each scale follows the mean residual it has to quantise; a share of every batch is
decoded from a truncated scale; and the gradient of such a decode reaches the encoder through the
same low-pass as the codes did, so the encoder learns to put content into low frequencies.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.shapes.architecture import QUANTIZER, TOKENIZER
from recipes.shapes.optimizers import mixed_precision
from recipes.shapes.parallel import Rank
from recipes.shapes.pool import Pool
from recipes.shapes.progress import (
    Curve,
    Session,
    load_checkpoint,
    save_checkpoint,
)
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """Hyper-parameters; the learning rate decays to zero over `steps`."""

    steps: int = 3200
    batch: int = 48
    """Images a step and rank."""
    learning_rate: float = 1.5e-3
    warmup: int = 100
    truncated_share: float = 0.45
    truncated_scales: tuple[int, ...] = (4, 6, 7, 8, 8, 9, 9, 10, 10, 11)
    object_weight: float = 3.0
    commitment: float = 0.1
    truncated_commitment: float = 0.03
    gain_momentum: float = 0.02
    gains_frozen_after: float = 0.85
    weight_average: float = 0.998
    seed: int = 0


def quantize(quantizer: Quantizer, features: Tensor, stop: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Quantise features [B, d, H, W] on their residuals.

    Returns:
        The sum of all scales, the sum of scales 0..stop, and per scale the mean absolute residual.
    """
    residual, summed, truncated = features, torch.zeros_like(features), features
    magnitudes = []
    for scale_index in range(len(quantizer.schedule)):
        target = F.interpolate(residual, size=quantizer.map_size(scale_index), mode="area")
        magnitudes.append(target.abs().mean())
        code = torch.where(target > 0, 1.0, -1.0) * (
            quantizer.gain(scale_index) / math.sqrt(quantizer.codebook_dim)
        )
        step = quantizer.upsample(code, scale_index)
        residual, summed = residual - step, summed + step
        if scale_index == stop:
            truncated = summed
    return summed, truncated, magnitudes


def low_pass(quantizer: Quantizer, features: Tensor, scale_index: int) -> Tensor:
    """Reduce to one scale's grid and back: what the codes of that scale can express."""
    reduced = F.interpolate(features, size=quantizer.map_size(scale_index), mode="area")
    return quantizer.upsample(reduced, scale_index)


def _pixel_loss(image: Tensor, target: Tensor, object_weight: float) -> Tensor:
    background = target[:, :, :1, :1]
    is_object = (target - background).abs().amax(dim=1, keepdim=True) > 0.15
    weight = 1 + (object_weight - 1) * is_object.float()
    error = image - target
    return (weight * (0.5 * error.abs() + error.square())).mean()


def _learning_rate(recipe: TokenizerRecipe, step: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * max(0.0, 1 - step / recipe.steps)


def train_tokenizer(
    rank: Rank,
    recipe: TokenizerRecipe,
    pool: Pool,
    work_dir: Path,
    budget_seconds: float | None,
) -> None:
    """Train, or go on training, until `recipe.steps` or the end of this session."""
    torch.manual_seed(recipe.seed)
    model = ImageTokenizer(TOKENIZER).to(rank.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = ImageTokenizer(TOKENIZER).to(rank.device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=0.01,
        betas=(0.9, 0.95),
    )
    gains = [1.0 if scale == 0 else 0.5 for scale in range(len(QUANTIZER.schedule))]
    first_step = 0
    path = work_dir / "tokenizer.pt"
    saved = load_checkpoint(path)
    if saved is not None:
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        gains, first_step = saved["gains"], saved["step"]

    curve = Curve(work_dir / "tokenizer.jsonl")
    session = Session(budget_seconds, save_every_seconds=60)

    def save(step: int) -> None:
        if rank.is_first:
            state: dict[str, Any] = {
                "model": model.state_dict(),
                "average": average.state_dict(),
            }
            save_checkpoint(
                path,
                {
                    **state,
                    "optimizer": optimizer.state_dict(),
                    "gains": gains,
                    "step": step,
                },
            )

    for step in range(first_step, recipe.steps):
        rng = np.random.default_rng([recipe.seed, 1, step, rank.index])
        shared_rng = np.random.default_rng([recipe.seed, 2, step])
        images = pool.images(rng.integers(0, pool.size, recipe.batch)).to(rank.device)
        stop = int(shared_rng.choice(recipe.truncated_scales))
        rows = round(recipe.truncated_share * recipe.batch)
        quantizer = dataclasses.replace(QUANTIZER, gains=tuple(gains))

        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        with mixed_precision(rank.device):
            features = model.encode(images.contiguous(memory_format=torch.channels_last)).float()
            with torch.no_grad():
                summed, truncated, magnitudes = quantize(quantizer, features, stop)
            smooth = low_pass(quantizer, features[:rows], stop)
            latents = torch.cat(
                [
                    smooth + (truncated[:rows] - smooth).detach(),
                    features[rows:] + (summed[rows:] - features[rows:]).detach(),
                ]
            )
            decoded = model.decoder(latents).float()
        pixels = _pixel_loss(decoded[rows:], images[rows:], recipe.object_weight)
        coarse = _pixel_loss(decoded[:rows], images[:rows], recipe.object_weight)
        width = QUANTIZER.codebook_dim
        commitment = (features - summed).square().mean() * width
        coarse_commitment = (smooth - truncated[:rows]).square().mean() * width
        loss = (
            pixels
            + coarse * rows / recipe.batch
            + recipe.commitment * commitment
            + recipe.truncated_commitment * coarse_commitment
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        measured = torch.stack(magnitudes) * math.sqrt(width)
        rank.average([p.grad for p in model.parameters() if p.grad is not None] + [measured])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step < recipe.gains_frozen_after * recipe.steps:
            momentum = max(recipe.gain_momentum, 1 / (step + 2))
            gains = [g + momentum * (m - g) for g, m in zip(gains, measured.tolist(), strict=True)]
        with torch.no_grad():
            decay = min(recipe.weight_average, (step + 1) / (step + 10))
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

        if rank.is_first and (step % 250 == 0 or step == recipe.steps - 1):
            curve.add(
                step=step,
                images=(step + 1) * recipe.batch * rank.size,
                loss=loss.item(),
                gains=gains,
                psnr=tokenizer_psnr(average, quantizer, pool, rank.device),
            )
        over = rank.agree(session.is_over())
        if over or session.save_is_due() or step == recipe.steps - 1:
            save(step + 1)
        if over:
            return


@torch.no_grad()
def tokenizer_psnr(
    model: ImageTokenizer, quantizer: Quantizer, pool: Pool, device: torch.device
) -> list[float]:
    """Return the PSNR (dB) of decodes truncated after each scale, on the pool's held-out images."""
    images = pool.images(np.arange(pool.size, pool.size + 96)).to(device)
    features = model.encode(images)
    result = []
    for scale_index in range(len(quantizer.schedule)):
        _, truncated, _ = quantize(quantizer, features, scale_index)
        error = (model.decode(truncated) - images).square().mean().item() / 4
        result.append(round(-10 * math.log10(error), 2))
    return result
