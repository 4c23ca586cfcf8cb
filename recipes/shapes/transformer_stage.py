"""Stage 2: the transformer and its text encoder, trained together on the tokenizer's bits.

Teacher forcing with bitwise self-correction (Infinity, arXiv 2412.04431, section 3.4): a share of the
input bits is flipped and the targets of later scales are quantised again on the flipped map, so the
model learns to mend its own mistakes. Most steps see only the coarse scales, where the semantics
are decided: at equal tokens a step shows several times more images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from recipes.shapes.architecture import SCHEDULE, TRANSFORMER, text_encoder_config
from recipes.shapes.examples import Examples
from recipes.shapes.optimizers import mixed_precision, muon_and_adamw, warm_hold_decay
from recipes.shapes.parallel import Rank
from recipes.shapes.progress import Curve, Session, load_checkpoint, save_checkpoint
from recipes.shapes.training_transformer import TrainingTransformer
from ttsvar_ray.models.infinity.quantizer import Quantizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A truncated sequence: how many scales, how many images a step and rank, how often early and late."""

    num_scales: int
    batch: int
    early_share: float
    late_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerRecipe:
    """Hyper-parameters; rates warm up, hold, then fall linearly to zero over the last `decay_share`."""

    steps: int = 2800
    courses: tuple[Course, ...] = (
        Course(num_scales=8, batch=52, early_share=0.50, late_share=0.30),
        Course(num_scales=10, batch=28, early_share=0.38, late_share=0.45),
        Course(num_scales=13, batch=8, early_share=0.12, late_share=0.25),
    )
    learning_rate: float = 2e-3
    muon: bool = True
    warmup: int = 80
    decay_share: float = 0.75
    weight_decay: float = 0.02
    caption_dropout: float = 0.1
    flip_share: float = 0.85
    flip_rate: float = 0.15
    object_weight: float = 4.0
    scale_exponent: float = 0.7
    weight_average: float = 0.996
    report_every: int = 100
    seed: int = 0


class TextToBits(nn.Module):
    """Everything that is trained in this stage."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = T5EncoderModel(text_encoder_config())
        self.transformer = TrainingTransformer(TRANSFORMER, SCHEDULE)

    def forward(self, ids: Tensor, mask: Tensor, dropped: Tensor, inputs: list[Tensor]) -> Tensor:
        """Return float32 logits of bit 1 against bit 0, [B, L, bits_per_token]."""
        text = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        lens = mask.sum(dim=1)
        unconditional, _ = self.transformer.unconditional_text(lens)
        text = torch.where(dropped[:, None, None], unconditional, text)
        pairs = self.transformer(text, lens, inputs).unflatten(-1, (-1, 2))
        return pairs[..., 1] - pairs[..., 0]


@torch.no_grad()
def corrupted_targets(
    quantizer: Quantizer, features: Tensor, num_scales: int, flips: Tensor, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Quantise with flipped inputs.

    Args:
        features: float32 [B, d, H, W] from the tokenizer's encoder.
        flips: float32 [B], the chance that an input bit of this sample is flipped.

    Returns:
        Target bits float32 [B, n_s, D] of each scale, and transformer inputs [B, n_s, D] of scales 1...
    """
    residual, summed = features, torch.zeros_like(features)
    targets, inputs = [], []
    for scale_index in range(num_scales):
        if scale_index:
            inputs.append(quantizer.next_input(summed, scale_index))
        reduced = F.interpolate(residual, size=quantizer.map_size(scale_index), mode="area")
        bits = (quantizer.map_to_tokens(reduced) > 0).float()
        targets.append(bits)
        noise = torch.rand(bits.shape, generator=generator, device=bits.device) < flips[:, None, None]
        step = quantizer.upsample(quantizer.codes((bits != noise).float(), scale_index), scale_index)
        residual, summed = residual - step, summed + step
    return targets, inputs


