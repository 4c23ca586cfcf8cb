"""The re-stated published loop draws what the engine draws, before anybody compares their seconds."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cpu_loop import WAYS, seconds_of
from benchmarks.published_loop import PublishedLoop
from benchmarks.random_networks import random_extractor, random_model, random_reward
from tests.gpu.test_infinity_on_gpu import MINIATURE
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import search_prompt
from ttsvar_ray.engine.rows import unpack_rows
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Prompt

CPU = torch.device("cpu")


def test_equal_uniforms_give_equal_bits_pixels_and_ranks() -> None:
    model = random_model(MINIATURE, published_resolution("0.06M"), device=CPU, dtype=torch.float32)
    reward, extractor = random_reward(MINIATURE, device=CPU), random_extractor(MINIATURE, device=CPU)
    # Half of the usual populations; they are clustered and drawn again all the same.
    plan = compile_plan(scale_schedule=model.scale_schedule, batch_schedule=[4, 3, 3, 2, 2, 1, 1])
    prompt = Prompt(row=0, prompt_id="p", ordinal=0, text="a red circle above two green square")
    loop = PublishedLoop(model=model, reward=reward, extractor=extractor, plan=plan, run_seed=5)
    drawn = loop.run(prompt)
    engine = Engine(
        model=model, reward=reward, extractor=extractor, plan=plan, run_seed=5, settings=EngineSettings()
    )
    result = search_prompt(prompt, plan=plan, engine=engine, run_seed=5)
    assert isinstance(result, PromptResult), result
    assert [image.lineage[-1] for image in result.images] == list(drawn.ranking)
    for image in result.images:
        slot = image.lineage[-1]
        ours = unpack_rows(
            [image.bits], scale_schedule=model.scale_schedule, bits_per_token=model.bits_per_token
        )
        for scale, bits in zip(drawn.bits, ours, strict=True):
            np.testing.assert_array_equal(scale[slot], bits[0])
        pixels = np.asarray(Image.open(io.BytesIO(image.image.payload)))
        np.testing.assert_array_equal(drawn.images[slot], pixels)
    assert drawn.decodes == sum(plan.population_before) + plan.survivors_after[-1]
    assert drawn.decodes > sum(
        segment.population * (len(segment.scored_scales) or 1) for segment in plan.segments
    ), "it decodes what nobody looks at"
    assert set(drawn.seconds) >= {"decoder", "transformer", "cache", "garbage collection", "text again"}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_the_comparison_on_a_cpu_draws_a_prompt(name: str) -> None:
    found = seconds_of(name, MINIATURE, published_resolution("0.06M"))
    assert found["seconds"] > 0 and found["peak megabytes"] > 0
