"""Counted memory against the live tensors of the real modules: on the meta device, and of a whole prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.live_bytes import peak_live_bytes
from ttsvar_ray.config import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.costs import TransformerShape, scale_costs
from ttsvar_ray.costs.decoder import DecoderShape
from ttsvar_ray.costs.memory import conditioning_bytes, step_bytes
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.footprint import model_shape
from ttsvar_ray.job.memory_plan import memory_plan
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.infinity.conditioning import Conditioning
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.infinity.tokenizer import Conv, ImageTokenizer, TokenizerConfig
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.kv_cache import KVCache, LayerCache
from ttsvar_ray.types import Prompt

WIDTH, DEPTH, HEADS, ROWS = 512, 8, 4, 3


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fused attention that keeps no scores, as on a GPU; the meta device has neither it nor autocast."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with torch.device("meta"):
        yield


def transformer(dtype: torch.dtype) -> tuple[InfinityTransformer, TransformerShape]:
    resolution = published_resolution("1M")
    config = TransformerConfig(
        depth=DEPTH,
        embed_dim=WIDTH,
        num_heads=HEADS,
        block_chunks=2,
        bits_per_token=32,
        text_channels=2048,
        text_max_length=512,
        rope_grid=resolution.rope_grid,
    )
    module = InfinityTransformer(config, resolution.schedule)
    module.set_block_dtype(dtype)
    module._rope[torch.device("meta")] = tuple(
        torch.empty(h * w, WIDTH // HEADS // 2, dtype=torch.complex64) for h, w in resolution.schedule
    )
    shape = TransformerShape(
        embed_dim=WIDTH,
        depth=DEPTH,
        ffn_dim=config.ffn_dim,
        bits_per_token=32,
        num_heads=HEADS,
        kv_element_bytes=dtype.itemsize,
    )
    return module, shape


def text_of(module: InfinityTransformer) -> Conditioning:
    with torch.inference_mode():
        return module.condition(torch.empty(1, 512, 2048), torch.empty(1, dtype=torch.long), guidance=True)


def cache_of(tokens: int, dtype: torch.dtype) -> KVCache:
    def empty() -> Tensor:
        return torch.empty(2, ROWS, HEADS, tokens, WIDTH // HEADS, dtype=dtype)

    return KVCache(tuple(LayerCache(empty(), empty()) for _ in range(DEPTH)))


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [6, 11, 12])
def test_a_scale_takes_what_is_counted(dtype: torch.dtype, scale: int) -> None:
    module, shape = transformer(dtype)
    costs = scale_costs(published_resolution("1M").schedule, shape)
    text, features = text_of(module), torch.empty(ROWS, costs[scale].tokens, 32)
    cache = cache_of(costs[scale - 1].cumulative_tokens, dtype)
    rows = torch.zeros(ROWS, dtype=torch.long)
    live = peak_live_bytes(lambda: module.scale_step(features, scale, cache, (text,), rows))
    is_last = scale == 12
    counted = step_bytes(costs[scale - 1], costs[scale], shape, 0, is_last=is_last)
    # The cache of the scales before was there already; the bits are the caller's.
    counted -= costs[scale - 1].kv_bytes + costs[scale].cumulative_tokens * 32
    assert live / ROWS == pytest.approx(counted, rel=0.02)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_text_holds_what_is_counted(dtype: torch.dtype) -> None:
    module, shape = transformer(dtype)
    assert conditioning_bytes(shape) == pytest.approx(text_of(module).nbytes, rel=0.001)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("multipliers", [(1, 2, 4, 4, 4), (1, 2, 4, 4)])
def test_decoding_takes_what_is_counted(
    multipliers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TokenizerConfig(
        codebook_dim=32, encoder_multipliers=multipliers, decoder_multipliers=multipliers
    )
    tokenizer = ImageTokenizer(config)
    shape = DecoderShape(codebook_dim=32, encoder_multipliers=multipliers, decoder_multipliers=multipliers)
    features = torch.empty(1, 32, 64, 64)
    wide = peak_live_bytes(lambda: tokenizer.decoder(features))
    assert shape.decode_peak_bytes(64, 64, 4) == wide

    # What autocast does on a GPU: convolutions in bfloat16, norms and activations in float32.
    def narrow_conv(self: Conv, x: Tensor) -> Tensor:
        return self.conv(x.to(torch.bfloat16))

    group_norm = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *rest, **named: group_norm(x.float(), *rest, **named))
    monkeypatch.setattr(Conv, "forward", narrow_conv)
    tokenizer.to(torch.bfloat16)
    for module in tokenizer.modules():
        if isinstance(module, nn.GroupNorm):
            module.float()
    assert shape.decode_peak_bytes(64, 64, 2) == peak_live_bytes(lambda: tokenizer.decoder(features))


def test_a_whole_prompt_takes_what_is_planned() -> None:
    config = load_config(None, ["model.device=cpu"], needs_files=False)
    job = resolve(config)
    plan = job.plan
    engine = build_engine(job)
    planned = memory_plan(
        model_shape(config, job.description, plan, on_gpu=False), plan, selector_decode="full"
    )
    prompt = Prompt(row=0, prompt_id="a", ordinal=0, text="a red ring")
    live = peak_live_bytes(
        lambda: list(
            run_local([prompt], plan=plan, engines=[engine], run_seed=0, settings=CoordinatorSettings())
        )
    )
    assert live == pytest.approx(planned.peak_bytes - planned.weight_bytes, rel=0.05)
