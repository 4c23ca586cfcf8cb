"""Fused operations against plain ones on a GPU, at the sizes of Infinity-2B: `pytest -m gpu tests/gpu`.

Images have the sizes of its decoder, from 64 to 1024 pixels a side. Tolerances are relative to the largest
number of the plain result: 2e-5 in float32, and 1.2e-2, three units in the last place, in bfloat16.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ttsvar_ray.kernels.operations import (
    gated_sum,
    group_norm_silu,
    interleaved,
    modulated_norm,
    residual_sum,
    unit_rotated,
    uses_fused,
    weighted_norm,
)
from ttsvar_ray.models.autoencoder import ConvolutionConfig, Decoder

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
@pytest.mark.parametrize(
    ("channels", "side"), [(512, 64), (512, 128), (512, 256), (256, 512), (256, 1024), (128, 1024), (160, 16)]
)
def test_group_norm_silu(channels: int, side: int, channels_last: bool, dtype: torch.dtype) -> None:
    x = (random(1, channels, side, side) + 3).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, added = random(channels, seed=1), random(channels, seed=2), random(channels, seed=3)
    how = {"groups": 32, "eps": 1e-6}
    fused = group_norm_silu(x, weight, bias, added=added, fused=True, **how)
    exact = (x.double(), weight.double(), bias.double())
    close(fused, group_norm_silu(*exact, added=added.double(), fused=False, **how), dtype)
    assert fused.is_contiguous(memory_format=torch.channels_last)


@DTYPES
@pytest.mark.parametrize(("channels", "side"), [(512, 64), (512, 256), (256, 512), (64, 1024)])
def test_sums_between_convolutions(channels: int, side: int, dtype: torch.dtype) -> None:
    parts = random(1, 4 * channels, side + 1, side + 1, dtype=dtype)
    parts = parts.contiguous(memory_format=torch.channels_last)
    bias = random(channels, seed=1, dtype=dtype)
    x = interleaved(parts, bias, fused=True)
    close(x, interleaved(parts, bias, fused=False), dtype)
    assert x.is_contiguous(memory_format=torch.channels_last)
    x, update = x.permute(0, 2, 3, 1), random(*x.permute(0, 2, 3, 1).shape, seed=2, dtype=dtype)
    total = residual_sum(x, update, bias, fused=True)
    assert total.dtype == dtype and total.is_contiguous()
    close(total, x.double() + update.double() + bias.double(), dtype)


@pytest.mark.parametrize(("images", "side"), [(1, 64), (3, 16)])
def test_the_whole_decoder(images: int, side: int) -> None:
    config = ConvolutionConfig(
        codebook_dim=32, base_channels=128, multipliers=(1, 2, 4, 4, 4), num_res_blocks=3
    )
    torch.manual_seed(0)
    plain = Decoder(config).cuda().eval()
    fused = copy.deepcopy(plain)
    fused.set_fused(True, torch.bfloat16)
    features = random(images, 32, side, side)
    with torch.inference_mode():
        with torch.autocast("cuda", torch.bfloat16):
            narrow = plain(features)
        exact, image = plain(features), fused(features)
    rounding = (narrow - exact).square().mean().sqrt()
    assert (image - exact).square().mean().sqrt() < 1.5 * rounding, "as near as autocast is"


@DTYPES
@pytest.mark.parametrize("tokens", [1, 1024, 4096])
def test_chains_of_a_block(tokens: int, dtype: torch.dtype) -> None:
    rows, width, heads = 2, 2048, 16
    x, modulation = random(rows, tokens, width), random(rows, 1, 6, width, seed=1)
    scale, shift, gate = modulation[:, :, 2], modulation[:, :, 4], modulation[:, :, 0]
    normed = [modulated_norm(x, scale, shift, eps=1e-6, dtype=dtype, fused=fused) for fused in (True, False)]
    assert normed[0].dtype == dtype
    close(*normed, dtype)
    weights = modulation[0, 0, :2].to(dtype)
    normed = [weighted_norm(x, *weights, eps=1e-6, dtype=dtype, fused=fused) for fused in (True, False)]
    assert normed[0].dtype == dtype
    close(*normed, dtype)
    update = random(rows, tokens, width, seed=2, dtype=dtype)
    close(residual_sum(x, update, fused=True), x + update, torch.float32)
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
    images, norm = random(3, 128, 256, 256), random(3, 128, seed=1)
    how = {"groups": 32, "eps": 1e-6, "fused": True}
    whole = group_norm_silu(images, norm[0], norm[1], added=norm[2], **how)
    part = group_norm_silu(images[1:2], norm[0], norm[1], added=norm[2], **how)
    assert torch.equal(whole[1:2], part)
