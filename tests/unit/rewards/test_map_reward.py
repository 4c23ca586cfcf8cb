"""A reward read off feature maps: the same network behind other patches, what it costs, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.shapes.map_stage import first_patches, target_patches
from ttsvar_ray.config.load import load_config
from ttsvar_ray.costs.count import tracing
from ttsvar_ray.costs.plan_cost import plan_cost, plan_record
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import memory_plan
from ttsvar_ray.job.resolved import plan_note, resolve
from ttsvar_ray.models.registry import describe_model, load_model
from ttsvar_ray.rewards.image_reward import ImageReward, load_image_reward
from ttsvar_ray.rewards.map_reward import MapPatches, load_map_patches, own_map_reward
from ttsvar_ray.rewards.protocol import ConstantReward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.vision.published import MAP_PATCHES_FILE, map_patches_cost

TEXTS = ["a red circle left of a blue square", "two green triangles"]


@pytest.fixture(scope="module")
def folder() -> Path:
    torch.set_num_threads(1)
    path = describe_model("shapes").reward_path
    assert path is not None
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return load_image_reward(folder)


def trajectories(scales: int, count: int = 8) -> tuple[Any, Any, list[str]]:
    """Return the built-in model and a state of it, half of its rows for each text."""
    model: Any = load_model("shapes", device="cpu")
    half = count // 2
    state = model.start(model.encode_text(TEXTS), [0] * half + [1] * half)
    for scale in range(scales):
        height, width = model.scale_schedule[scale]
        draws = [bit_uniforms(5, f"row-{row}", scale, 0, height * width * 16) for row in range(count)]
        state = model.advance(state, np.stack(draws))
    return model, state, [TEXTS[0]] * half + [TEXTS[1]] * half


def test_patches_from_elsewhere_are_seen_as_those_of_pixels(reward: ImageReward) -> None:
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        patches = reward.network.vision.embeddings.patch_embedding(pixels)
        assert torch.equal(reward.network.encode_patches(patches), reward.network.encode_image(pixels))


def test_it_scores_a_map_as_the_reward_scores_its_decode(folder: Path, reward: ImageReward) -> None:
    on_map = own_map_reward(reward, folder)
    agreement = []
    for scales in (6, 7, 9):
        model, state, texts = trajectories(scales, 24)
        by_map = on_map.score_maps(model.feature_map(state), texts)
        by_decode = reward.score(model.decode(state), texts)
        agreement.append(np.corrcoef(by_map, by_decode)[0, 1])
    assert min(agreement) > 0.7, agreement


def test_no_row_depends_on_the_others(folder: Path, reward: ImageReward) -> None:
    on_map = own_map_reward(reward, folder)
    model, state, texts = trajectories(7)
    maps = model.feature_map(state)
    whole = on_map.score_maps(maps, texts)
    assert len(set(whole.tolist())) == 8
    for rows in ([5], [0, 7, 3], [6, 1, 2, 4, 5]):
        alone = on_map.score_maps(maps[rows], [texts[row] for row in rows])
        np.testing.assert_array_equal(alone, whole[rows])


def test_with_all_blocks_it_begins_as_decoder_and_patch_convolution(reward: ImageReward) -> None:
    model, state, _ = trajectories(7, 4)
    maps = model.feature_map(state)
    with torch.inference_mode():
        wanted = target_patches(model, reward, maps)
        found = first_patches(model, reward, (0, 1, 2, 3))(maps)
    assert float(((found - wanted) ** 2).mean() / wanted.var()) < 1e-3, "but for the rounding of pixels"


def test_it_costs_what_its_modules_do(folder: Path) -> None:
    assert (folder / MAP_PATCHES_FILE).stat().st_size < 1_000_000
    patches = load_map_patches(folder / MAP_PATCHES_FILE)
    cost = map_patches_cost(**patches.sizes)
    assert cost.parameters == sum(parameter.numel() for parameter in patches.parameters())
    meta = MapPatches(**patches.sizes).to("meta")
    with tracing() as trace:
        meta(torch.empty(1, 16, 12, 12, device="meta"))
    assert cost.image_flops == trace.flops


def test_a_plan_counts_maps_and_looks_ahead(folder: Path) -> None:
    def job(*given: str) -> Any:
        return resolve(load_config(None, ["model.name=shapes", *given], needs_files=False))

    jobs = [job(), job("strategy.map_scales=[6]"), job("strategy.look_ahead={6: 8}")]
    networks = [job_networks(one.config, one.description, one.plan, on_gpu=False) for one in jobs]
    plain, on_map, ahead = (
        plan_cost(one.plan, costs, selector_decode="full") for one, costs in zip(jobs, networks, strict=True)
    )
    assert (networks[0].map_reward.parameters, networks[0].ahead) == (0, ())
    looked_at = networks[0].model.decodes["full"].flops + networks[0].reward.image_flops
    assert plain.flops - on_map.flops == pytest.approx(8 * (looked_at - networks[1].map_reward.image_flops))
    further = sum(scale.flops(networks[2].text_share) for scale in networks[2].ahead[7:9])
    both = sum(scale.flops(networks[2].text_share) for scale in networks[2].model.scales[7:9])
    assert further == pytest.approx(both / 2, rel=1e-3), "one stream of two"
    assert ahead.flops - plain.flops == pytest.approx(8 * further)
    assert ahead.transformer_flops - plain.transformer_flops == pytest.approx(8 * further)
    peaks = [
        memory_plan(costs, one.plan, selector_decode="full").peak_bytes
        for one, costs in zip(jobs, networks, strict=True)
    ]
    assert peaks[2] > peaks[0]
    records = [
        plan_record(one.plan, costs, selector_decode="full")
        for one, costs in zip(jobs, networks, strict=True)
    ]
    assert [(record.segments[0].decoded, record.segments[0].scored) for record in records] == [
        (1, 1),
        (0, 0),
        (1, 1),
    ]
    assert len({record.image_flops for record in records}) == 1, "an image is an image"


def test_what_cannot_read_maps_is_told_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"reward.on_map: expected the import path"):
        own_map_reward(ConstantReward(), None)
    whole = (folder / MAP_PATCHES_FILE).read_bytes()
    for content in (b"", b"<html>", whole[:100_000]):
        (tmp_path / MAP_PATCHES_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            load_map_patches(tmp_path / MAP_PATCHES_FILE)
    parts: dict[str, Any] = {"needs_parts": True}
    on_map = ["model.name=shapes", "strategy.map_scales=[6]"]

    def check(*given: str) -> Any:
        return resolve(load_config(None, [*on_map, *given], needs_files=False), **parts)

    assert check().map_reward.path == folder
    with pytest.raises(ConfigurationError, match=r"strategy.map_scales: expected map_patches.safetensors"):
        check("reward.name=constant")
    with pytest.raises(ConfigurationError, match=r"reward.on_map: expected auto"):
        check("reward.on_map=maps")
    with pytest.raises(ConfigurationError, match=r"score_maps"):
        check("reward.on_map=tests.support.tiny_model:TinyReward")
    with pytest.raises(ConfigurationError, match=r"strategy.map_scales: expected none with an ensemble"):
        check("reward.name=ensemble", "reward.members={shapes: null, constant: null}")
    own = "reward.on_map=tests.support.tiny_model:TinyMapReward"
    with pytest.raises(ConfigurationError, match=r"reward.on_map: this plan reads no rewards off"):
        resolve(load_config(None, [on_map[0], own], needs_files=False), **parts)
    mine = check(own)
    assert mine.map_reward.source_digest is not None
    assert "TinyMapReward" in plan_note(mine)
