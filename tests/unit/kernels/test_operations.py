"""Fused operations against plain ones, under Triton's interpreter: what is computed, not how fast.

They are skipped where Triton is not installed. `TRITON_INTERPRET=1 pytest -m slow` tries a whole model.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_infinity import tiny_model
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.kernels import operations
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
from ttsvar_ray.models.autoencoder import ConvolutionConfig, Decoder, upsampling_weight
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.infinity.config import TokenizerConfig
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.protocol import Execution

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by the test below, under the interpreter")


@pytest.mark.skipif(INTERPRETED, reason="these tests, run by themselves")
@pytest.mark.timeout(300)
def test_fused_operations_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(fused: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(fused.float(), plain.float(), atol=tolerance, rtol=tolerance)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small images taken in parts of several tiles, as large ones are."""
    from ttsvar_ray.kernels import fused_images

    monkeypatch.setattr(fused_images, "_PARTS", 3)


def last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@interpreted
@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(2, 48, 5, 7), (1, 64, 3, 3), (1, 160, 1, 1), (1, 32, 31, 43)])
def test_group_norm_silu(
    shape: tuple[int, ...],
    adds: bool,
    channels_last: bool,
    dtype: torch.dtype,
    few_parts: None,
) -> None:
    # A mean far from zero: sums of squares would cancel.
    x = (random(*shape) * 0.5 + 20).to(dtype)
    weight, bias, added = (random(shape[1], seed=seed) for seed in (1, 2, 3))
    if channels_last:
        x = last(x)
    groups = 32 if shape[1] % 32 == 0 else 24
    how = {"groups": groups, "eps": 1e-6}
    fused = group_norm_silu(x, weight, bias, fused=True, added=added if adds else None, **how)
    # torch's float32 norm of channels last is itself off by 0.01 here.
    exact = (x.double(), weight.double(), bias.double())
    plain = group_norm_silu(*exact, fused=False, added=added.double() if adds else None, **how)
    assert fused.dtype == dtype and fused.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-3 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(fused.double(), plain, atol=tolerance, rtol=tolerance)


@interpreted
def test_moments_of_an_image_that_changes_within_a_part(few_parts: None) -> None:
    x = random(1, 32, 64, 40) + 3
    # The first tile, around whose mean squares are taken, is unlike all others.
    x[:, :, :3] += 1000
    norm = torch.ones(32), torch.zeros(32)
    fused = group_norm_silu(x, *norm, groups=8, eps=1e-6, fused=True)
    exact = group_norm_silu(x.double(), *(w.double() for w in norm), groups=8, eps=1e-6, fused=False)
    torch.testing.assert_close(fused.double(), exact, atol=2e-5, rtol=2e-5)


@interpreted
@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [3, 16])
def test_interleaved(channels: int, channels_last: bool, dtype: torch.dtype) -> None:
    x, bias = random(2, 4 * channels, 6, 8, dtype=dtype), random(channels, seed=1, dtype=dtype)
    fused = interleaved(last(x) if channels_last else x, bias, fused=True)
    assert fused.dtype == dtype and fused.is_contiguous(memory_format=torch.channels_last)
    close(fused, interleaved(x, bias, fused=False), dtype)


@interpreted
@DTYPES
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 48), (1, 3, 7, 300)])
def test_residual_sum(shape: tuple[int, ...], adds: bool, dtype: torch.dtype) -> None:
    x, update, bias = random(*shape), random(*shape, seed=1, dtype=dtype), random(shape[-1], seed=2)
    bias_or_none = bias if adds else None
    for stream in (x, x.to(dtype)):
        fused = residual_sum(stream, update, bias_or_none, fused=True)
        assert fused.dtype == stream.dtype
        close(fused, residual_sum(stream, update, bias_or_none, fused=False), stream.dtype)


