"""InceptionV3 weights that two implementations can rebuild, and the recording of torchvision's features.

`python -m tests.support.inception OUT` needs torchvision; the tests only read what it wrote.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.support.seeded_weights import seeded_tensor

RECORDED = Path(__file__).parents[1] / "data" / "inception"
IMAGES = Path(__file__).parents[1] / "data" / "rewards" / "images"
IMAGE_NAMES = ("small1.png", "small3.png")


def published_shapes() -> dict[str, list[int]]:
    """Return every name and shape in torchvision's inception_v3, the auxiliary classifier included."""
    packed = (RECORDED / "published_shapes.json.gz").read_bytes()
    shapes: dict[str, list[int]] = json.loads(gzip.decompress(packed))
    return shapes


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights under these names that keep activations near unit scale through all layers."""
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(1)
        elif name.endswith(("bn.weight", "running_var")):
            made[name] = 1.0 + seeded_tensor(name, shape, amplitude=0.3)
        elif len(shape) >= 2:
            made[name] = seeded_tensor(name, shape, amplitude=math.sqrt(6.0 / math.prod(shape[1:])))
        else:
            made[name] = seeded_tensor(name, shape, amplitude=0.1)
    return made


def images() -> list[np.ndarray]:
    """Return uint8 RGB images, one of them grey, none square and of the network's size."""
    return [np.asarray(Image.open(IMAGES / name).convert("RGB")) for name in IMAGE_NAMES]


def record(out: Path) -> None:
    """Write what torchvision makes of the same weights and images, preprocessed as TTS-VAR does."""
    import torchvision
    from torchvision import transforms

    network = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    network.fc = torch.nn.Identity()
    network.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize((299, 299)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    pixels = torch.stack([prepare(Image.fromarray(image)) for image in images()])
    with torch.inference_mode():
        features = network(pixels).numpy()
    out.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(json.dumps(shapes, separators=(",", ":")).encode(), mtime=0)
    (out / "published_shapes.json.gz").write_bytes(packed)
    np.savez_compressed(out / "features.npz", features=features)
    sys.stdout.write(
        f"torchvision {torchvision.__version__}, torch {torch.__version__}: {features.shape}, "
        f"mean {features.mean():.3f}, deviation {features.std():.3f}, parameters "
        f"{sum(value.numel() for value in network.parameters())}\n"
    )


if __name__ == "__main__":
    record(Path(sys.argv[1]))
