"""A row is the same bytes in any batch and however its numbers lie in memory, on any kind of CPU kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_clip import save_clip
from tests.support.tiny_infinity import tiny_model
from tests.support.var import load_case
from ttsvar_ray.features.backbones import load_backbone
from ttsvar_ray.models.infinity.config import TokenizerConfig
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.registry import model_path
from ttsvar_ray.models.row_stability import StableLinear, pad_images, stable_attention
from ttsvar_ray.models.var.tokenizer import next_input
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.types import Preprocessing

ROWS = 15
BATCHES = ([0], [14], [4, 1], [2, 0, 3], list(range(14, 2, -1)), list(range(15)))

OTHER_KERNELS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layouts(images: Tensor) -> dict[str, Tensor]:
    """Return the same numbers [B, C, H, W] as they may lie in memory."""
    stretched = images.repeat_interleave(2, dim=3)
    made = {
        "contiguous": images.contiguous(),
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "columns first": images.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "part of a larger one": stretched[..., ::2],
    }
    if len(images) == 1:
        made["expanded"] = images[0].expand(1, *images.shape[1:])
        made["a row of a larger batch"] = torch.cat((images, images))[1:]
    assert all(torch.equal(made[name], images) for name in made)
    return made


def check(compute: Callable[[Tensor], Tensor], images: Tensor) -> None:
    with torch.inference_mode():
        expected = compute(images)
        assert len({row.numpy().tobytes() for row in expected}) > 1, (
            "the rows differ, or the test sees nothing"
        )
        for rows in BATCHES:
            for name, part in layouts(images[rows]).items():
                assert torch.equal(compute(part), expected[rows]), f"rows {rows}, {name}"


def maps(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(ROWS, channels, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 4), (5, 3)])
def test_images_reach_a_convolution_alike(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        for channels in (1, 2, 32):
            expected = (channels * size[0] * size[1], size[0] * size[1], size[1], 1)
            for rows in BATCHES:
                for name, part in layouts(maps(channels, *size)[rows]).items():
                    assert pad_images(part).stride() == expected, f"rows {rows}, {name}"


def test_convolutions_of_every_width() -> None:
    for channels, out, kernel in ((3, 16, 3), (32, 32, 3), (32, 96, 1), (8, 40, 3), (3, 24, 4)):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(channels, out, kernel, padding=kernel // 2).requires_grad_(False)
        for height, width in ((1, 1), (3, 2), (16, 16)):
            check(lambda x, conv=conv: conv(pad_images(x))[: len(x)], maps(channels, height, width))  # type: ignore[misc]


def test_linears_of_few_rows() -> None:
    torch.manual_seed(0)
    linear = StableLinear(48, 40).requires_grad_(False)
    rows = torch.randn(40, 48)
    with torch.inference_mode():
        whole = linear(rows)
        for count in range(1, 40):
            assert torch.equal(linear(rows[:count]), whole[:count]), count
            strided = rows[:count].T.contiguous().T
            assert torch.equal(linear(strided), whole[:count]), f"{count}, columns first"


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [8, 16, 64])
def test_attention_of_any_number_of_threads(threads: int, width: int) -> None:
    torch.set_num_threads(threads)
    draws = torch.Generator().manual_seed(4)
    for tokens, attended in ((1, 32), (1, 203), (3, 8), (9, 9), (25, 80), (31, 63), (64, 155)):
        q = torch.randn(ROWS, 2, tokens, width, generator=draws)
        k, v = torch.randn(2, ROWS, 2, attended, width, generator=draws).unbind()
        mask = torch.arange(attended) < torch.randint(1, attended + 1, (ROWS, 1, 1, 1), generator=draws)
        with torch.inference_mode():
            for seen, scale in ((None, 1.0), (mask, None)):
                whole = stable_attention(q, k, v, mask=seen, scale=scale)
                plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
                torch.testing.assert_close(whole, plain)
                for rows in BATCHES:
                    some = None if seen is None else seen[rows]
                    part = stable_attention(q[rows], k[rows], v[rows], mask=some, scale=scale)
                    assert torch.equal(part, whole[rows]), f"rows {rows} of {tokens} tokens"


def test_images_of_var() -> None:
    model = load_case("shared_modulation").model
    summed = maps(model.tokenizer.quantize.config.codebook_dim, *model.scale_schedule[-1])
    with torch.inference_mode():
        images = model.decode_float(summed[:4])
        for rows in ([3], [0, 2, 1]):
            for layout, part in layouts(summed[rows]).items():
                assert torch.equal(model.decode_float(part), images[rows]), f"rows {rows}, {layout}"


@pytest.mark.parametrize("name", ["own_modulation", "shared_modulation"])
def test_maps_of_var(name: str) -> None:
    model = load_case(name).model
    book, schedule = model.tokenizer.quantize, model.scale_schedule
    tokens = torch.randint(book.config.vocabulary, (ROWS, 4096), generator=torch.Generator().manual_seed(1))
    summed = maps(book.config.codebook_dim, *schedule[-1])
    with torch.inference_mode():
        for scale_index, (height, width) in enumerate(schedule):
            drawn = tokens[:, : height * width]
            whole = book.accumulate(summed, drawn, scale_index, schedule)
            for rows in BATCHES:
                part = book.accumulate(summed[rows], drawn[rows], scale_index, schedule)
                assert torch.equal(part, whole[rows]), f"rows {rows}, scale {scale_index}"
        for size in schedule[:-1]:
            whole = next_input(summed, size)
            for part in layouts(summed[:1]).values():
                assert torch.equal(next_input(part, size), whole[:1])


@pytest.mark.parametrize("published", [False, True])
def test_infinity(published: bool) -> None:
    model = tiny_model()
    if published:
        torch.manual_seed(2)
        model.tokenizer = ImageTokenizer(
            TokenizerConfig(
                codebook_dim=8,
                base_channels=32,
                encoder_multipliers=(1, 2),
                decoder_multipliers=(1, 2),
                num_res_blocks=1,
            )
        ).eval()
    summed = maps(8, *model.quantizer.map_size(-1))
    check(model.decode_float, summed)
    for scale_index in (1, 3, 5):
        check(lambda x, at=scale_index: model.quantizer.next_input(x, at), summed)  # type: ignore[misc]


def images(size: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (ROWS, size, size + 9, 3), dtype=np.uint8)


def rewards(folder: Path, preprocessing: Preprocessing) -> list[Any]:
    save_clip(folder)
    return [
        build_reward("shapes", path=model_path("shapes") / "reward", preprocessing=preprocessing.value),
        build_reward("clip-score", path=folder, preprocessing=preprocessing.value),
    ]


def test_rewards(tmp_path: Path) -> None:
    for reward in rewards(tmp_path, Preprocessing.TENSOR):
        texts = reward.encode_text(["a red ring"])

        def score(pixels: Tensor, reward=reward, texts=texts) -> Tensor:  # type: ignore[no-untyped-def]
            return torch.from_numpy(reward.score_prepared(pixels, texts * len(pixels)))

        check(score, reward.preprocess(images(48)))


@pytest.mark.parametrize("preprocessing", list(Preprocessing))
def test_pixels_of_rewards(preprocessing: Preprocessing, tmp_path: Path) -> None:
    for reward in rewards(tmp_path, preprocessing):
        pixels = reward.preprocess(images(48))
        for row in range(ROWS):
            assert torch.equal(reward.preprocess(images(48)[row : row + 1])[0], pixels[row])


@pytest.mark.parametrize("preprocessing", list(Preprocessing))
def test_features(preprocessing: Preprocessing) -> None:
    backbone = load_backbone(model_path("shapes") / "reward", device="cpu", preprocessing=preprocessing)
    given = images(40)
    whole = backbone.patches(given)
    for rows in BATCHES:
        for part in (given[rows], np.asfortranarray(given[rows])):
            assert np.array_equal(backbone.patches(part), whole[rows]), rows


@pytest.mark.skipif("TTSVAR_INNER_TESTS" in os.environ, reason="these tests, run by themselves")
@pytest.mark.parametrize("kernels", OTHER_KERNELS)
@pytest.mark.timeout(300)
def test_on_kernels_of_other_processors(kernels: str) -> None:
    if kernels.upper() == torch.backends.cpu.get_cpu_capability():
        pytest.skip("the best kernels of this processor: the tests above ran on them")
    environment = {**os.environ, **OTHER_KERNELS[kernels], "TTSVAR_INNER_TESTS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:]
