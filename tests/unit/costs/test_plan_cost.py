"""Counted costs against the published model: Infinity-2B, 1024 x 1024, guidance on, 32 text tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from ttsvar_ray.config.load import load_config
from ttsvar_ray.costs.count import count_scales
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.costs.plan_cost import plan_cost
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.costs.seconds import scale_line
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.registry import describe_model, family_entry
from ttsvar_ray.search.strategy import compile_plan

TERA = 1e12
INFINITY_1M = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


def networks(*settings: str) -> JobNetworks:
    job = resolve(load_config(None, ["model.name=infinity-2b", *settings], needs_files=False))
    return job_networks(job.config, job.description, job.plan, on_gpu=True)


def test_flops_of_one_image_by_part() -> None:
    model = networks().model
    costs = model.scales
    assert sum(cost.tokens for cost in costs) == costs[-1].cumulative_tokens == 10521
    assert sum(cost.linear_flops for cost in costs) / TERA == pytest.approx(79.1, rel=0.002)
    assert sum(cost.attention_flops for cost in costs) / TERA == pytest.approx(35.9, rel=0.002)
    masked = sum(cost.text_attention_flops for cost in costs)
    assert masked * 32 / 512 / TERA == pytest.approx(0.18, rel=0.03)
    # the published loop projects the text again at each of the 13 scales: 0.45; 0.025 to pool and project it
    assert 13 * model.text.flops * 32 / 512 / TERA == pytest.approx(0.45 + 0.025, rel=0.01)


def test_key_value_cache_after_each_scale() -> None:
    megabytes = [cost.kv_bytes / 1e6 for cost in networks().model.scales]
    expected = [0.52, 2.6, 11.0, 29.9, 63.4, 139, 273, 483, 785, 1322, 2161, 3369, 5516]
    assert megabytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("strategy", "n", "size", "transformer", "total"),
    [
        ("raw", 1, "full", 115.6, 125.1),
        ("best-of-n", 8, "full", 925, 1001),
        ("tts-var", 1, "full", 150.5, 359),
        ("tts-var", 2, "full", 301.1, 718),
        ("tts-var", 8, "full", 1204, 2870),
        ("tts-var", 1, "selector", 150.5, 174),
        ("tts-var", 2, "selector", 301.1, 348),
    ],
)
def test_flops_of_a_prompt(strategy: str, n: int, size: str, transformer: float, total: float) -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy=strategy, n=n)
    cost = plan_cost(plan, networks(), selector_decode=size)
    # the published sum projects the text at every scale and trajectory, this one once a prompt: 1.3 % at most
    assert cost.transformer_flops / TERA == pytest.approx(transformer, rel=0.014)
    assert cost.transformer_flops / TERA < transformer
    assert cost.flops / TERA == pytest.approx(total, rel=0.002)


def test_shares_and_peak() -> None:
    raw = compile_plan(scale_schedule=INFINITY_1M, strategy="raw")
    cost = plan_cost(raw, networks(), selector_decode="full")
    assert sum(cost.shares) == pytest.approx(1.0)
    assert cost.shares[-5:] == pytest.approx([0.04, 0.08, 0.13, 0.22, 0.46], abs=0.006)
    assert cost.peak_kv_bytes / 1e9 == pytest.approx(3.4, rel=0.02)

    wide = plan_cost(compile_plan(scale_schedule=INFINITY_1M, n=2), networks(), selector_decode="full")
    assert wide.peak_kv_bytes == 2 * cost.peak_kv_bytes  # the finalists, never the wide early batch


def test_guidance_doubles_the_transformer() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy="raw")
    guided, plain = (
        plan_cost(plan, networks(*settings), selector_decode="full")
        for settings in ((), ("sampling.guidance=1",))
    )
    # But for the vectors that modulate the blocks, which every stream has for itself, too.
    assert guided.transformer_flops == pytest.approx(2 * plain.transformer_flops, rel=2e-5)
    assert guided.peak_kv_bytes == 2 * plain.peak_kv_bytes


def test_guidance_that_begins_late_is_paid_for_where_the_other_stream_catches_up() -> None:
    description = describe_model("shapes")
    small = replace(description, transformer={**description.transformer, "depth": 2})
    on_meta = family_entry(description.family).on_meta
    assert on_meta is not None
    late, two = (
        count_scales(on_meta(small, dtype=torch.float32, sampling=replace(small.sampling, guidance=each)))
        for each in ((1.0,) * 7 + (3.0,) * 6, (3.0,) * 13)
    )
    assert [2 * cost.kv_bytes for cost in late[:7]] == [cost.kv_bytes for cost in two[:7]]
    caught_up = sum(cost.flops() for cost in late[:7])
    assert 2 * caught_up == pytest.approx(sum(cost.flops() for cost in two[:7]), rel=2e-3)
    assert late[7].flops() == pytest.approx(two[7].flops() + caught_up, rel=1e-3)
    assert late[7].running_bytes > two[7].running_bytes, "both caches, and the two together"
    assert late[7].kv_bytes == two[7].kv_bytes
    assert late[8:] == two[8:]
    assert [cost.passes for cost in late] == [1] * 7 + [8] + [1] * 5
    model, device = networks().model, load_profile("h100")
    seconds = [scale_line(model, scales[7], device, 1).per_row for scales in (two, late)]
    assert seconds[1] > 4 * seconds[0], "eight small passes are started one after the other"


def test_one_scale_keeps_no_cache() -> None:
    plan = compile_plan(scale_schedule=((2, 2),), strategy="best-of-n", n=2)
    known = networks()
    single = dataclasses.replace(known, model=dataclasses.replace(known.model, scales=known.model.scales[:1]))
    assert plan_cost(plan, single, selector_decode="full").peak_kv_bytes == 0
