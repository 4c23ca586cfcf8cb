"""Heads of linear layers without activations, as rewards publish them on top of a large network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.vision.checkpoints import load_strict, read_published


class LinearHead(nn.Module):
    """Maps embeddings [B, width] to [B] by linear layers, at the indices of the published checkpoint.

    The whole is one affine map; it is kept as layers so that published weights load unchanged and round as
    published.

    Args:
        input_width: of the embedding.
        widths: of the layers' outputs; the last one is 1.
        indices: places of the linear layers; the places between them held dropouts.
    """

    def __init__(self, input_width: int, widths: Sequence[int], indices: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for index, width in zip(indices, widths, strict=True):
            self.layers[str(index)] = nn.Linear(input_width, width)
            input_width = width

    def forward(self, embeddings_BW: Tensor) -> Tensor:
        """Map [B, W] to [B]."""
        for layer in self.layers.values():
            embeddings_BW = layer(embeddings_BW)
        return embeddings_BW.squeeze(-1)


def load_linear_head(path: Path, *, prefix: str, indices: Sequence[int], input_width: int) -> LinearHead:
    """Read a head (weights only): `{prefix}.{index}.weight` and `.bias`, ending in one output.

    Args:
        path: the published file.
        prefix: of its keys.
        indices: places of the linear layers; a file with other places has other layers there, such as
            activations, so it is refused.
        input_width: of the embedding that the head reads.

    Raises:
        CheckpointError: no such file, other layers, or widths that do not fit.
    """
    weights = read_published(path, expected="the published head of this reward")
    expected = {f"{prefix}.{index}.{part}" for index in indices for part in ("weight", "bias")}
    if set(weights) != expected:
        raise CheckpointError(f"{path}: expected exactly the keys {sorted(expected)}, got {sorted(weights)}")
    widths = [len(weights[f"{prefix}.{index}.weight"]) for index in indices]
    if widths[-1] != 1:
        raise CheckpointError(f"{path}: expected one output, got {widths[-1]}")
    head = LinearHead(input_width, widths, indices)
    own_names = {f"layers.{key.removeprefix(f'{prefix}.')}": weight for key, weight in weights.items()}
    load_strict(head, own_names, source=str(path))
    return head
