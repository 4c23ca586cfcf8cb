"""The training of the shapes reward: a small ImageReward from nothing, on rendered scenes.

    python -m recipes.shapes.reward_training --work-dir .shapes-training --budget-seconds 600

trains, or goes on training, for ten minutes, and writes `reward.pt` (checkpoint), `reward.jsonl` (learning
curve) and, once all steps are done, the reward directory `reward/`. With an image tokenizer in the same work
folder (`tokenizer.pt`; `--tokenizer shapes` puts the shipped model's there) its truncated decodes are the
augmentation, else blur and noise. With `--finished-alone` no image is cut off or blurred: they are renders,
and decodes of all scales.

Every step's examples are drawn from (seed, step): a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.shapes.architecture import IMAGE_SIZE
from recipes.shapes.captions import Mix
from recipes.shapes.optimizers import mixed_precision, muon_and_adamw, warm_hold_decay
from recipes.shapes.progress import Curve, Session, load_checkpoint, save_checkpoint
from recipes.shapes.reward_degrade import (
    WHOLE,
    Degrade,
    as_rendered,
    blur_and_noise,
    load_truncated_decodes,
    take_tokenizer,
)
from recipes.shapes.reward_evaluation import ScoreBatch, pair_accuracy
from recipes.shapes.reward_examples import USUAL, RewardBatch, sample_batch
from recipes.shapes.reward_losses import AuxiliaryHeads, LossParts, caption_losses, noun_loss, patch_loss
from recipes.shapes.reward_network import (
    PATCH_SIZE,
    build_reward_tokenizer,
    new_reward_network,
    reward_config,
)
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.image_reward import ImageReward, tokenize
from ttsvar_ray.types import Float32Array
from ttsvar_ray.vision.pixels import PixelRecipe

logger = logging.getLogger(__name__)

CHECKPOINT, CURVE, DIRECTORY = "reward.pt", "reward.jsonl", "reward"
_TRAINING, _CALIBRATION = 21, 23
"""Names of the streams of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRecipe:
    """Hyper-parameters; rates warm up, hold, then fall linearly to zero over the last `decay_share`."""

    steps: int = 1800
    batch: int = 64
    learning_rate: float = 1.5e-3
    muon: bool = True
    warmup: int = 100
    decay_share: float = 0.6
    weight_decay: float = 0.03
    pair_weight: float = 1.0
    patch_weight: float = 0.25
    noun_weight: float = 0.5
    weight_average: float = 0.995
    measure_every: int = 400
    measure_images: int = 300
    seed: int = 0
    mix: Mix = USUAL


