"""Whether a trajectory depends on its batch, and whether `engine.deterministic` makes that nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.device import prepare_process
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.features.registry import FeatureExtractor
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.sampling import probability_of_one
from ttsvar_ray.results import PromptResult
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.types import Prompt

TEXTS = ("a red circle above two green square", "a blue ring on grass beside a red square")
COMPARED_ROWS = 8
DETERMINISTIC_ROWS = (8, 8, 6, 4, 2)


def execution_of(plan: Plan, kernels: str, **how: Any) -> Execution:
    """Return how a model computes for a plan, as `ttsvar_ray.job.build` has it."""
    return Execution(kernels=kernels, stops=tuple(segment.last_scale for segment in plan.segments), **how)


def deterministic(
    model: InfinityModel,
    reward: Reward,
    extractor: FeatureExtractor,
    config: JobConfig,
    *,
    kernels: str = "auto",
) -> dict[str, Any]:
    """Run one prompt in passes of a fixed number of rows: alone, beside others, sharded over two engines.

    Returns:
        The rows of each segment's passes, whether all images of the prompt are the same bytes, how many of
        its parents were rebuilt from bits, and seconds alone.
    """
    plan = resolve(config).plan
    rows = tuple(DETERMINISTIC_ROWS[: len(plan.segments)])
    model.set_execution(execution_of(plan, kernels, fixed_shapes=True))

    def images(count: int, engines: int) -> tuple[list[bytes], int]:
        built = [
            Engine(
                model=model,
                reward=reward,
                extractor=extractor,
                plan=plan,
                run_seed=0,
                settings=EngineSettings(micro_batch_rows=rows, deterministic=True),
            )
            for _ in range(engines)
        ]
        prompts = [
            Prompt(row=row, prompt_id=f"same-{row}", ordinal=0, text=TEXTS[row % len(TEXTS)])
            for row in range(count)
        ]
        settings = CoordinatorSettings(spread=engines, keep="all")
        outcomes = list(run_local(prompts, plan=plan, engines=built, run_seed=0, settings=settings))
        (first,) = [outcome for outcome in outcomes if outcome.prompt.row == 0]
        assert isinstance(first, PromptResult), first
        return [image.image.payload for image in first.images], first.counters.get("parents_replayed", 0)

    if model.device.type == "cuda":
        prepare_process("cuda", threads=torch.get_num_threads(), deterministic=True)
        images(1, 1)
    start = time.perf_counter()
    alone, _ = images(1, 1)
    seconds = time.perf_counter() - start
    (beside, _), (sharded, replayed) = images(2, 1), images(1, 2)
    return {
        "pass_rows": rows,
        "same_bytes": alone == beside == sharded,
        "parents_rebuilt": replayed,
        "seconds_alone": round(seconds, 4),
    }


def row_dependence(model: InfinityModel) -> dict[str, Any]:
    """Compare each trajectory's logits alone with those in a batch, along the same bits.

    Returns:
        Per scale the largest difference over the deviation of the logits, and the share of bits that would
        be drawn otherwise; and whether a whole batch that is run again gives the same bits.
    """
    text = model.encode_text(list(TEXTS))
    rows = [index % len(TEXTS) for index in range(COMPARED_ROWS)]
    whole, logits = _run(model, model.start(text, rows), None)
    again, _ = _run(model, model.start(text, rows), None)
    differences, flips = [], []
    alone = [
        _run(model, model.start(text, [row]), [scale[i : i + 1] for scale in whole])[1]
        for i, row in enumerate(rows)
    ]
    for index, together in enumerate(logits):
        single = torch.cat([one[index] for one in alone])
        spread = together.std().item()
        differences.append((single - together).abs().max().item() / spread)
        limits = _uniforms(model, index, len(rows), together)
        top_p = model.sampling.top_p
        flipped = (limits < probability_of_one(single, top_p=top_p)) != (
            limits < probability_of_one(together, top_p=top_p)
        )
        flips.append(flipped.float().mean().item())
    return {
        "rows": COMPARED_ROWS,
        "repeats_to_the_bit": all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True)),
        "largest_logit_difference_over_deviation": [round(value, 6) for value in differences],
        "share_of_bits_drawn_otherwise": [round(value, 8) for value in flips],
    }


def _run(
    model: InfinityModel, state: Any, given: Sequence[np.ndarray] | None
) -> tuple[list[np.ndarray], list[Tensor]]:
    """Draw all scales, or follow given bits; return the bits and the logits on the CPU."""
    seen: list[Tensor] = []
    for index in range(model.num_scales):

        def choose(logits: Tensor, index: int = index) -> Tensor:
            seen.append(logits.cpu())
            if given is not None:
                return torch.from_numpy(np.array(given[index])).to(logits.device)
            limits = _uniforms(model, index, logits.shape[0], logits)
            return (limits < probability_of_one(logits, top_p=model.sampling.top_p)).to(torch.uint8)

        state = model.advance_with(state, choose)
    return list(model.bits(state)), seen


def _uniforms(model: InfinityModel, scale: int, rows: int, like: Tensor) -> Tensor:
    height, width = model.scale_schedule[scale]
    count = height * width * model.bits_per_token
    drawn = np.stack([bit_uniforms(0, f"row-{row}", scale, 0, count) for row in range(rows)])
    return torch.from_numpy(drawn).to(like.device).view(rows, height * width, model.bits_per_token)