@interpreted
@DTYPES
@pytest.mark.parametrize("width", [32, 200])
def test_weighted_norm(width: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(3, 5, width) * 2 + 1, random(width, seed=1), random(width, seed=2, dtype=dtype)
    fused = weighted_norm(x, weight, bias, eps=1e-6, dtype=dtype, fused=True)
    assert fused.dtype == dtype
    close(fused, weighted_norm(x, weight, bias, eps=1e-6, dtype=dtype, fused=False), dtype)


@interpreted
@DTYPES
@pytest.mark.parametrize("width", [32, 192, 200])
def test_modulated_norm(width: int, dtype: torch.dtype) -> None:
    x, modulation = random(3, 5, width) * 2 + 1, random(3, 1, 6, width, seed=1)
    scale, shift = modulation[:, :, 2], modulation[:, :, 4]
    fused = modulated_norm(x, scale, shift, eps=1e-6, dtype=dtype, fused=True)
    assert fused.dtype == dtype
    close(fused, modulated_norm(x, scale, shift, eps=1e-6, dtype=dtype, fused=False), dtype)


@interpreted
@DTYPES
def test_gated_sum(dtype: torch.dtype) -> None:
    x, update, modulation = (
        random(3, 5, 48),
        random(3, 5, 48, seed=1, dtype=dtype),
        random(3, 1, 6, 48, seed=2),
    )
    fused = gated_sum(x, update, modulation[:, :, 1], fused=True)
    assert fused.dtype == torch.float32
    close(fused, gated_sum(x, update, modulation[:, :, 1], fused=False), torch.float32)


@interpreted
@DTYPES
@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize("heads", [3, 4])
def test_unit_rotated(heads: int, rotates: bool, dtype: torch.dtype) -> None:
    rows, tokens, width = 2, 5, 24
    qkv, scale = random(rows, tokens, 3, heads, width, dtype=dtype), random(heads, seed=1).exp()
    rope = (
        torch.polar(torch.ones(tokens, width // 2), random(tokens, width // 2, seed=2)) if rotates else None
    )
    fused = unit_rotated(qkv, scale, rope, fused=True)
    for mine, plain in zip(fused, unit_rotated(qkv, scale, rope, fused=False), strict=True):
        assert mine.shape == plain.shape == (rows, heads, tokens, width) and mine.dtype == dtype
        close(mine, plain, dtype)


@interpreted
def test_a_row_does_not_depend_on_the_others() -> None:
    x, modulation = random(4, 5, 48), random(4, 1, 2, 48, seed=1)
    whole = modulated_norm(x, *modulation.unbind(2), eps=1e-6, dtype=torch.float32, fused=True)
    part = modulated_norm(x[2:3], *modulation[2:3].unbind(2), eps=1e-6, dtype=torch.float32, fused=True)
    assert torch.equal(whole[2:3], part)
    images = random(3, 32, 21, 13)
    args = {"groups": 32, "eps": 1e-6, "fused": True, "added": torch.ones(32)}
    norm = torch.ones(32), torch.zeros(32)
    assert torch.equal(
        group_norm_silu(images, *norm, **args)[1:2], group_norm_silu(images[1:2], *norm, **args)
    )
    joined = interleaved(images, torch.ones(8), fused=True)
    assert torch.equal(joined[1:2], interleaved(images[1:2], torch.ones(8), fused=True))


@interpreted
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ({}, torch.float32),
        ({"attends": True}, torch.bfloat16),
        ({"normalizes": False, "activate": torch.relu, "pixel_shuffle": 2}, torch.float32),
    ],
    ids=["plain", "attends", "without norms"],
)
def test_a_whole_decoder(kind: dict[str, Any], dtype: torch.dtype) -> None:
    config = ConvolutionConfig(codebook_dim=8, base_channels=32, multipliers=(1, 3), num_res_blocks=1, **kind)
    torch.manual_seed(0)
    plain = Decoder(config).eval()
    fused = copy.deepcopy(plain)
    # Twice, as settings may be chosen again: weights are folded once.
    for _ in range(2):
        fused.set_fused(True, dtype)
    features = random(1, 8, 4, 3)
    with torch.inference_mode():
        exact, image = plain(features), fused(features)
    assert image.shape == exact.shape and image.dtype == dtype
    assert image.is_contiguous(memory_format=torch.channels_last) or config.pixel_shuffle > 1
    tolerance = 2e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(image.float(), exact, atol=tolerance * float(exact.abs().max()), rtol=0)
    assert not torch.equal(image, exact.to(dtype)), "or the fused way was not taken"


def fuse(model: CachedModel) -> None:
    for module in model.transformer.modules():
        if hasattr(module, "fused"):
            module.fused = True
    model.tokenizer.decoder.set_fused(True, model.block_dtype)


@interpreted
@pytest.mark.slow
def test_whole_model() -> None:
    def make() -> InfinityModel:
        model = tiny_model(schedule=((1, 1), (2, 2), (3, 3)))
        torch.manual_seed(2)
        config = TokenizerConfig(
            codebook_dim=8,
            base_channels=32,
            encoder_multipliers=(1, 2),
            decoder_multipliers=(1, 2),
            num_res_blocks=1,
        )
        model.tokenizer = ImageTokenizer(config).eval()
        return model

    plain, fused = make(), make()
    fuse(fused)
    states = [model.start(model.encode_text(["a red circle"]), [0]) for model in (plain, fused)]
    for scale in range(plain.num_scales):
        with torch.inference_mode():
            logits = [m.next_logits(s)[0] for m, s in zip((plain, fused), states, strict=True)]
        torch.testing.assert_close(logits[1], logits[0], atol=2e-3, rtol=1e-3)
        height, width = plain.scale_schedule[scale]
        size = (1, height * width * plain.bits_per_token)
        states[0] = plain.advance(states[0], np.random.default_rng(scale).random(size, dtype=np.float32))
        # The same bits from here on, whatever rounding would have drawn.
        states[1] = fused.replay(states[1], [plain.bits(states[0])[scale]])
    images = [model.decode_float(states[0].summed) for model in (plain, fused)]
    torch.testing.assert_close(images[1], images[0], atol=1e-4, rtol=1e-4)
    assert not torch.equal(images[1], images[0]), "or the fused way was not taken"


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 7)])
def test_upsampling_is_folded_into_the_convolution_behind_it(size: tuple[int, int]) -> None:
    x, weight, bias = random(2, 6, *size), random(5, 6, 3, 3, seed=1) / 7, random(5, seed=2)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    folded = interleaved(F.conv2d(x, upsampling_weight(weight), padding=1), bias, fused=False)
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)
    assert upsampling_weight(weight.bfloat16()).dtype == torch.float32, (
        "sums are rounded once, by whoever asks"
    )