def token_weights(images: Tensor, num_scales: int, recipe: TransformerRecipe) -> Tensor:
    """Return float32 [B, L]: tokens that touch an object count more, and each scale by its side."""
    background = images[:, :, :1, :1]
    is_object = ((images - background).abs().amax(dim=1, keepdim=True) > 0.15).float()
    weights = []
    for height, width in SCHEDULE[:num_scales]:
        touched = F.adaptive_max_pool2d(is_object, (height, width)).flatten(1)
        weight = 1 + (recipe.object_weight - 1) * touched
        share = math.sqrt(height * width) ** recipe.scale_exponent
        weights.append(weight / weight.sum() * share)
    return torch.cat(weights, dim=1)


def train_transformer(
    rank: Rank,
    recipe: TransformerRecipe,
    quantizer: Quantizer,
    examples: Examples,
    work_dir: Path,
    budget_seconds: float | None,
) -> None:
    """Train, or go on training, until `recipe.steps` or the end of this session."""
    torch.manual_seed(recipe.seed)
    model = TextToBits().to(rank.device)
    average = TextToBits().to(rank.device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizers = muon_and_adamw(
        model.named_parameters(),
        is_matrix=lambda name, p: (
            recipe.muon and name.startswith("transformer.block_chunks.") and p.ndim == 2
        ),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    first_step = 0
    path = work_dir / "transformer.pt"
    saved = load_checkpoint(path)
    if saved is not None:
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        if "optimizers" in saved:  # not where training begins with a finished model's weights
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        first_step = saved["step"]

    curve = Curve(work_dir / "transformer.jsonl")
    session = Session(budget_seconds, save_every_seconds=90)
    losses: dict[int, list[list[float]]] = {}
    images_seen = 0

    def save(step: int) -> None:
        if rank.is_first:
            state: dict[str, Any] = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "step": step,
            }
            save_checkpoint(path, {**state, "optimizers": [o.state_dict() for o in optimizers]})

    for step in range(first_step, recipe.steps):
        rng = np.random.default_rng([recipe.seed, 3, step, rank.index])
        shared_rng = np.random.default_rng([recipe.seed, 4, step])
        done = step / recipe.steps
        shares = np.array([c.early_share + (c.late_share - c.early_share) * done for c in recipe.courses])
        course = recipe.courses[int(shared_rng.choice(len(recipe.courses), p=shares / shares.sum()))]
        batch = examples.batch(rng.integers(0, examples.size, course.batch), rank.device)
        generator = torch.Generator(rank.device).manual_seed(int(rng.integers(2**62)))
        flips = torch.from_numpy(
            (rng.random(course.batch) < recipe.flip_share) * rng.random(course.batch) * recipe.flip_rate
        ).to(rank.device, torch.float32)
        targets, inputs = corrupted_targets(quantizer, batch.features, course.num_scales, flips, generator)
        dropped = torch.from_numpy(rng.random(course.batch) < recipe.caption_dropout).to(rank.device)

        rate = recipe.learning_rate * warm_hold_decay(
            step, steps=recipe.steps, warmup=recipe.warmup, decay_share=recipe.decay_share
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with mixed_precision(rank.device):
            logits = model(batch.ids, batch.mask, dropped, inputs)
        bit_loss = F.binary_cross_entropy_with_logits(
            logits.float(), torch.cat(targets, dim=1), reduction="none"
        )
        token_loss = bit_loss.mean(dim=2)
        loss = (token_loss * token_weights(batch.images, course.num_scales, recipe)).sum()
        for p in parameters:
            p.grad = None
        loss.backward()
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        rank.average([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(recipe.weight_average, (step + 1) / (step + 10))
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

        images_seen += course.batch * rank.size
        counts = [height * width for height, width in SCHEDULE[: course.num_scales]]
        per_scale = [part.mean().item() for part in token_loss.detach().split(counts, dim=1)]
        losses.setdefault(course.num_scales, []).append(per_scale)
        if rank.is_first and (step + 1) % recipe.report_every == 0:
            means = {n: np.mean(rows, axis=0).round(4).tolist() for n, rows in losses.items()}
            best = means[max(means)]
            curve.add(step=step + 1, images_this_session=images_seen, rate=rate, bit_loss=best)
            losses.clear()
        over = rank.agree(session.is_over()) if step % 5 == 0 else False
        if over or step == recipe.steps - 1 or session.save_is_due():
            save(step + 1)
        if over:
            return
