"""`inception`: InceptionV3 features, from the file that torchvision publishes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.batches import run_in_batches
from ttsvar_ray.features.inception_network import InceptionNetwork
from ttsvar_ray.features.pixels import SquarePixels
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

INPUT_SIZE = 299
PUBLISHED_FILE = "inception_v3_google-0cc3c7bd.pth"

_DROPPED = re.compile(r"AuxLogits\..+|fc\.(weight|bias)|.+\.num_batches_tracked")
"""The auxiliary classifier and the classifier are not part of the features, the counters are no weights."""


class InceptionFeatures:
    """float32 [n, 2048] after average pooling; where channels are looked at, not places.

    The published code normalises with ImageNet's mean and deviation, and torchvision's network undoes that
    (`transform_input`) for the mean and deviation 0.5 that its weights were trained with. Both steps are one
    affine map, and here the second is applied directly.
    """

    def __init__(
        self,
        network: InceptionNetwork,
        *,
        name: str,
        device: str = "cpu",
        batch_rows: int = 32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    ) -> None:
        self.name = f"inception({name})"
        self.device = torch.device(device)
        self.batch_rows = batch_rows
        half = (0.5, 0.5, 0.5)
        self.pixels = SquarePixels(
            size=INPUT_SIZE, resample="bilinear", mean=half, std=half, mode=preprocessing
        )
        self.network = network.eval().requires_grad_(False).to(self.device)

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return run_in_batches(images, self._forward, batch_rows=self.batch_rows, device=self.device)

    def _forward(self, images: UInt8Array) -> Tensor:
        features: Tensor = self.network(self.pixels(images, self.device))
        return features


def load_inception(
    path: Path, *, device: str = "cpu", preprocessing: Preprocessing = Preprocessing.PUBLISHED
) -> InceptionFeatures:
    """Load the published InceptionV3 file (weights only).

    Raises:
        CheckpointError: not such a file, or tensors that do not fit.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected {PUBLISHED_FILE}")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or "Conv2d_1a_3x3.conv.weight" not in content:
        raise CheckpointError(
            f"{path}: expected the tensors of InceptionV3 (key Conv2d_1a_3x3.conv.weight); "
            f"take {PUBLISHED_FILE}"
        )
    return InceptionFeatures(
        network_from(content, where=str(path)), name=path.stem, device=device, preprocessing=preprocessing
    )


def network_from(weights: Mapping[str, Tensor], *, where: str) -> InceptionNetwork:
    """Return the network with published weights, their names unchanged.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors, all listed.
    """
    network = InceptionNetwork()
    own = {key: value for key, value in network.state_dict().items() if not _DROPPED.fullmatch(key)}
    given = {key: value for key, value in weights.items() if not _DROPPED.fullmatch(key)}
    problems = [f"missing {key}" for key in own if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in own]
    problems += [
        f"{key}: expected {tuple(own[key].shape)}, got {tuple(given[key].shape)}"
        for key in own
        if key in given and own[key].shape != given[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"{where}: InceptionV3: {len(problems)} tensors do not fit: {'; '.join(problems[:8])}"
        )
    network.load_state_dict({key: value.float() for key, value in given.items()}, strict=False)
    return network
