"""A reward and a feature extractor of your own, named in the settings by their import path.

python docs/examples/own_reward.py

generates a few images of the built-in model twice, with its own reward and with the one below, and prints how
much green the chosen images hold. From the command line the same is, with this folder on the Python path,

ttsvar-ray generate --prompts prompts.txt --output out --set reward.name=own_reward:Greenness
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.types import Float32Array, UInt8Array


class Greenness(PlainReward):
    """How much more green than red and blue an image holds, whatever its text.

    A reward of your own is called with `device` and its own options, the keywords under `reward.options`;
    with `path` too where `reward.path` is given.
    """

    def __init__(self, *, device: str, weight: float = 20.0) -> None:
        self.name = "greenness"
        self._weight = weight

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] of uint8 RGB [n, height, width, 3]."""
        red, green, blue = images.mean(axis=(1, 2), dtype=np.float64).T / 255
        return (self._weight * (green - (red + blue) / 2)).astype(np.float32)


class CoarseColours:
    """The colours of an image's quarters, as features: [n, 12]."""

    name = "coarse-colours"

    def __init__(self, *, device: str) -> None:
        pass

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, 12] of uint8 RGB [n, height, width, 3]."""
        halves = [np.array_split(half, 2, axis=2) for half in np.array_split(images, 2, axis=1)]
        means = [quarter.mean(axis=(1, 2)) for half in halves for quarter in half]
        return (np.concatenate(means, axis=1) / 255).astype(np.float32)


def mean_greenness(folder: Path, *settings: str) -> float:
    """Run a small job of the built-in model in `folder`; return the greenness of what it chose."""
    # Not needed by a worker, which imports this module for the two classes.
    from ttsvar_ray.cluster.job import run_job
    from ttsvar_ray.config.load import load_config

    folder.mkdir()
    (folder / "prompts.txt").write_text("a red circle and a green square\na blue triangle\n" * 2)
    prompts, out = folder / "prompts.txt", folder / "out"
    run_job(
        load_config(
            None,
            [
                f"prompts.path={prompts}",
                f"output.path={out}",
                "cluster.workers=2",
                "engine.threads=1",
                "strategy.plan=published",  # it clusters, so that an extractor is asked
                *settings,
            ],
        )
    )
    rows = [
        row for part in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(part).to_pylist()
    ]
    images = np.stack([np.asarray(Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
    return float(Greenness(device="cpu").score(images, [row["prompt"] for row in rows]).mean())


if __name__ == "__main__":
    own = ["reward.name=own_reward:Greenness", "features.extractor=own_reward:CoarseColours"]
    with tempfile.TemporaryDirectory() as folder:
        print(f"the model's own reward  {mean_greenness(Path(folder) / 'a'):+.3f}")
        print(f"greenness               {mean_greenness(Path(folder) / 'b', *own):+.3f}")
