"""Fused operations against plain ones on a GPU, at the sizes of Infinity-2B: `pytest -m gpu tests/gpu`.

Tolerances are relative to the largest number of the plain result: 2e-5 in float32, and 1.2e-2, three units in
the last place, in bfloat16.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttsvar_ray.kernels import gated_sum, group_norm_silu, modulated_norm, unit_rotated, uses_fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def close(fused: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    apart = (fused.double() - plain.double()).abs().max() / plain.double().abs().max()
    assert apart < TOLERANCE[dtype], float(apart)


def test_fused_kernels_are_taken_by_default() -> None:
    assert uses_fused("auto", "cuda")
    assert not uses_fused("plain", "cuda")


@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "side"), [(512, 64), (512, 128), (256, 512), (128, 1024)])
def test_group_norm_silu(channels: int, side: int, channels_last: bool, dtype: torch.dtype) -> None:
    x = (random(1, channels, side, side) + 3).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = random(channels, seed=1), random(channels, seed=2)
    fused = group_norm_silu(x, weight, bias, groups=32, eps=1e-6, fused=True)
    exact = (x.double(), weight.double(), bias.double())
    close(fused, group_norm_silu(*exact, groups=32, eps=1e-6, fused=False), dtype)
    assert fused.stride() == x.stride()


@DTYPES
@pytest.mark.parametrize("tokens", [1, 1024, 4096])
def test_chains_of_a_block(tokens: int, dtype: torch.dtype) -> None:
    rows, width, heads = 2, 2048, 16
    x, modulation = random(rows, tokens, width), random(rows, 1, 6, width, seed=1)
    scale, shift, gate = modulation[:, :, 2], modulation[:, :, 4], modulation[:, :, 0]
    normed = [modulated_norm(x, scale, shift, eps=1e-6, dtype=dtype, fused=fused) for fused in (True, False)]
    assert normed[0].dtype == dtype
    close(*normed, dtype)
    update = random(rows, tokens, width, seed=2, dtype=dtype)
    close(gated_sum(x, update, gate, fused=True), gated_sum(x, update, gate, fused=False), torch.float32)
    qkv = random(rows, tokens, 3, heads, width // heads, seed=3, dtype=dtype)
    rope = torch.polar(torch.ones(tokens, 64, device="cuda"), random(tokens, 64, seed=4))
    factors = random(heads, seed=5).exp()
    both = [unit_rotated(qkv, factors, rope, fused=fused) for fused in (True, False)]
    for mine, plain in zip(*both, strict=True):
        close(mine, plain, dtype)


def test_the_same_rows_give_the_same_bytes_in_any_batch() -> None:
    x, modulation = random(8, 256, 2048), random(8, 1, 2, 2048, seed=1)
    whole = modulated_norm(x, *modulation.unbind(2), eps=1e-6, dtype=torch.bfloat16, fused=True)
    part = modulated_norm(x[3:4], *modulation[3:4].unbind(2), eps=1e-6, dtype=torch.bfloat16, fused=True)
    assert torch.equal(whole[3:4], part)
