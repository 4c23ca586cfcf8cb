"""Counted memory against live tensors: of whole models at their real depth, and of a whole prompt."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.live_bytes import peak_live_bytes
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.costs.count import count_model, count_scales, tracing
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import memory_plan
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.registry import describe_model, family_entry
from ttsvar_ray.types import Prompt

ROWS = 3


def on_meta(name: str, depth: int, dtype: torch.dtype = torch.bfloat16) -> CachedModel:
    description = describe_model(name)
    build = family_entry(description.family).on_meta
    assert build is not None
    sized = dataclasses.replace(description, transformer={**description.transformer, "depth": depth})
    return build(sized, dtype=dtype, sampling=description.sampling)


@pytest.mark.parametrize(("name", "dtype"), [("infinity-125m", torch.bfloat16), ("var-d16", torch.float32)])
def test_costs_are_a_straight_line_over_the_depth(name: str, dtype: torch.dtype) -> None:
    followed = count_model(lambda depth: on_meta(name, depth, dtype), 5).scales
    for scale, counted in zip(followed, count_scales(on_meta(name, 5, dtype)), strict=True):
        # The peak is a line as long as it stays in one place: at the coarsest scales it may move a little.
        assert scale.running_bytes == pytest.approx(counted.running_bytes, rel=0.001)
        assert dataclasses.replace(scale, running_bytes=counted.running_bytes) == counted


@pytest.mark.parametrize("name", ["infinity-2b", "var-d16"])
def test_a_scale_takes_as_much_for_each_of_several_trajectories(name: str) -> None:
    model = on_meta(name, 2)
    counted = count_scales(model)
    state = model.start(model.encode_text(["0"]), [0] * ROWS)
    for cost in counted:
        held = state.cache.nbytes + state.summed.nbytes + sum(bits.nbytes for bits in state.bits)
        uniforms = np.zeros((ROWS, cost.tokens * model.bits_per_token), np.float32)
        with tracing() as trace:
            state = model.advance(state, uniforms)
        assert (held + trace.peak_bytes) / ROWS == pytest.approx(cost.running_bytes, rel=0.02)


def test_a_whole_prompt_takes_what_is_planned() -> None:
    config = load_config(None, ["model.device=cpu"], needs_files=False)
    job = resolve(config)
    plan = job.plan
    engine = build_engine(job)
    planned = memory_plan(
        job_networks(config, job.description, plan, on_gpu=False), plan, selector_decode="full"
    )
    prompt = Prompt(row=0, prompt_id="a", ordinal=0, text="a red ring")
    live = peak_live_bytes(
        lambda: list(
            run_local([prompt], plan=plan, engines=[engine], run_seed=0, settings=CoordinatorSettings())
        )
    )
    assert live == pytest.approx(planned.peak_bytes - planned.weight_bytes, rel=0.05)
