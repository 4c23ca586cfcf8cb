"""`inception`: InceptionV3 up to its average pooling, from the file that torchvision publishes.

The network is a table, with the tensor names of its checkpoint.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), in the
variant whose weights torchvision publishes: its names, batch normalisation with eps 1e-3 after every
convolution, 3 x 3 average pooling that counts the padding.

Shape legend: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.types import Float32Array, Precision, Preprocessing, UInt8Array
from ttsvar_ray.vision.batches import ImageNetwork, settle, torch_dtype
from ttsvar_ray.vision.checkpoints import KeyTable, load_strict, read_published, rename_keys
from ttsvar_ray.vision.pixels import HALF, Fit, PixelRecipe, Resample

INPUT_SIZE = 299
FEATURE_WIDTH = 2048


@dataclass(frozen=True, slots=True)
class _Conv:
    """One convolution: its name in the checkpoint, output channels, kernel (height, width), stride.

    Inside a block, convolutions of stride 1 keep the grid; the others are not padded.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Step = _Conv | tuple[_Conv, _Conv]
"""A pair of convolutions looks at the same input; their outputs stand side by side."""

_ROW3, _COLUMN3 = (1, 3), (3, 1)
_ROW7, _COLUMN7 = (1, 7), (7, 1)
_3, _5 = (3, 3), (5, 5)


@dataclass(frozen=True, slots=True)
class Block:
    """Branches side by side, and a pooling branch last.

    Attributes:
        branches: each a chain of steps.
        pooled_channels: of the 1 x 1 convolution after average pooling; None for max pooling of stride 2.
    """

    branches: tuple[tuple[Step, ...], ...]
    pooled_channels: int | None

    @property
    def channels_beside_pool(self) -> int:
        """Output channels of all branches but the pooling one."""
        return sum(_channels(branch[-1]) for branch in self.branches)


def _channels(step: Step) -> int:
    return step.channels if isinstance(step, _Conv) else sum(conv.channels for conv in step)


def _block_35(pooled: int) -> Block:
    return Block(
        (
            (_Conv("branch1x1", 64),),
            (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, _5)),
            (_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, _3), _Conv("branch3x3dbl_3", 96, _3)),
        ),
        pooled,
    )


def _block_17(inner: int) -> Block:
    return Block(
        (
            (_Conv("branch1x1", 192),),
            (
                _Conv("branch7x7_1", inner),
                _Conv("branch7x7_2", inner, _ROW7),
                _Conv("branch7x7_3", 192, _COLUMN7),
            ),
            (
                _Conv("branch7x7dbl_1", inner),
                _Conv("branch7x7dbl_2", inner, _COLUMN7),
                _Conv("branch7x7dbl_3", inner, _ROW7),
                _Conv("branch7x7dbl_4", inner, _COLUMN7),
                _Conv("branch7x7dbl_5", 192, _ROW7),
            ),
        ),
        192,
    )


_BLOCK_8 = Block(
    (
        (_Conv("branch1x1", 320),),
        (
            _Conv("branch3x3_1", 384),
            (_Conv("branch3x3_2a", 384, _ROW3), _Conv("branch3x3_2b", 384, _COLUMN3)),
        ),
        (
            _Conv("branch3x3dbl_1", 448),
            _Conv("branch3x3dbl_2", 384, _3),
            (_Conv("branch3x3dbl_3a", 384, _ROW3), _Conv("branch3x3dbl_3b", 384, _COLUMN3)),
        ),
    ),
    192,
)

BLOCKS: dict[str, Block] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": Block(
        (
            (_Conv("branch3x3", 384, _3, 2),),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, _3),
                _Conv("branch3x3dbl_3", 96, _3, 2),
            ),
        ),
        None,
    ),
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": Block(
        (
            (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, _3, 2)),
            (
                _Conv("branch7x7x3_1", 192),
                _Conv("branch7x7x3_2", 192, _ROW7),
                _Conv("branch7x7x3_3", 192, _COLUMN7),
                _Conv("branch7x7x3_4", 192, _3, 2),
            ),
        ),
        None,
    ),
    "Mixed_7b": _BLOCK_8,
    "Mixed_7c": _BLOCK_8,
}

STEM: tuple[tuple[_Conv, int] | None, ...] = (
    (_Conv("Conv2d_1a_3x3", 32, _3, 2), 0),
    (_Conv("Conv2d_2a_3x3", 32, _3), 0),
    (_Conv("Conv2d_2b_3x3", 64, _3), 1),
    None,
    (_Conv("Conv2d_3b_1x1", 80), 0),
    (_Conv("Conv2d_4a_3x3", 192, _3), 0),
    None,
)
"""Convolutions before the blocks, each with its padding; None is 3 x 3 max pooling of stride 2."""


