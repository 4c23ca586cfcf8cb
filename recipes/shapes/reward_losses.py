"""What the shapes reward learns from: captions told apart, and, for a start, what is where.

Trained on captions alone a reward of this size stays at chance for a long time. Two auxiliary tasks give it
eyes and a finger to point with: every patch names the object on it, and every shape word of a caption
says where its object is, which colour it has and how many there are. Their heads are not part of the reward.

Shape legend: B images, C captions an image, P patches + 1, T tokens, N nouns of a caption, V and W widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.shapes.reward_examples import RewardBatch
from recipes.shapes.scenes import MAX_OBJECTS
from ttsvar_ray.shapes.world import COLORS, SHAPES

PATCH_OUTPUTS = 1 + 2 + len(SHAPES) + len(COLORS)
NOUN_OUTPUTS = 2 + len(COLORS) + MAX_OBJECTS + 1


class AuxiliaryHeads(nn.Module):
    """Linear read-outs of patch states and of the states of shape words."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(vision_width, PATCH_OUTPUTS)
        self.noun = nn.Linear(text_width, NOUN_OUTPUTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """Mean losses of a batch, to be weighted and added."""

    judge: Tensor
    pair: Tensor
    patch: Tensor
    noun: Tensor


def caption_losses(scores_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of captions told apart.

    Args:
        scores_BC: raw scores, the first caption of each row is true.

    Returns:
        Binary cross-entropy of true against false (both halves weigh the same), and the pairwise logistic
        loss of the true caption against each false one.
    """
    true, false = scores_BC[:, :1], scores_BC[:, 1:]
    judge = (F.softplus(-true).mean() + F.softplus(false).mean()) / 2
    return judge, F.softplus(false - true).mean()


def patch_loss(outputs_BPK: Tensor, batch: RewardBatch, grid: int) -> Tensor:
    """Return the loss of naming the object on each patch.

    Args:
        outputs_BPK: [B, grid * grid, PATCH_OUTPUTS].
        batch: the examples.
        grid: patches a side.
    """
    device = outputs_BPK.device
    places = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    patch_centers = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    offsets = batch.centers[:, None] - patch_centers[None, :, None]
    distance = np.hypot(offsets[..., 0], offsets[..., 1])
    covered = (distance < batch.radii[:, None] * 1.05) & (batch.shape_index[:, None] >= 0)
    nearest = np.where(covered, distance, np.inf).argmin(axis=2)
    is_object = covered.any(axis=2)

    def of_nearest(values: np.ndarray) -> Tensor:
        spread = np.take_along_axis(values[:, None], nearest[:, :, None], axis=2)[..., 0]
        return torch.from_numpy(spread[is_object]).to(device)

    there = torch.from_numpy(is_object).to(device)
    objectness, rest = outputs_BPK[..., 0], outputs_BPK[there][:, 1:]
    shape_logits, color_logits = rest[:, 2 : 2 + len(SHAPES)], rest[:, 2 + len(SHAPES) :]
    offset = np.take_along_axis(offsets, nearest[:, :, None, None], axis=2)[:, :, 0][is_object]
    target_offset = torch.from_numpy(offset).to(device)
    return (
        F.binary_cross_entropy_with_logits(objectness, there.float())
        + F.cross_entropy(shape_logits, of_nearest(batch.shape_index))
        + F.cross_entropy(color_logits, of_nearest(batch.color_index))
        + 4 * F.smooth_l1_loss(rest[:, :2], target_offset, beta=0.05)
    )


def noun_loss(text_BCTW: Tensor, heads: AuxiliaryHeads, batch: RewardBatch) -> Tensor:
    """Return the loss of pointing: each shape word's object (its centre and colour), and how many there are.

    Args:
        text_BCTW: text states [B * C, T, W].
        heads: the read-outs.
        batch: the examples.
    """
    device = text_BCTW.device
    rows, columns = np.nonzero(batch.noun_token)
    states = text_BCTW[torch.from_numpy(rows), torch.from_numpy(batch.noun_token[rows, columns])]
    outputs = heads.noun(states).float()
    count = torch.from_numpy(batch.noun_count[rows, columns]).to(device)
    loss = F.cross_entropy(outputs[:, 2 + len(COLORS) :], count)
    only = batch.noun_object[rows, columns]
    unique = np.flatnonzero(only >= 0)
    if len(unique):
        image = rows[unique] // (len(batch.texts) // len(batch.images))
        center = torch.from_numpy(batch.centers[image, only[unique]]).to(device)
        color = torch.from_numpy(batch.color_index[image, only[unique]]).to(device)
        pointed = outputs[torch.from_numpy(unique).to(device)]
        loss = loss + 4 * F.smooth_l1_loss(pointed[:, :2], center, beta=0.05)
        loss = loss + F.cross_entropy(pointed[:, 2 : 2 + len(COLORS)], color)
    return loss
