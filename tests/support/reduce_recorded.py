"""Make the shipped subset of recorded rewards: `python -m tests.support.reduce_recorded FULL OUT`.

Outputs stay the official ones. Weights that no recorded output depends on become zero, and where two linear
layers follow each other without an activation, their product stands in the first; then xz makes them small.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_IMAGES = 4

_FOR_FLOATS = {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": 2, "pb": 2}
"""The four bytes of a float32 are told apart: an eighth smaller than by default."""


def main(full: Path, out: Path) -> None:
    """Write the subset of `full` to `out`."""
    _image_reward(full / "imagereward", out / "imagereward")
    _dinov2(full / "dinov2_reg", out / "dinov2_reg")
    _hps(full / "hpsv21", out / "hpsv21")
    _aesthetic(full / "aesthetic_v25", out / "aesthetic_v25")
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index in range(SMALL_IMAGES):
        shutil.copyfile(full / "images" / f"small{index}.png", out / "images" / f"small{index}.png")


def _image_reward(full: Path, out: Path) -> None:
    weights = _load(full / "ImageReward.pt")
    for key in list(weights):
        if key.startswith(("blip.vision_proj", "blip.text_proj")):
            weights[key] = torch.zeros_like(weights[key])
    _merge(weights, "mlp.layers.0", "mlp.layers.2")
    _save(weights, out / "ImageReward.pt")
    _copy(full, out, "med_config.json", "ref.json", "vocab.txt")


def _dinov2(full: Path, out: Path) -> None:
    weights = _load(full / "dinov2_vitl14_reg4_pretrain.pth")
    weights["mask_token"] = torch.zeros_like(weights["mask_token"])
    _save(weights, out / "dinov2_vitl14_reg4_pretrain.pth")
    _copy(full, out, "meta.json")
    with np.load(full / "ref.npz") as file:
        kept = {key: file[key] for key in ("patchtokens", "pca", "pca_all", "pool", "cls", "reg")}
    np.savez_compressed(out / "ref.npz", **kept)


def _hps(full: Path, out: Path) -> None:
    content = _load(full / "HPS_v2.1_compressed.pt")
    reference = json.loads((full / "ref.json").read_text())
    used = sorted({token for tokens in reference["tokens"] for token in tokens})
    embedding = content["state_dict"]["token_embedding.weight"]
    unread = torch.ones(len(embedding), dtype=torch.bool)
    unread[used] = False
    embedding[unread] = 0.0
    _save(content, out / "HPS_v2.1_compressed.pt")
    _copy(full, out, "ViT-H-14-tiny.json")
    reference["images"] = reference["images"][:SMALL_IMAGES]
    reference["score"] = [row[:SMALL_IMAGES] for row in reference["score"]]
    (out / "ref.json").write_text(json.dumps(reference) + "\n")


def _aesthetic(full: Path, out: Path) -> None:
    weights = _load(full / "aesthetic_predictor_v2_5.pth")
    _merge(weights, "scoring_head.0", "scoring_head.2")
    _save(weights, out / "aesthetic_predictor_v2_5.pth")
    _copy(full, out, "ref.json")
    _copy(full / "siglip", out / "siglip", "config.json", "preprocessor_config.json")
    _write_xz((full / "siglip" / "model.safetensors").read_bytes(), out / "siglip" / "model.safetensors")


def _merge(weights: dict[str, Tensor], first: str, second: str) -> None:
    """Put the product of two linear layers into the first one's leading rows; the second passes them on."""
    first_weight, first_bias = weights[f"{first}.weight"].double(), weights[f"{first}.bias"].double()
    second_weight, second_bias = weights[f"{second}.weight"].double(), weights[f"{second}.bias"].double()
    rows = len(second_weight)
    merged_weight, merged_bias = torch.zeros_like(first_weight), torch.zeros_like(first_bias)
    merged_weight[:rows] = second_weight @ first_weight
    merged_bias[:rows] = second_weight @ first_bias + second_bias
    weights[f"{first}.weight"], weights[f"{first}.bias"] = merged_weight.float(), merged_bias.float()
    weights[f"{second}.weight"] = torch.eye(rows, second_weight.shape[1])
    weights[f"{second}.bias"] = torch.zeros(rows)


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _save(content: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _write_xz(buffer.getvalue(), path)


def _write_xz(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(content, filters=[_FOR_FLOATS]))


def _copy(full: Path, out: Path, *names: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(full / name, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
