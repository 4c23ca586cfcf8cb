"""What reads the reward off a feature map: a small decoder, trained to see what the reward sees of a decode.

Comes in: a model directory with its tokenizer and its reward. Goes out: `map_patches.safetensors`, float16,
in the reward's folder. Scenes are rendered, encoded and cut off after some
scale, with some bits turned over; the target is the reward's patch embedding of the decoded map. Captions
and scores have no part in it: behind the patches everything is the reward's own network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as serialize
from torch import Tensor

from recipes.shapes.architecture import IMAGE_SIZE
from recipes.shapes.optimizers import warm_hold_decay
from recipes.shapes.progress import Curve, Session, load_checkpoint, save_checkpoint
from recipes.shapes.render import render_batch
from recipes.shapes.reward_degrade import truncated_maps
from recipes.shapes.scenes import sample_scene
from ttsvar_ray.models.autoencoder import to_uint8
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.registry import load_model
from ttsvar_ray.rewards.image_reward import ImageReward, load_image_reward
from ttsvar_ray.rewards.map_reward import MapPatches
from ttsvar_ray.vision.published import MAP_PATCHES_FILE, patch_step

_TRAINING = 31
"""Name of the stream of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRecipe:
    """Hyper-parameters; a scene is shown `views` times, cut off elsewhere each time."""

    steps: int = 200
    batch: int = 32
    views: int = 3
    blocks: tuple[int, ...] = (1, 3)
    """Of the decoder's residual blocks, those that are begun with."""
    learning_rate: float = 1e-3
    warmup: int = 10
    decay_share: float = 0.8
    scales: tuple[int, ...] = (5, 6, 6, 7, 7, 7, 8, 9, 10)
    """How many scales a map has, drawn evenly."""
    flip_rate: float = 0.15
    seed: int = 0


def target_patches(model: InfinityModel, reward: ImageReward, maps: Tensor) -> Tensor:
    """Return the reward's patch embeddings [B, V, G, G] of decoded maps [B, d, H, W]."""
    images = to_uint8(model.decode_float(maps)).numpy()
    patches: Tensor = reward.network.vision.embeddings.patch_embedding(reward.preprocess(images))
    return patches


def first_patches(model: InfinityModel, reward: ImageReward, blocks: Sequence[int]) -> MapPatches:
    """Return the decoder without some of its blocks, and the reward's own patch convolution behind it.

    With all blocks these are the reward's patches, but for the rounding of pixels. A pixel is a part's, not a
    cell's: the decoder's channels are put in the order of parts, and what normalises pixels is folded in.
    """
    decoder, vision = model.tokenizer.decoder, reward.config.vision
    embedding = reward.network.vision.embeddings.patch_embedding
    side, grid = model.quantizer.map_size(-1)[0], vision.image_size // vision.patch_size
    factor, step = patch_step(side, grid)
    pixels = vision.patch_size // step  # of a part, along a side
    patches = MapPatches(
        channels=model.quantizer.codebook_dim,
        map_side=side,
        width=decoder.conv_in.out_channels,
        blocks=len(blocks),
        part_channels=3 * pixels**2,
        vision_width=vision.hidden_size,
        grid=grid,
    )
    level: Any = decoder.up[0]
    own: list[Any] = [decoder.mid.block_1, decoder.mid.block_2, *level.block]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (reward.recipe.mean, reward.recipe.std))
    weight = embedding.weight
    with torch.no_grad():
        patches.stem.load_state_dict(decoder.conv_in.state_dict())
        for block, index in zip(patches.blocks, blocks, strict=True):
            for mine, theirs in zip(block.children(), (own[index].conv1, own[index].conv2), strict=True):
                mine.load_state_dict(theirs.state_dict())
        for copied, given in zip(patches.parts.parameters(), decoder.conv_out.parameters(), strict=True):
            # [3, (part row, row in it), (part column, column in it), ...]
            cut: Tensor = given.data.unflatten(0, (3, factor, pixels, factor, pixels))
            copied.copy_(cut.movedim((0, 2, 4, 1, 3), (0, 1, 2, 3, 4)).flatten(0, 4))
        # A pixel in [-1, 1] is (value + 1) / 2 in [0, 1], less the mean, over the deviation.
        folded = (weight / (2 * std)).unflatten(2, (step, pixels)).unflatten(4, (step, pixels))
        patches.patch.weight.copy_(folded.movedim((3, 5), (2, 3)).flatten(1, 3))
        assert patches.patch.bias is not None
        patches.patch.bias.copy_(embedding.bias + (weight * (0.5 - mean) / std).sum(dim=(1, 2, 3)))
    return patches