class _NormedConv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, input_channels: int, conv: _Conv, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            input_channels, conv.channels, conv.kernel, stride=conv.stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(conv.channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)))


class _MixedBlock(nn.Module):
    """One `Block` of the table."""

    def __init__(self, input_channels: int, block: Block) -> None:
        super().__init__()
        self._block = block
        for branch in block.branches:
            channels = input_channels
            for step in branch:
                for conv in (step,) if isinstance(step, _Conv) else step:
                    height, width = conv.kernel
                    padding = (height // 2, width // 2) if conv.stride == 1 else (0, 0)
                    self.add_module(conv.name, _NormedConv(channels, conv, padding))
                channels = _channels(step)
        if block.pooled_channels is not None:
            pool = _Conv("branch_pool", block.pooled_channels)
            self.add_module(pool.name, _NormedConv(input_channels, pool, (0, 0)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        outputs = []
        for branch in self._block.branches:
            y_BCHW = x_BCHW
            for step in branch:
                convs = (step,) if isinstance(step, _Conv) else step
                y_BCHW = torch.cat([self.get_submodule(conv.name)(y_BCHW) for conv in convs], dim=1)
            outputs.append(y_BCHW)
        if self._block.pooled_channels is None:
            outputs.append(F.max_pool2d(x_BCHW, 3, stride=2))
        else:
            outputs.append(self.get_submodule("branch_pool")(F.avg_pool2d(x_BCHW, 3, stride=1, padding=1)))
        return torch.cat(outputs, dim=1)


class InceptionNetwork(nn.Module):
    """Maps pixels [B, 3, H, W] with mean and deviation 0.5 to [B, 2048]; the published size is 299."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for entry in STEM:
            if entry is not None:
                conv, padding = entry
                self.add_module(conv.name, _NormedConv(channels, conv, (padding, padding)))
                channels = conv.channels
        for name, block in BLOCKS.items():
            self.add_module(name, _MixedBlock(channels, block))
            pooled = channels if block.pooled_channels is None else block.pooled_channels
            channels = block.channels_beside_pool + pooled
        assert channels == FEATURE_WIDTH

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for entry in STEM:
            if entry is None:
                x_BCHW = F.max_pool2d(x_BCHW, 3, stride=2)
            else:
                x_BCHW = self.get_submodule(entry[0].name)(x_BCHW)
        for name in BLOCKS:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW.mean(dim=(2, 3))


INCEPTION_KEYS: KeyTable = (
    # The two classifiers are not part of the features, the counters are no weights.
    (r"AuxLogits\..+|fc\.(?:weight|bias)|.+\.num_batches_tracked", None),
    (r"(.+)", r"\1"),
)


class InceptionFeatures(ImageNetwork):
    """float32 [n, 2048] after average pooling; where channels are looked at, not places.

    The published code normalises with ImageNet's mean and deviation, and torchvision's network undoes that
    (`transform_input`) for the mean and deviation 0.5 that its weights were trained with. Both steps are one
    affine map, and here the second is applied directly.
    """

    # Below 16: from there on, one thread computes its convolutions of one pixel by another library.
    batch_rows = 8

    def __init__(
        self,
        network: InceptionNetwork,
        *,
        name: str,
        device: str = "cpu",
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
        precision: Precision = Precision.FLOAT32,
    ) -> None:
        recipe = PixelRecipe(
            size=INPUT_SIZE,
            fit=Fit.STRETCH,
            resample=Resample.BILINEAR,
            mean=HALF,
            std=HALF,
            preprocessing=preprocessing,
        )
        super().__init__(
            recipe=recipe, device=device, dtype=torch_dtype(precision), tf32=precision is Precision.TF32
        )
        self.name = f"inception({name})"
        self.network = settle(network, self.device, self.dtype)

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return self.run(lambda pixels, _contents: self.network(pixels), self.preprocess(images))


def load_inception(path: Path, **how: Any) -> InceptionFeatures:
    """Load the published InceptionV3 file (weights only); `how` as in `InceptionFeatures`.

    Raises:
        CheckpointError: not such a file, or tensors that do not fit.
    """
    published = read_published(path, expected="InceptionV3, inception_v3_google-0cc3c7bd.pth")
    network = network_from(published, source=str(path))
    return InceptionFeatures(network, name=path.stem, **how)


def network_from(published: Mapping[str, Tensor], *, source: str) -> InceptionNetwork:
    """Return the network with published weights.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors, all listed.
    """
    network = InceptionNetwork()
    weights = rename_keys(published, INCEPTION_KEYS, source=source)
    load_strict(network, weights, source=source, optional=r".+\.num_batches_tracked")
    return network
