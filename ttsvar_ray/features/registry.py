"""Every feature extractor by its name in the settings: one entry each, read by the costs and the doctor too.

To add one: a file with its loader, an entry here, a section in docs/features.md. An extractor of the user's
own needs none of these: its name is an import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ttsvar_ray.errors import ConfigurationError, FeatureError, reading_weights
from ttsvar_ray.own_code import OwnCode, is_own, load_own_class, named_object
from ttsvar_ray.types import Float32Array, Precision, Preprocessing, UInt8Array
from ttsvar_ray.vision.published import NetworkCost, PublishedFiles, PublishedWeights, read_precision


class FeatureExtractor(Protocol):
    """Maps images to vectors whose distances mean structural difference.

    An image's features never depend on the other images of the call: populations are split among
    micro-batches and workers. An extractor whose reduction needs a whole population returns what that
    reduction needs, and the plan says how the selection reduces it (`search.plan.Plan.joint_component`).
    """

    name: str

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, feature_dim], or [n, num_patches, width] to be reduced by the selection.

        `images` are uint8 RGB [n, height, width, 3].
        """
        ...


def extracted(extractor: FeatureExtractor, images: UInt8Array) -> Float32Array:
    """Return the features of images.

    Raises:
        FeatureError: they are not one vector, or one list of patches, for each image.
    """
    features = np.asarray(extractor.extract(images), dtype=np.float32)
    if features.ndim < 2 or len(features) != len(images):
        raise FeatureError(
            f"features: expected a vector for each of {len(images)} images, got shape {features.shape}"
        )
    return features


PCA_SIGNS = ("deterministic", "published")
METHODS = ("extract",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorEntry:
    """All that is said of one extractor.

    Attributes:
        loader: import path of what makes it of its network's files: `(path, *, preprocessing, device,
            precision)`, and `pca_sign` where it reads it. Imported only when it is called.
        network: name of the published network.
        weights: of that network: what they cost, where they come from.
        expected: what `features.backbone` names, for messages.
        takes_any_backbone: whether any patch backbone serves, a model's own too; else the network's one file.
        reads_sign: whether it turns a principal component itself.
        is_joint: whether the selection reduces its features, over the whole population at once.
    """

    name: str
    loader: str
    network: str
    weights: PublishedWeights
    expected: str
    takes_any_backbone: bool = False
    reads_sign: bool = False
    is_joint: bool = False


_DINOV2 = PublishedWeights(
    cost=NetworkCost(parameters=304_372_736, image_flops=164_649_590_784, activation_bytes=15_133_824),
    files=(PublishedFiles("facebook/dinov2-with-registers-large", ("config.json", "model.safetensors")),),
    licence="Apache-2.0",
)


def _of_patches(
    name: str, loader: str, *, reads_sign: bool = False, is_joint: bool = False
) -> ExtractorEntry:
    return ExtractorEntry(
        name=name,
        loader=f"ttsvar_ray.features.patch_features:{loader}",
        network="dinov2",
        weights=_DINOV2,
        expected="the path of a vision network (a reward directory or DINOv2)",
        takes_any_backbone=True,
        reads_sign=reads_sign,
        is_joint=is_joint,
    )


_ENTRIES = (
    # Each image's patches along their own first principal direction.
    _of_patches("pca", "load_pca", reads_sign=True),
    # The patches themselves; the selection finds one direction for the whole population.
    _of_patches("pca_all", "load_pca_all", is_joint=True),
    # The mean of the patches.
    _of_patches("pool", "load_pool"),
    # InceptionV3 after its average pooling.
    ExtractorEntry(
        name="inception",
        loader="ttsvar_ray.features.inception:load_inception",
        network="inception",
        weights=PublishedWeights(
            # Convolutions at 299 x 299: 5.71 G multiplications.
            cost=NetworkCost(parameters=27_161_264, image_flops=11.43e9, activation_bytes=40_000_000),
            files=(
                PublishedFiles(
                    "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
                    ("inception_v3_google-0cc3c7bd.pth",),
                ),
            ),
            licence="BSD-3-Clause",
        ),
        expected="the file inception_v3_google-0cc3c7bd.pth",
    ),
)

EXTRACTORS: dict[str, ExtractorEntry] = {entry.name: entry for entry in _ENTRIES}
"""By name; costs with the published backbone."""


def build_extractor(
    name: str,
    *,
    backbone: str | Path | None,
    pca_sign: str = "deterministic",
    preprocessing: str = "published",
    dtype: Precision | str = Precision.FLOAT32,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> FeatureExtractor:
    """Build a feature extractor.

    Args:
        name: of an entry, or the import path of a class.
        backbone: what the entry expects; see docs/features.md.
        pca_sign: `deterministic` or `published` (see `ComponentSign`); only `pca` reads it here.
        preprocessing: `published` or `tensor` (see `types.Preprocessing`).
        dtype: of its network, see `types.Precision`.
        options: of one's own extractor.

    Raises:
        ConfigurationError: unknown name or sign, no backbone, or a class that is no extractor.
        CheckpointError: the files are not a known backbone.
    """
    if is_own(name):
        own = find_own_extractor(
            name,
            backbone=backbone,
            preprocessing=preprocessing,
            dtype=dtype,
            device=device,
            options=options,
        )
        mine: FeatureExtractor = own.make(setting="features.extractor")
        return mine
    entry = EXTRACTORS.get(name)
    problems = []
    if entry is None:
        problems.append(f"features.extractor: expected one of {', '.join(EXTRACTORS)}, got {name!r}")
    if pca_sign not in PCA_SIGNS:
        problems.append(f"features.pca_sign: expected one of {', '.join(PCA_SIGNS)}, got {pca_sign!r}")
    if backbone is None:
        expected = "a vision network" if entry is None else entry.expected
        problems.append(f"features.backbone: expected {expected}, got nothing")
    if problems or backbone is None or entry is None:
        raise ConfigurationError(problems)
    sign = {"pca_sign": pca_sign} if entry.reads_sign else {}
    load, precision = named_object(entry.loader), read_precision(dtype, setting="features.dtype")
    with reading_weights(backbone):
        extractor: FeatureExtractor = load(
            Path(backbone),
            device=device,
            preprocessing=Preprocessing(preprocessing),
            precision=precision,
            **sign,
        )
    return extractor


def find_own_extractor(
    name: str,
    *,
    backbone: str | Path | None = None,
    preprocessing: str = "published",
    dtype: Precision | str = Precision.FLOAT32,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> OwnCode:
    """Import the class of one's own extractor; nothing is made of it.

    Returns:
        The class, with the keywords that it is called with: `device`, its options, and whichever of
        `backbone`, `preprocessing` and `dtype` is given and no default.

    Raises:
        ConfigurationError: no such class, or one that is no extractor or takes other arguments.
    """
    given: dict[str, Any] = {"device": device}
    if backbone is not None:
        given["backbone"] = Path(backbone)
    if preprocessing != Preprocessing.PUBLISHED:
        given["preprocessing"] = preprocessing
    if Precision(dtype) not in (Precision.FLOAT32, Precision.TF32):
        given["dtype"] = Precision(dtype).value
    return load_own_class(
        name,
        methods=METHODS,
        given=given,
        options=options,
        setting="features.extractor",
        what="a feature extractor",
    )
