"""A pool of complete trajectories of the built-in model, judged at every scale: what plans are tuned on.

    python -m benchmarks.shapes_pool --set tuning --per-kind 40 --pool 8 --output pool.npz

For each prompt of the set, `pool` trajectories run to the end; after every scale the decoded image is
scored by the reward, and the finished image is judged by the exact checker. The file holds rewards
float32 [prompts, pool, scales], correct bool [prompts, pool] and kind [prompts]. Nothing is selected.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.shapes_pieces import HARD_MODEL, SETS
from recipes.shapes.prompt_set import prompt_set
from ttsvar_ray.models.registry import describe_model, load_model
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.shapes.checker import check
from ttsvar_ray.shapes.world import Caption

PROMPTS_AT_A_TIME = 6


def _judge(arguments: tuple[argparse.Namespace, Sequence[Caption], int]) -> tuple[np.ndarray, np.ndarray]:
    options, captions, part = arguments
    torch.set_num_threads(1)
    description = describe_model(options.model)
    model = load_model(
        options.model,
        device=options.device,
        dtype="float32",
        guidance=options.guidance,
        temperature=options.temperature,
        top_p=options.top_p,
    )
    path = options.reward or description.reward_path
    reward = build_reward("shapes", path=path, device=options.device) if not options.no_reward else None
    scales = len(model.scale_schedule)
    rewards = np.zeros((len(captions), options.pool, scales), dtype=np.float32)
    correct = np.zeros((len(captions), options.pool), dtype=bool)
    for start in range(0, len(captions), PROMPTS_AT_A_TIME):
        some = captions[start : start + PROMPTS_AT_A_TIME]
        rows = [row for row in range(len(some)) for _ in range(options.pool)]
        texts = [some[row].text for row in rows]
        state = model.start(model.encode_text([c.text for c in some]), rows)
        for scale_index, (height, width) in enumerate(model.scale_schedule):
            count = height * width * model.bits_per_token
            uniforms = np.stack(
                [
                    bit_uniforms(
                        options.seed, f"{part}-{start + row}-{some[row].text}", scale_index, slot, count
                    )
                    for row in range(len(some))
                    for slot in range(options.pool)
                ]
            )
            state = model.advance(state, uniforms)
            last = scale_index == scales - 1
            if reward is not None or last:
                images = model.decode(state)
            if reward is not None:
                scored = reward.score(images, texts)
                rewards[start : start + len(some), :, scale_index] = scored.reshape(len(some), -1)
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            row, slot = divmod(place, options.pool)
            correct[start + row, slot] = check(image, text).correct
    return rewards, correct


def main() -> None:
    """Fill the pool with as many processes as asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help=f"default: shapes, of the kinds hard {HARD_MODEL}")
    parser.add_argument(
        "--reward", type=Path, default=None, help="reward directory (default: the model's own)"
    )
    parser.add_argument("--no-reward", action="store_true", help="judge finished images only")
    parser.add_argument("--set", default="tuning")
    parser.add_argument("--kinds", choices=SETS, default=next(iter(SETS)), help="of the captions")
    parser.add_argument("--per-kind", type=int, default=40)
    parser.add_argument("--pool", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--guidance", type=float, nargs="+", default=None)
    parser.add_argument("--temperature", type=float, nargs="+", default=None)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.model = options.model or (HARD_MODEL if options.kinds == "hard" else "shapes")
    for name in ("guidance", "temperature"):
        values = getattr(options, name)
        if values is not None and len(values) == 1:
            setattr(options, name, values[0])
    captions = prompt_set(options.set, options.per_kind, SETS[options.kinds])
    size = -(-len(captions) // options.processes)
    parts = [captions[start : start + size] for start in range(0, len(captions), size)]
    with get_context("spawn").Pool(options.processes) as workers:
        done = workers.map(_judge, [(options, part, index) for index, part in enumerate(parts)], chunksize=1)
    rewards = np.concatenate([part[0] for part in done])
    correct = np.concatenate([part[1] for part in done])
    kinds = np.array([caption.kind.value for caption in captions])
    texts = np.array([caption.text for caption in captions])
    np.savez_compressed(options.output, rewards=rewards, correct=correct, kinds=kinds, texts=texts)
    error = correct.mean(axis=1).std() / np.sqrt(len(correct))
    print(
        f"{len(captions)} prompts x {options.pool}: accuracy of one image {correct.mean():.3f} +- {error:.3f}"
    )
    for kind in dict.fromkeys(kinds):
        print(f"  {kind:14s} {correct[kinds == kind].mean():.3f}")


if __name__ == "__main__":
    main()