def test_a_model_is_told_how_to_compute() -> None:
    model = tiny_model()
    model.set_execution(Execution(kernels="auto", stops=(2,)))
    assert model.execution.stops == (2,)
    assert not any(getattr(module, "fused", False) for module in model.transformer.modules()), "on a CPU"
    with pytest.raises(ConfigurationError, match="needs a CUDA device"):
        model.set_execution(Execution(kernels="fused"))


def test_auto_takes_the_plain_way_and_says_why_where_a_trial_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operations.importlib.util, "find_spec", lambda name: object())
    for problem in ("a trial of the fused ones was off by 2", None):
        monkeypatch.setattr(operations, "trial", lambda device, problem=problem: problem)
        assert uses_fused("auto", "cuda") == (problem is None)
    assert [record.getMessage() for record in caplog.records] == [
        "engine.kernels: auto takes the plain kernels: a trial of the fused ones was off by 2"
    ]


def test_a_trial_notices_what_raises_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, fused: bool, **more: object) -> Tensor:
        if fused:
            raise RuntimeError("no such\ninstruction")
        return torch.ones(2)

    def wrong(*args: object, fused: bool, **more: object) -> Tensor:
        return torch.ones(2) * (2 if fused else 1)

    names = (
        "gated_sum",
        "group_norm_silu",
        "interleaved",
        "modulated_norm",
        "residual_sum",
        "weighted_norm",
    )
    for stand_in, said in ((broken, "raised RuntimeError: no such instruction"), (wrong, "was off by 1")):
        for name in names:
            monkeypatch.setattr(operations, name, stand_in)
        monkeypatch.setattr(operations, "unit_rotated", lambda *_, fused: (torch.ones(1),) * 3)
        assert said in str(operations.trial.__wrapped__("cpu"))


@interpreted
def test_a_trial_of_the_real_ones_agrees() -> None:
    assert operations.trial("cpu") is None


def test_the_plain_way_is_taken_where_there_is_no_other() -> None:
    assert not uses_fused("auto", "cpu")
    assert not uses_fused("plain", "cuda")
    with pytest.raises(ConfigurationError, match=r"engine\.kernels: 'fused' needs a CUDA device"):
        uses_fused("fused", "cpu")
    with pytest.raises(ConfigurationError, match=r"expected one of auto, plain, fused"):
        uses_fused("fast", "cpu")
