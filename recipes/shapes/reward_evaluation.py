"""How good a judge the shapes reward is: how often the true caption of a fresh scene beats a false one.

    python -m recipes.shapes.reward_evaluation --reward .shapes-training/reward --work-dir .shapes-training

prints the share per kind of caption, on whole images and on decodes of the first scales.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recipes.shapes.architecture import IMAGE_SIZE
from recipes.shapes.captions import Mix
from recipes.shapes.reward_degrade import Degrade, load_truncated_decodes
from recipes.shapes.reward_examples import USUAL, RewardBatch, sample_batch
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.shapes.world import Kind
from ttsvar_ray.types import Float32Array

ScoreBatch = Callable[[RewardBatch], Float32Array]
"""Examples -> scores [B, C], the first caption of each row being the true one."""

_MEASURING = 22
"""Name of the stream of examples: never the one that training draws from."""
_BLOCK = 100


def pair_accuracy(
    score: ScoreBatch, *, seed: int, images: int, degrade: Degrade | None, mix: Mix = USUAL
) -> dict[str, float]:
    """Return how often the true caption beats a false one, per kind of the true caption and for `all`.

    Args:
        score: what is measured.
        seed: names the scenes.
        images: how many scenes.
        degrade: None for clean images.
        mix: what the captions are drawn from.
    """
    won: dict[str, list[float]] = {kind.value: [] for kind in Kind}
    for block in range(0, images, _BLOCK):
        rng = np.random.default_rng([seed, _MEASURING, block])
        batch = sample_batch(rng, min(_BLOCK, images - block), IMAGE_SIZE, mix)
        if degrade is not None:
            batch = dataclasses.replace(batch, images=degrade(batch.images, rng))
        scores = score(batch)
        for kind, row in zip(batch.kinds, scores, strict=True):
            won[kind.value].append(float((row[0] > row[1:]).mean()))
    everything = [share for shares in won.values() for share in shares]
    per_kind = {kind: round(float(np.mean(shares)), 4) for kind, shares in won.items() if shares}
    return {**per_kind, "all": round(float(np.mean(everything)), 4)}


def score_with(reward: Reward) -> ScoreBatch:
    """Score examples with a reward, each image against all its captions."""

    def score(batch: RewardBatch) -> Float32Array:
        per_image = len(batch.texts) // len(batch.images)
        return reward.score(np.repeat(batch.images, per_image, axis=0), batch.texts).reshape(-1, per_image)

    return score


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the reward of the built-in model.")
    parser.add_argument("--reward", type=Path, required=True, help="reward directory")
    parser.add_argument("--work-dir", type=Path, default=Path(".shapes-training"), help="has tokenizer.pt")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--scales", type=int, nargs="*", default=[5, 7, 9, 10, 11, 13])
    options = parser.parse_args(arguments)
    score = score_with(build_reward("shapes", path=options.reward))
    rows: list[tuple[str, Degrade | None]] = [("clean", None)]
    for scales in options.scales:
        decodes = load_truncated_decodes(options.work_dir, num_scales=(scales,), share=1.0, flip_rate=0.0)
        if decodes is None:
            parser.error(
                f"{options.work_dir / 'tokenizer.pt'}: no tokenizer checkpoint; leave --scales empty"
            )
        rows.append((f"{scales} scales", decodes))
    for name, degrade in rows:
        shares = pair_accuracy(score, seed=77, images=options.images, degrade=degrade)
        print(
            f"{name:>10}  " + "  ".join(f"{kind} {share:.3f}" for kind, share in shares.items()), flush=True
        )


if __name__ == "__main__":
    main()
