"""Counted costs against the published model: Infinity-2B, 1024 x 1024, guidance on, 32 text tokens."""

from __future__ import annotations

import dataclasses

import pytest

from ttsvar_ray.costs import ComponentFlops, TransformerShape, plan_cost, scale_costs
from ttsvar_ray.search.strategy import compile_plan

TERA = 1e12
INFINITY_1M = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
INFINITY_2B = TransformerShape(embed_dim=2048, depth=32, ffn_dim=8192, bits_per_token=32)
FULL_SIZE = ComponentFlops(
    decode=9.85 * TERA,
    selector_decode=9.85 * TERA,
    embed=0.165 * TERA,
    score=0.137 * TERA,
    encode_text=0.07 * TERA,
)
SMALL_SELECTORS = dataclasses.replace(FULL_SIZE, selector_decode=0.616 * TERA)


def test_flops_of_one_image_by_part() -> None:
    costs = scale_costs(INFINITY_1M, INFINITY_2B)
    assert sum(cost.tokens for cost in costs) == costs[-1].cumulative_tokens == 10521
    assert sum(cost.linear_flops for cost in costs) / TERA == pytest.approx(79.1, rel=0.002)
    assert sum(cost.attention_flops for cost in costs) / TERA == pytest.approx(35.9, rel=0.002)
    assert sum(cost.cross_attention_flops for cost in costs) / TERA == pytest.approx(0.18, rel=0.03)
    # the published loop projects the text again at each of the 13 scales: 0.45
    assert 13 * INFINITY_2B.text_flops / TERA == pytest.approx(0.45, rel=0.01)


def test_key_value_cache_after_each_scale() -> None:
    megabytes = [cost.kv_bytes / 1e6 for cost in scale_costs(INFINITY_1M, INFINITY_2B)]
    expected = [0.52, 2.6, 11.0, 29.9, 63.4, 139, 273, 483, 785, 1322, 2161, 3369, 5516]
    assert megabytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("strategy", "n", "components", "transformer", "total"),
    [
        ("raw", 1, FULL_SIZE, 115.6, 125.1),
        ("best-of-n", 8, FULL_SIZE, 925, 1001),
        ("tts-var", 1, FULL_SIZE, 150.5, 359),
        ("tts-var", 2, FULL_SIZE, 301.1, 718),
        ("tts-var", 8, FULL_SIZE, 1204, 2870),
        ("tts-var", 1, SMALL_SELECTORS, 150.5, 174),
        ("tts-var", 2, SMALL_SELECTORS, 301.1, 348),
    ],
)
def test_flops_of_a_prompt(
    strategy: str, n: int, components: ComponentFlops, transformer: float, total: float
) -> None:
    cost = plan_cost(
        compile_plan(scale_schedule=INFINITY_1M, strategy=strategy, n=n), INFINITY_2B, components
    )
    # the published sum projects the text at every scale and trajectory, this one once a prompt: 1.3 % at most
    assert cost.transformer_flops / TERA == pytest.approx(transformer, rel=0.014)
    assert cost.transformer_flops / TERA < transformer
    assert cost.flops / TERA == pytest.approx(total, rel=0.002)


def test_shares_and_peak() -> None:
    cost = plan_cost(compile_plan(scale_schedule=INFINITY_1M, strategy="raw"), INFINITY_2B, FULL_SIZE)
    assert sum(cost.shares) == pytest.approx(1.0)
    assert cost.shares[-5:] == pytest.approx([0.04, 0.08, 0.13, 0.22, 0.46], abs=0.006)
    assert cost.peak_kv_bytes / 1e9 == pytest.approx(3.4, rel=0.02)

    wide = plan_cost(compile_plan(scale_schedule=INFINITY_1M, n=2), INFINITY_2B, FULL_SIZE)
    assert wide.peak_kv_bytes == 2 * cost.peak_kv_bytes  # the finalists, never the wide early batch


def test_guidance_doubles_the_transformer() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy="raw")
    without = dataclasses.replace(INFINITY_2B, guidance=False)
    guided, plain = (plan_cost(plan, shape, FULL_SIZE) for shape in (INFINITY_2B, without))
    assert guided.transformer_flops == pytest.approx(2 * plain.transformer_flops)
    assert guided.peak_kv_bytes == 2 * plain.peak_kv_bytes


def test_one_scale_keeps_no_cache() -> None:
    plan = compile_plan(scale_schedule=((2, 2),), strategy="best-of-n", n=2)
    assert plan_cost(plan, INFINITY_2B, FULL_SIZE).peak_kv_bytes == 0
