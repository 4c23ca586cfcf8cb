"""Small VAR models: those of the reference vectors, and a directory of one."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipes.shapes.assemble import save_weights
from tests.support.seeded_weights import seeded_weights
from ttsvar_ray.models.description import CONFIG_NAME, FORMAT_VERSION, WEIGHT_FILES
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.state import ScaleState
from ttsvar_ray.models.var.config import FAMILY, VarConfig, VqConfig, linear_guidance, square_schedule
from ttsvar_ray.models.var.directory import CLASSES
from ttsvar_ray.models.var.model import ClassNames, VarModel
from ttsvar_ray.models.var.tokenizer import VqDecoder, next_input
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.vision.checkpoints import load_strict

DATA = Path(__file__).parents[1] / "data" / "var"
SMALL_CASES = ("own_modulation", "shared_modulation")


def tokens_to_bits(tokens: Tensor, bits_per_token: int) -> Tensor:
    """Return uint8 [B, n, bits] of entries int64 [B, n]: the most significant bit first."""
    shifts = torch.arange(bits_per_token - 1, -1, -1, device=tokens.device)
    return ((tokens[..., None] >> shifts) & 1).to(torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file of reference vectors and the model it was made with."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    model: VarModel

    def next_features(self, state: ScaleState) -> Tensor:
        """Return what the transformer sees of the feature map at the next scale."""
        return next_input(state.summed, self.model.scale_schedule[state.scale_index])


def load_case(name: str) -> Case:
    """Read one file and rebuild its model."""
    with safe_open(DATA / f"{name}.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return Case(config=config, tensors=tensors, model=small_model(name, config))


def small_model(name: str, config: dict[str, Any]) -> VarModel:
    """Return a model with the weights that belong to a name."""
    schedule = square_schedule(tuple(config["sides"]))
    transformer = VarTransformer(
        VarConfig(
            embed_dim=config["embed_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            vocabulary=config["vocabulary"],
            codebook_dim=config["codebook_dim"],
            num_classes=config["num_classes"],
            shared_modulation=config["shared_modulation"],
        ),
        schedule,
    )
    tokenizer = VqDecoder(
        VqConfig(
            vocabulary=config["vocabulary"],
            codebook_dim=config["codebook_dim"],
            base_channels=config["base_channels"],
        )
    )
    for module in (transformer, tokenizer):
        seed(module, name)
    return VarModel(
        name=name,
        transformer=transformer.eval(),
        tokenizer=tokenizer.eval(),
        classes=ClassNames([[f"thing {label}"] for label in range(config["num_classes"])]),
        sampling=SamplingSettings(
            guidance=linear_guidance(config["guidance_peak"], len(schedule)),
            temperature=(1.0,) * len(schedule),
            top_p=config["top_p"],
            top_k=config["top_k"],
        ),
    )


def seed(module: nn.Module, name: str) -> None:
    """Give a module the weights that its names and shapes stand for."""
    shapes = {f"{name}:{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    weights = {key.split(":", 1)[1]: value for key, value in seeded_weights(shapes).items()}
    load_strict(module, weights, source=name, assign=True)
    module.requires_grad_(False)


@functools.cache
def public_keys() -> dict[str, dict[str, list[int]]]:
    """Return keys and shapes of the published files."""
    keys: dict[str, dict[str, list[int]]] = json.loads(
        gzip.decompress((DATA / "published_shapes.json.gz").read_bytes())
    )
    return keys


def same_state(one: ScaleState, two: ScaleState) -> bool:
    """Return whether two states are the same bytes."""
    layers = zip(one.cache.layers, two.cache.layers, strict=True)
    return (
        [one.texts[row] for row in one.text_rows] == [two.texts[row] for row in two.text_rows]
        and torch.equal(one.summed, two.summed)
        and all(torch.equal(a, b) for a, b in zip(one.bits, two.bits, strict=True))
        and all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in layers)
    )


def save_var(
    path: Path,
    *,
    model: VarModel,
    dtype: torch.dtype,
    plan: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory that `load_var` reads.

    Args:
        path: the directory; made if absent, files of the same names are replaced.
        model: what to write; its sampling settings become the directory's.
        dtype: of all weights on disk.
        plan: the model's own search settings, named as in the job's `strategy` section.
        reward: {"name", "path" relative to the directory}.
        features: {"extractor", "backbone" relative to the directory}.
    """
    path.mkdir(parents=True, exist_ok=True)
    save_weights(model.transformer, path / WEIGHT_FILES["transformer"], dtype=dtype)
    save_weights(model.tokenizer, path / WEIGHT_FILES["tokenizer"], dtype=dtype)
    model.classes.write(path / CLASSES)
    sampling = model.sampling
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "family": FAMILY,
        "name": model.name,
        "transformer": model.transformer.config.to_json(),
        "tokenizer": model.tokenizer.config.to_json(),
        "files": {"classes": CLASSES},
        "scale_schedule": [list(size) for size in model.scale_schedule],
        "sampling": {
            "guidance": list(sampling.guidance),
            "temperature": list(sampling.temperature),
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        },
    }
    for key, section in (("plan", plan), ("reward", reward), ("features", features)):
        if section is not None:
            config[key] = dict(section)
    # Last, so that an interrupted save is not taken for a model.
    (path / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