def train_map_patches(
    model: InfinityModel,
    reward: ImageReward,
    work_dir: Path,
    *,
    recipe: MapRecipe | None = None,
    budget_seconds: float | None = None,
) -> bool:
    """Train, or go on training, and write the file at the end; return whether all steps are done."""
    recipe = recipe or MapRecipe()
    torch.manual_seed(recipe.seed)
    patches = first_patches(model, reward, recipe.blocks)
    optimizer = torch.optim.AdamW(patches.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    path = work_dir / "map.pt"
    saved, first_step = load_checkpoint(path), 0
    if saved is not None:
        patches.load_state_dict(saved["patches"])
        optimizer.load_state_dict(saved["optimizer"])
        first_step = saved["step"]
    curve = Curve(work_dir / "map.jsonl")
    session = Session(budget_seconds, save_every_seconds=60)
    features = torch.empty(0)
    for step in range(first_step, recipe.steps):
        # A scene costs more than a step: it is drawn once for some views.
        rng = np.random.default_rng([recipe.seed, _TRAINING, step // recipe.views])
        if step % recipe.views == 0 or step == first_step:
            images = render_batch([sample_scene(rng) for _ in range(recipe.batch)], IMAGE_SIZE)
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                features = model.tokenizer.encode(pixels).float()
        rng = np.random.default_rng([recipe.seed, _TRAINING, step // recipe.views, step % recipe.views])
        kept = torch.from_numpy(rng.choice(recipe.scales, size=recipe.batch))
        flips = torch.from_numpy(rng.uniform(0, recipe.flip_rate, recipe.batch)).float()
        with torch.inference_mode():
            maps = truncated_maps(model.quantizer, features, kept, flips, rng)
            wanted = target_patches(model, reward, maps)
        rate = recipe.learning_rate * warm_hold_decay(
            step, steps=recipe.steps, warmup=recipe.warmup, decay_share=recipe.decay_share
        )
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(patches(maps.clone()), wanted.clone())
        loss.backward()
        optimizer.step()
        last = step == recipe.steps - 1
        if step % 20 == 0 or last:
            curve.add(step=step, unexplained=round(loss.item() / float(wanted.var()), 4))
        if last or session.is_over() or session.save_is_due():
            save_checkpoint(
                path,
                {"patches": patches.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
        if session.is_over() and not last:
            return False
    export(patches, work_dir / MAP_PATCHES_FILE)
    return True


def export(patches: MapPatches, path: Path) -> None:
    """Write the file, in half precision."""
    weights = {name: value.half().contiguous() for name, value in patches.state_dict().items()}
    path.write_bytes(serialize(weights, metadata={"format": "pt", "sizes": json.dumps(patches.sizes)}))


def map_stage(model_dir: Path, work_dir: Path, budget_seconds: float | None, *, seed: int = 0) -> bool:
    """Train for a model directory and put the file into its reward's folder; return whether it is there."""
    model = load_model(str(model_dir), device="cpu")
    assert isinstance(model, InfinityModel)
    reward = load_image_reward(model_dir / "reward")
    recipe = MapRecipe(seed=seed)
    if not train_map_patches(model, reward, work_dir, recipe=recipe, budget_seconds=budget_seconds):
        return False
    shutil.copy(work_dir / MAP_PATCHES_FILE, model_dir / "reward")
    return True
