from __future__ import annotations

import math

import pytest
import torch

from tests.support.tiny_infinity import tiny_model
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.contract import check_model
from ttsvar_ray.models.infinity.recorded_checks import multinomial_bits
from ttsvar_ray.models.registry import load_model
from ttsvar_ray.models.sampling import (
    SamplingSettings,
    draw_bits,
    exact_sums,
    guided_logits,
    log_probability_of_bits,
    per_scale,
    probability_of_one,
    softened,
    top_p_margin,
)


def sorted_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The usual rule: sort ascending, drop what the cumulative probability <= 1 - top_p covers."""
    ordered, order = logits.sort(dim=-1)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf).softmax(-1)[..., 1]


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.8, 0.97, 1.0])
def test_top_p_is_the_sorted_rule(top_p: float) -> None:
    logits = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(probability_of_one(logits, top_p=top_p), sorted_top_p(logits, top_p))


def test_published_margin() -> None:
    assert top_p_margin(0.97) == pytest.approx(3.476, abs=1e-3)
    edge = torch.tensor([[0.0, 3.475], [0.0, 3.477], [3.477, 0.0]])
    assert probability_of_one(edge, top_p=0.97).tolist()[1:] == [1.0, 0.0]
    assert 0.96 < probability_of_one(edge, top_p=0.97)[0] < 0.97


def test_certain_bits_ignore_the_draw_and_others_follow_it() -> None:
    probability = torch.tensor([0.0, 1.0, 0.25, 0.25])
    uniforms = torch.tensor([0.0, 1 - 2**-24, 0.2499, 0.25])
    assert draw_bits(probability, uniforms).tolist() == [0, 1, 1, 0]


def test_drawn_bits_have_the_stated_probability() -> None:
    generator = torch.Generator().manual_seed(1)
    probability = probability_of_one(torch.tensor([0.0, 1.0]).expand(200_000, 2), top_p=0.97)
    share = draw_bits(probability, torch.rand(200_000, generator=generator)).float().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * math.sqrt(0.25 / 200_000))


def test_the_official_draw_has_the_same_marginals() -> None:
    logits = torch.tensor([0.5, 0.0]).expand(1, 1, 100_000, 2)
    bits = multinomial_bits(logits, generator=torch.Generator().manual_seed(2), top_p=0.97)
    expected = probability_of_one(logits[0, 0, 0], top_p=0.97).item()
    assert bits.float().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 100_000))
    sure = multinomial_bits(
        torch.tensor([[[[9.0, 0.0], [0.0, 9.0]]]]), generator=torch.Generator().manual_seed(2), top_p=0.97
    )
    assert sure.flatten().tolist() == [0, 1]


def test_temperature_then_guidance() -> None:
    raw = torch.tensor([[[[1.0, 3.0, -2.0, 0.0]]], [[[0.0, 1.0, 4.0, 2.0]]]])  # [S=2, B=1, n=1, 2 bits]
    mixed = guided_logits(raw, temperature=0.5, guidance=3.0)
    assert mixed.tolist() == [[[[6.0, 14.0], [-28.0, -8.0]]]]
    alone = guided_logits(raw[:1], temperature=0.5, guidance=1.0)
    assert alone.tolist() == [[[[2.0, 6.0], [-4.0, 0.0]]]]


def test_settings_name_every_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        SamplingSettings(guidance=(1.0, math.nan), temperature=(0.0,), top_p=0.0)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigurationError, match="expected one number or 3"):
        per_scale("guidance", [1.0, 2.0], 3)
    assert per_scale("guidance", 2, 3) == (2.0, 2.0, 2.0)


def test_log_probabilities_of_bits_are_those_that_they_are_drawn_with() -> None:
    logits = torch.randn(3, 50, 8, 2, generator=torch.Generator().manual_seed(1)) * 3
    bits = draw_bits(probability_of_one(logits, top_p=1.0), torch.rand(3, 50, 8))
    expected = torch.log_softmax(logits.double(), dim=-1).gather(-1, bits.long()[..., None])[..., 0]
    torch.testing.assert_close(log_probability_of_bits(logits, bits), expected)


def test_sums_of_log_probabilities_do_not_depend_on_order_or_neighbours() -> None:
    values = -torch.rand(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 9
    sums = exact_sums(values)
    for seed in range(5):
        order = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))
        assert (exact_sums(values[:, order]) == sums).all()
        assert exact_sums(values[1:, order].reshape(1, 40, 100)).tolist() == sums[1:].tolist()
    assert sums == pytest.approx(values.sum(dim=1).numpy(), abs=1e-3)
    assert exact_sums(torch.tensor([[-math.inf, 0.0]])).tolist() == [-1000.0]


def test_bits_that_are_too_sure_are_softened_to_the_wanted_confidence_and_no_further() -> None:
    logits = torch.randn(3, 40, 8, 2, generator=torch.Generator().manual_seed(2))
    logits *= torch.tensor([0.1, 3.0, 30.0])[:, None, None, None]
    soft = softened(logits, 0.7)
    sure = [probability_of_one(rows, top_p=1.0).sub(0.5).abs().add(0.5).mean().item() for rows in soft]
    assert torch.equal(soft[0], logits[0]), "unsure bits stay as they are"
    assert sure[1:] == pytest.approx([0.7, 0.7], abs=1e-3)
    assert ((soft[..., 1] > soft[..., 0]) == (logits[..., 1] > logits[..., 0])).all()
    for row in range(3):
        assert torch.equal(softened(logits[row : row + 1], 0.7)[0], soft[row]), "alone as beside others"


def test_confidence_is_for_models_of_single_bits() -> None:
    model = load_model("shapes", device="cpu", confidence=[None] * 6 + [0.8] * 7)
    assert model.sampling.confidence[5:7] == (None, 0.8)  # type: ignore[attr-defined]
    check_model(tiny_model(confidence=[None] * 4 + [0.8] * 4), ["a red circle", "two blue rings"])
    with pytest.raises(ConfigurationError, match="expected one number or 13"):
        load_model("shapes", device="cpu", confidence=[0.8])
    with pytest.raises(ConfigurationError, match=r"sampling.confidence\[0\]: expected more than 0.5"):
        load_model("shapes", device="cpu", confidence=0.4)
