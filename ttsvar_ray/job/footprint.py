"""From a job's settings to the sizes of its networks, for cost models; reads JSON files, never weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttsvar_ray.config import JobConfig
from ttsvar_ray.costs import ModelShape, TransformerShape
from ttsvar_ray.costs.blip import blip_cost, blip_tower_cost
from ttsvar_ray.costs.decoder import DecoderShape
from ttsvar_ray.costs.encoder import T5_XL, EncoderShape
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.own_code import is_own
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.vision.published import NO_COST, NetworkCost, PublishedWeights

TYPICAL_TEXT_TOKENS = 32


def has_counted_costs(description: ModelDescription) -> bool:
    """Whether the costs of a model's family are known."""
    return description.family == "infinity"


def model_shape(
    config: JobConfig,
    description: ModelDescription,
    plan: Plan,
    *,
    on_gpu: bool,
    text_tokens: int = TYPICAL_TEXT_TOKENS,
) -> ModelShape:
    """Return the sizes of a job's networks.

    Args:
        config: the job.
        description: of its model.
        plan: says whether features are needed.
        on_gpu: where the job runs; decides number formats that are "auto".
        text_tokens: real tokens of a typical text.

    Raises:
        ConfigurationError: a family, or a reward, whose costs are not counted.
    """
    if not has_counted_costs(description):
        raise ConfigurationError(
            f"model {description.name!r}: costs are counted for models of the family infinity, "
            f"this one is of the family {description.family!r}"
        )
    sizes = TransformerConfig.from_json(description.transformer)
    narrow = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and on_gpu)
    transformer = TransformerShape(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        ffn_dim=sizes.ffn_dim,
        bits_per_token=sizes.bits_per_token,
        text_length=min(text_tokens, sizes.text_max_length),
        guidance=uses_guidance(config, description),
        kv_element_bytes=2 if narrow else 4,
        num_heads=sizes.num_heads,
        text_channels=sizes.text_channels,
        text_max_length=sizes.text_max_length,
        max_scales=sizes.max_scales,
    )
    text_encoder = _text_encoder(description, sizes)
    return ModelShape(
        name=description.name,
        schedule=plan.scale_schedule,
        transformer=transformer,
        decoder=DecoderShape.from_section(description.tokenizer),
        cells_per_token=2 if description.tokenizer.get("spatial_patchify", False) else 1,
        text_encoder=text_encoder,
        text_encoder_bytes=text_encoder.weight_bytes(2 if narrow and on_gpu else 4),
        reward=_reward(config, description),
        extractor=_extractor(config, description) if Signal.FEATURES in plan.reads else NO_COST,
        reward_element_bytes=2 if config.reward.dtype == "bfloat16" else 4,
    )


def uses_guidance(config: JobConfig, description: ModelDescription) -> bool:
    """Whether each trajectory runs two sequences: the job's guidance, or the model's own."""
    given = config.sampling.guidance
    if given is None:
        return any(value != 1 for value in description.sampling.guidance)
    return any(value != 1 for value in given) if isinstance(given, tuple) else given != 1


def _text_encoder(description: ModelDescription, sizes: TransformerConfig) -> EncoderShape:
    """Return the shape in the encoder's own config.json, or the published one of the same width."""
    root, name = description.weights["text_encoder"].root, description.weights["text_encoder"].name
    if not isinstance(root, Path) and name:
        # Of a model directory in a repository, which brings its encoder: one small file, mostly cached.
        root = root.fetch([f"{name}/config.json"])
    values = _read(root / name) if isinstance(root, Path) else None
    if values is None:
        if sizes.text_channels != T5_XL.width:
            raise ConfigurationError(
                f"model {description.name!r}: no config.json of its text encoder at "
                f"{description.weights['text_encoder']}, so its costs are unknown"
            )
        return T5_XL
    return EncoderShape(
        width=int(values["d_model"]),
        depth=int(values["num_layers"]),
        ffn_dim=int(values["d_ff"]),
        tokens=sizes.text_max_length,
        gated=str(values.get("feed_forward_proj", "")).startswith("gated"),
        heads=int(values["num_heads"]),
        vocabulary=int(values["vocab_size"]),
        keeps_float32_outputs=True,
    )


def _reward(config: JobConfig, description: ModelDescription) -> NetworkCost:
    section = config.reward
    if section.members is not None:
        members = section.members.items()
        return sum((_one_reward(name, path, description) for name, path in members), NO_COST)
    name = description.reward_name if section.name == "auto" else section.name
    return NO_COST if name is None else _one_reward(name, section.path, description)


def _one_reward(name: str, given: str | None, description: ModelDescription) -> NetworkCost:
    if is_own(name):
        # Nobody knows it; what such a network costs is left out of the plan.
        return NO_COST
    path = description.reward_path if given is None else Path(given).expanduser()
    own = _read(path)
    if own is not None and own.get("kind") == "blip-reward":
        return blip_cost(own["vision"], own["text"], int(own["max_text_tokens"]))
    return _published(REWARDS[name].weights if name in REWARDS else None, name, "reward.name")


def _extractor(config: JobConfig, description: ModelDescription) -> NetworkCost:
    given = config.features.extractor
    name = description.extractor if given == "auto" else given
    if name is not None and is_own(name):
        return NO_COST
    backbone = config.features.backbone
    own = _read(description.backbone_path if backbone is None else Path(backbone).expanduser())
    if own is not None and own.get("kind") == "blip-reward":
        return blip_tower_cost(own["vision"])
    if name is None:
        return NO_COST
    return _published(EXTRACTORS[name].weights if name in EXTRACTORS else None, name, "features.extractor")


def _published(weights: PublishedWeights | None, name: str, setting: str) -> NetworkCost:
    if weights is None or weights.cost is None:
        entries = {**REWARDS} if setting == "reward.name" else {**EXTRACTORS}
        known = [key for key, entry in entries.items() if entry.weights.cost is not None]
        raise ConfigurationError(
            f"{setting}: costs are known for {', '.join(known)}, or from a directory's config.json; "
            f"got {name!r}"
        )
    return weights.cost


def _read(folder: Path | None) -> dict[str, Any] | None:
    """Return a folder's config.json, None where there is none."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else None
