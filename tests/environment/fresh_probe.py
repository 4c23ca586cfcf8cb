"""Run by the environment test in its own environment: import everything, compare a CLIP with open_clip's.

Takes the folder with CLIP's tokenizer; the last line that it prints is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import ray
import torch
import torchvision
import transformers

import ttsvar_ray.cli
from ttsvar_ray.rewards.registry import REWARDS, build_reward

SIZES = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 80, "head_width": 40, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
TEXTS = ["a photo of a red bus", "An oil painting of a cat, UNBELIEVABLY detailed &amp; bright!"]


def main(tokenizer: Path) -> None:
    """Write a small HPS as published, with open_clip; load it as a reward; compare both."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ViT-tiny.json").write_text(json.dumps(SIZES))
        open_clip.add_model_config(folder)
        model = open_clip.create_model("ViT-tiny").eval()
        torch.save({"state_dict": model.state_dict()}, folder / REWARDS["hps-v2.1"].settings["file"])
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        reward = build_reward("hps-v2.1", path=folder)

    images = np.random.default_rng(0).integers(0, 256, (2, 100, 60, 3), dtype=np.uint8)
    ids = open_clip.get_tokenizer("ViT-tiny")(TEXTS)
    with torch.inference_mode():
        image = model.encode_image(reward.preprocess(images), normalize=True)
        text = model.encode_text(ids, normalize=True)
    expected = (image * text).sum(dim=-1).numpy()
    print(
        json.dumps(
            {
                "python": sys.version.split()[0],
                "ttsvar_ray": Path(ttsvar_ray.cli.__file__).as_posix(),
                "versions": {
                    module.__name__: module.__version__
                    for module in (torch, torchvision, transformers, ray, open_clip)
                },
                "rewards": len(REWARDS),
                "tokens_equal": [reward.tokens.encode(text)[0] for text in TEXTS] == ids.tolist(),
                "score_difference": float(np.abs(reward.score(images, TEXTS) - expected).max()),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