class RewardTrainer(torch.nn.Module):
    """The reward network and the read-outs it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.config = reward_config()
        self.network = new_reward_network(self.config)
        self.heads = AuxiliaryHeads(self.config.vision.hidden_size, self.config.text.hidden_size)
        self.tokenizer = build_reward_tokenizer()

    def forward(self, batch: RewardBatch) -> tuple[Tensor, LossParts]:
        """Return raw scores [B, captions] and the losses of a batch."""
        device = self.heads.patch.weight.device
        per_image = len(batch.texts) // len(batch.images)
        with mixed_precision(device):
            image = self.network.encode_image(self._pixels(batch).to(device))
            ids, mask = tokenize(self.tokenizer, batch.texts, self.config.max_text_tokens)
            text = self.network.read_text(
                image.repeat_interleave(per_image, dim=0), ids.to(device), mask.to(device)
            )
            raw = self.network.head(text)
            patches = self.heads.patch(image[:, 1:])
        scores = raw.float().view(-1, per_image)
        judge, pair = caption_losses(scores)
        parts = LossParts(
            judge=judge,
            pair=pair,
            patch=patch_loss(patches.float(), batch, IMAGE_SIZE // PATCH_SIZE),
            noun=noun_loss(text.float(), self.heads, batch),
        )
        return scores, parts

    def _pixels(self, batch: RewardBatch) -> Tensor:
        config = self.config
        recipe = PixelRecipe(size=config.vision.image_size, mean=config.pixel_mean, std=config.pixel_std)
        return recipe.apply(batch.images, torch.device("cpu"))


def train_reward(
    work_dir: Path,
    *,
    recipe: RewardRecipe | None = None,
    degrade: Degrade = blur_and_noise,
    budget_seconds: float | None = None,
) -> bool:
    """Train, or go on training, until `recipe.steps` or the end of this session.

    Args:
        work_dir: holds the checkpoint and the learning curve.
        recipe: hyper-parameters (None: the defaults).
        degrade: augmentation of the training images.
        budget_seconds: of this session; None for no limit.

    Returns:
        Whether all steps are done.
    """
    recipe = recipe or RewardRecipe()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    trainer = RewardTrainer().to(device)
    average = RewardTrainer().to(device).requires_grad_(False)
    average.load_state_dict(trainer.state_dict())
    optimizers = muon_and_adamw(
        trainer.named_parameters(),
        is_matrix=lambda name, p: recipe.muon and p.ndim == 2 and ".encoder.layer" in name,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    path = work_dir / CHECKPOINT
    first_step = 0
    saved = load_checkpoint(path)
    if saved is not None:
        trainer.load_state_dict(saved["trainer"])
        average.load_state_dict(saved["average"])
        if "optimizers" in saved:  # not where training begins with a finished reward's weights
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        first_step = saved["step"]

    def save(step: int) -> None:
        state: dict[str, Any] = {
            "trainer": trainer.state_dict(),
            "average": average.state_dict(),
            "step": step,
        }
        save_checkpoint(path, {**state, "optimizers": [o.state_dict() for o in optimizers]})

    curve = Curve(work_dir / CURVE)
    session = Session(budget_seconds, save_every_seconds=60)
    for step in range(first_step, recipe.steps):
        rng = np.random.default_rng([recipe.seed, _TRAINING, step])
        batch = sample_batch(rng, recipe.batch, IMAGE_SIZE, recipe.mix)
        batch = dataclasses.replace(batch, images=degrade(batch.images, rng))
        rate = recipe.learning_rate * warm_hold_decay(
            step, steps=recipe.steps, warmup=recipe.warmup, decay_share=recipe.decay_share
        )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        _, parts = trainer(batch)
        loss = (
            parts.judge
            + recipe.pair_weight * parts.pair
            + recipe.patch_weight * parts.patch
            + recipe.noun_weight * parts.noun
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(recipe.weight_average, (step + 1) / (step + 10))
            for kept, new in zip(average.parameters(), trainer.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        last = step == recipe.steps - 1
        if step % 25 == 0 or last:
            point = {name: round(getattr(parts, name).item(), 4) for name in LossParts.__dataclass_fields__}
            curve.add(step=step, images=(step + 1) * recipe.batch, **point)
        if (step and step % recipe.measure_every == 0) or last:
            curve.add(step=step, **_measured(average, degrade, recipe))
        if last or session.is_over() or session.save_is_due():
            save(step + 1)
        if session.is_over() and not last:
            return False
    return True


def export_reward(
    work_dir: Path, directory: Path, *, degrade: Degrade, calibration_images: int = 2000, mix: Mix = USUAL
) -> None:
    """Write the reward directory from the averaged weights, in half precision, at unit scale.

    The score is shifted and scaled so that true and false captions of degraded training scenes, in equal
    shares, have mean 0 and standard deviation 1.

    Raises:
        FileNotFoundError: nothing was trained in `work_dir`.
    """
    saved = load_checkpoint(work_dir / CHECKPOINT)
    if saved is None:
        raise FileNotFoundError(f"{work_dir / CHECKPOINT}: no reward checkpoint; run the reward stage first")
    trainer = RewardTrainer()
    trainer.load_state_dict(saved["average"])
    scores = []
    for block in range(0, calibration_images, 100):
        rng = np.random.default_rng([0, _CALIBRATION, block])
        batch = sample_batch(rng, 100, IMAGE_SIZE, mix)
        batch = dataclasses.replace(batch, images=degrade(batch.images, rng))
        with torch.inference_mode():
            rows, _ = trainer(batch)
        scores.append(rows[:, :2].flatten().numpy())
    everything = np.concatenate(scores).astype(np.float64)
    config = dataclasses.replace(
        trainer.config, score_mean=float(everything.mean()), score_std=float(everything.std())
    )
    reward = ImageReward(
        config=config, weights=trainer.network.state_dict(), tokenizer=trainer.tokenizer, where=str(work_dir)
    )
    reward.save(directory, dtype=torch.float16)


def _score_with(trainer: RewardTrainer) -> ScoreBatch:
    """Score examples with a network in training."""

    def score(batch: RewardBatch) -> Float32Array:
        with torch.inference_mode():
            scores, _ = trainer(batch)
        result: Float32Array = scores.cpu().numpy()
        return result

    return score


def _measured(average: RewardTrainer, degrade: Degrade, recipe: RewardRecipe) -> dict[str, float]:
    """Return the pair accuracies that the learning curve holds."""
    clean, hard = (
        pair_accuracy(_score_with(average), seed=1, images=recipe.measure_images, degrade=how, mix=recipe.mix)
        for how in (None, degrade)
    )
    return {f"clean_{kind}": value for kind, value in clean.items()} | {
        f"degraded_{kind}": value for kind, value in hard.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stage from the command line."""
    parser = argparse.ArgumentParser(description="Train the reward of the built-in model.")
    parser.add_argument("--work-dir", type=Path, default=Path(".shapes-training"))
    parser.add_argument("--budget-seconds", type=float, default=None, help="length of this session")
    parser.add_argument("--steps", type=int, default=RewardRecipe().steps)
    parser.add_argument("--seed", type=int, default=RewardRecipe().seed)
    parser.add_argument(
        "--tokenizer",
        help="a model, by name or folder, whose image tokenizer is taken where the work folder has none",
    )
    parser.add_argument(
        "--finished-alone", action="store_true", help="learn from finished images, none cut off or blurred"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recipe = RewardRecipe(steps=options.steps, seed=options.seed)
    if options.tokenizer and not (options.work_dir / "tokenizer.pt").exists():
        try:
            take_tokenizer(options.tokenizer, options.work_dir)
        except CheckpointError as error:
            parser.error(f"--tokenizer: {error}")
    degrade: Degrade
    if options.finished_alone:
        degrade = (
            load_truncated_decodes(options.work_dir, num_scales=WHOLE, others=as_rendered) or as_rendered
        )
    else:
        degrade = load_truncated_decodes(options.work_dir) or blur_and_noise
    logger.info("augmentation: %s", getattr(degrade, "__name__", None) or type(degrade).__name__)
    if train_reward(options.work_dir, recipe=recipe, degrade=degrade, budget_seconds=options.budget_seconds):
        export_reward(options.work_dir, options.work_dir / DIRECTORY, degrade=degrade)
        logger.info("reward directory: %s", options.work_dir / DIRECTORY)
    else:
        logger.info("the session is over; run the same command to go on")


if __name__ == "__main__":
    main()
