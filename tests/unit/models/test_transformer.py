from __future__ import annotations

import pytest
import torch

from recipes.shapes.training_transformer import TrainingTransformer, query_groups
from tests.support.tiny_infinity import REPEATED_SCHEDULE, TEXT_LENGTH, tiny_config, tiny_transformer
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.state import KVCache


def example(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(batch, TEXT_LENGTH, 16, generator=generator)
    lens = torch.tensor([3, 7, 12])[:batch]
    inputs = [torch.randn(batch, h * w, 8, generator=generator) for h, w in REPEATED_SCHEDULE[1:]]
    return text, lens, inputs


@pytest.mark.parametrize("num_scales", [1, 2, 5, 8])
def test_teacher_forcing_equals_the_incremental_path_with_repeated_scales(num_scales: int) -> None:
    transformer = tiny_transformer()
    text, lens, inputs = example()
    with torch.no_grad():
        conditioning = transformer.condition(text, lens, guidance=False)
        cache, steps = KVCache(), []
        for index in range(num_scales):
            features = None if index == 0 else inputs[index - 1]
            logits, cache = transformer.scale_step(features, index, cache, conditioning)
            steps.append(logits[0])
        together = transformer.forward_all(inputs[: num_scales - 1], conditioning, num_scales)
    assert together.std() > 0.5, "logits too small to tell anything"
    torch.testing.assert_close(together, torch.cat(steps, dim=1), atol=2e-5, rtol=1e-5)


def test_later_scales_never_reach_back() -> None:
    transformer = tiny_transformer()
    text, lens, inputs = example()
    with torch.no_grad():
        before = transformer(text, lens, inputs)
        changed = transformer(text, lens, [*inputs[:-1], inputs[-1] + 1])
    earlier = sum(h * w for h, w in REPEATED_SCHEDULE[:-1])
    assert torch.equal(before[:, :earlier], changed[:, :earlier])
    assert not torch.allclose(before[:, earlier:], changed[:, earlier:])


def test_what_lies_beyond_a_text_is_ignored() -> None:
    transformer = tiny_transformer()
    text, lens, inputs = example()
    noisy = text.clone()
    for row, length in zip(noisy, lens.tolist(), strict=True):
        row[length:] = 100.0
    with torch.no_grad():
        assert torch.equal(transformer(text, lens, inputs), transformer(noisy, lens, inputs))


def test_unconditional_stream_is_that_of_the_unconditional_text() -> None:
    transformer = tiny_transformer()
    text, lens, _ = example()
    with torch.no_grad():
        both, _ = transformer.scale_step(None, 0, KVCache(), transformer.condition(text, lens, guidance=True))
        unconditional = transformer.condition(*transformer.unconditional_text(lens), guidance=False)
        alone, _ = transformer.scale_step(None, 0, KVCache(), unconditional)
    torch.testing.assert_close(both[1], alone[0], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(both[0], both[1])


def test_gradients_reach_every_weight_and_the_text() -> None:
    transformer = tiny_transformer().train()
    text, lens, inputs = example()
    drop = torch.tensor([True, False, False])
    text.requires_grad_()
    mixed = torch.where(drop[:, None, None], transformer.unconditional_text(lens)[0], text)
    with torch.autocast("cpu", torch.bfloat16):
        logits = transformer(mixed, lens, inputs)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    silent = [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert text.grad is not None
    assert text.grad[0].abs().max() == 0
    assert text.grad[1, :7].abs().min(dim=-1).values.max() > 0
    assert text.grad[1, 7:].abs().max() == 0


def test_a_fresh_model_starts_undecided() -> None:
    torch.manual_seed(0)
    transformer = TrainingTransformer(tiny_config(), REPEATED_SCHEDULE)
    text, lens, inputs = example()
    with torch.no_grad():
        assert transformer(text, lens, inputs).abs().max() < 0.2


def test_query_groups_cover_the_sequence_and_mask_only_later_scales() -> None:
    counts = (1, 1, 4, 4, 9, 64, 36, 36, 144)
    groups = query_groups(counts)
    assert [g.start for g in groups] == [0, *[g.end for g in groups[:-1]]]
    assert groups[-1].end == sum(counts)
    scale_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for group in groups:
        allowed = scale_of[None, : group.end] <= scale_of[group.start : group.end, None]
        bias = torch.zeros(allowed.shape) if group.bias is None else group.bias
        assert torch.equal(bias == 0, allowed)


def test_config_refuses_what_cannot_be_built_all_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        TransformerConfig(
            depth=5,
            embed_dim=36,
            num_heads=5,
            block_chunks=2,
            bits_per_token=8,
            text_channels=64,
            text_max_length=8,
            rope_grid=(4, 4),
            mlp_ratio=1.0,
        )
    assert len(caught.value.problems) == 4  # heads, chunks, pool heads, and a feed-forward width of 0


def test_config_survives_json() -> None:
    config = tiny_config()
    assert TransformerConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigurationError, match="dept: unknown"):
        TransformerConfig.from_json({**config.to_json(), "dept": 1})
    with pytest.raises(ConfigurationError, match="depth: missing"):
        TransformerConfig.from_json({k: v for k, v in config.to_json().items() if k != "depth"})


def test_schedule_must_start_with_one_token_and_fit_the_level_embedding() -> None:
    with pytest.raises(ValueError, match=r"scale_schedule\[0\]"):
        InfinityTransformer(tiny_config(), ((2, 2), (4, 4)))
    with pytest.raises(ValueError, match="at most 15"):
        InfinityTransformer(tiny_config(), ((1, 1),) * 16)
