"""From a job's settings to what its networks cost; reads JSON files, never weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.costs import vision_language
from ttsvar_ray.costs.encoder import NO_ENCODER, T5_XL, EncoderShape, blip_cost, blip_tower_cost
from ttsvar_ray.costs.model import JobNetworks, ModelCost, ScaleCost, recorded_costs
from ttsvar_ray.errors import ConfigurationError, nearest
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.protocol import PACKED_BYTES, RECORDED_TOKENS
from ttsvar_ray.models.registry import family_entry
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.own_code import VISION_LANGUAGE, is_own
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.vision.published import (
    FLOAT32_BYTES,
    MAP_PATCHES_FILE,
    NO_COST,
    NetworkCost,
    PublishedWeights,
    map_patches_cost,
    map_patches_sizes,
)

if TYPE_CHECKING:
    from ttsvar_ray.models.cached_model import CachedModel

TYPICAL_TEXT_TOKENS = 32

_counted: dict[str, ModelCost] = {}
"""By the digest of all that decides them."""


def has_counted_costs(description: ModelDescription) -> bool:
    """Whether the costs of a model's family can be counted."""
    return family_entry(description.family).on_meta is not None


def job_networks(
    config: JobConfig,
    description: ModelDescription,
    plan: Plan,
    *,
    on_gpu: bool,
    text_tokens: int = TYPICAL_TEXT_TOKENS,
) -> JobNetworks:
    """Return what a job's networks cost.

    Args:
        plan: says whether features are needed.
        on_gpu: where the job runs; decides number formats that are "auto".
        text_tokens: real tokens of a typical text.

    Raises:
        ConfigurationError: a family that cannot be counted, or a reward whose costs are not known.
    """
    narrow = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and on_gpu)
    model = _count(config, description, "bfloat16" if narrow else "float32")
    encoder = _text_encoder(description)
    return JobNetworks(
        model=model,
        text_tokens=min(text_tokens, model.text_tokens),
        text_encoder=encoder,
        text_encoder_bytes=encoder.weight_bytes(2 if narrow and on_gpu else FLOAT32_BYTES),
        reward=_reward(config, description),
        extractor=_extractor(config, description) if Signal.FEATURES in plan.reads else NO_COST,
        reward_precision=config.reward.dtype,
        extractor_precision=config.features.dtype,
        recorded_bytes=recorded_bytes(config, description, plan, model) if on_gpu else 0,
        map_reward=_map_reward(config, description) if plan.reads_maps else NO_COST,
        ahead=_unguided(config, description, model.element_bytes) if plan.looks_ahead else (),
    )


def _unguided(config: JobConfig, description: ModelDescription, element_bytes: int) -> tuple[ScaleCost, ...]:
    """Return what the scales of a model cost without guidance."""
    sampling = config.sampling.model_copy(update={"guidance": 1.0})
    plain = config.model_copy(update={"sampling": sampling})
    return _count(plain, description, "bfloat16" if element_bytes == 2 else "float32").scales


def _map_reward(config: JobConfig, description: ModelDescription) -> NetworkCost:
    """Return what it takes to read the reward off a feature map, the reward's own towers included.

    Their weights are the reward's, which are counted with it; of a class of one's own nothing is known.
    """
    folder = description.reward_path if config.reward.path is None else Path(config.reward.path).expanduser()
    sizes = None if folder is None else map_patches_sizes(folder / MAP_PATCHES_FILE)
    if is_own(config.reward.on_map) or sizes is None:
        return NO_COST
    stem, reward = map_patches_cost(**sizes), _reward(config, description)
    return dataclasses.replace(stem + reward, parameters=stem.parameters)


def in_worker(networks: JobNetworks, config: JobConfig) -> JobNetworks:
    """Return the networks that a worker's memory holds: without a reward that lives in verifiers."""
    return dataclasses.replace(networks, reward=NO_COST) if config.verifiers.replicas else networks


def recorded_bytes(config: JobConfig, description: ModelDescription, plan: Plan, model: ModelCost) -> int:
    """Return what recorded passes keep (`models.recorded_steps`): the largest cache that one of them grows,
    and the texts of a pass where all are padded to the longest."""
    most = rows_of(config, plan)
    packed = [rows * model.text.held_bytes for rows in most if config.engine.deterministic]
    texts = max((each for each in packed if each <= PACKED_BYTES), default=0)
    if config.engine.cuda_graphs == "never":
        return texts
    sampling, caches = _sampling(config, description), [0]
    for segment, rows in zip(plan.segments, most, strict=True):
        for scale in range(segment.first_scale, segment.last_scale + 1):
            cost = model.scales[min(scale, len(model.scales) - 2)]
            tokens = sampling.streams_at(scale) * model.scales[scale].tokens
            fitting = min(rows, RECORDED_TOKENS // tokens)
            caches.append(fitting * cost.kv_bytes)
    return max(caches) + texts


def _sampling(config: JobConfig, description: ModelDescription) -> SamplingSettings:
    """Return how bits are drawn, with the guidance of the job."""
    if config.sampling.guidance is None:
        return description.sampling
    guidance = per_scale("guidance", config.sampling.guidance, description.num_scales)
    return dataclasses.replace(description.sampling, guidance=guidance)


def _count(config: JobConfig, description: ModelDescription, dtype: str) -> ModelCost:
    if family_entry(description.family).on_meta is None:
        raise ConfigurationError(
            f"model {description.name!r}: the family {description.family!r} has no `on_meta`, from which "
            "costs are counted"
        )
    description = dataclasses.replace(description, sampling=_sampling(config, description))
    digest = cost_digest(description, dtype)
    if digest in recorded_costs():
        return recorded_costs()[digest]
    if digest not in _counted:
        _counted[digest] = count_costs(description, dtype)
    return _counted[digest]


def cost_digest(description: ModelDescription, dtype: str) -> str:
    """Return a digest of all that decides what a model costs: its sizes, how it draws, its number format."""
    sizes = (description.scale_schedule, description.transformer, description.tokenizer)
    decisive = (description.family, *sizes, description.sampling, dtype)
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]


def count_costs(description: ModelDescription, dtype: str) -> ModelCost:
    """Return what a model of a family with `on_meta` costs; takes seconds.

    Args:
        dtype: of its blocks, by torch's name.
    """
    # torch, which not every plan needs.
    import torch

    from ttsvar_ray.costs.count import count_model

    on_meta = family_entry(description.family).on_meta
    assert on_meta is not None, "the caller has asked"

    def make(depth: int) -> CachedModel:
        own = dataclasses.replace(description, transformer={**description.transformer, "depth": depth})
        made: CachedModel = on_meta(own, dtype=getattr(torch, dtype), sampling=description.sampling)
        return made

    return count_model(make, int(description.transformer["depth"]))


def _text_encoder(description: ModelDescription) -> EncoderShape:
    """Return the shape in the encoder's own config.json, or the published one of the same width."""
    source, sizes = description.weights.get("text_encoder"), description.transformer
    if source is None:
        return NO_ENCODER
    root, name = source.root, source.name
    if not isinstance(root, Path) and name:
        # Of a model directory in a repository, which brings its encoder: one small file, mostly cached.
        root = root.fetch([f"{name}/config.json"])
    values = _read(root / name) if isinstance(root, Path) else None
    if values is None:
        if sizes["text_channels"] != T5_XL.width:
            raise ConfigurationError(
                f"model {description.name!r}: no config.json of its text encoder at {source}, so its costs "
                "are unknown"
            )
        return T5_XL
    return EncoderShape(
        width=int(values["d_model"]),
        depth=int(values["num_layers"]),
        ffn_dim=int(values["d_ff"]),
        tokens=int(sizes["text_max_length"]),
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
    own_code = is_own(name)
    its_own = description.reward_path if name == description.reward_name else None
    folder = its_own if given is None else Path(given).expanduser()
    sizes = _read(folder)
    shape = vision_language.PUBLISHED.get(name)
    is_known = sizes is not None and sizes.get("model_type") in vision_language.FAMILIES
    # With a head, a backbone has the sizes of its publication alone.
    reads_sizes = name == VISION_LANGUAGE or (shape is not None and not shape.instruction)
    if sizes is not None and is_known and reads_sizes:
        pixels = _read(folder, "preprocessor_config.json") or {}
        shape = vision_language.VisionLanguageShape.of(sizes, pixels)
    if shape is not None:
        return shape.cost(description.image_height, description.image_width)
    if own_code:
        # Nobody knows it; the plan's note says that it is left out.
        return NO_COST
    if sizes is not None and sizes.get("kind") == "blip-reward":
        return blip_cost(sizes["vision"], sizes["text"], int(sizes["max_text_tokens"]))
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
        priced = vision_language.PUBLISHED if setting == "reward.name" else {}
        known = [key for key, entry in entries.items() if entry.weights.cost is not None or key in priced]
        raise ConfigurationError(
            f"{setting}: costs are known for {', '.join(known)}, or from a directory's config.json; "
            f"got {name!r}{nearest(name, known)}"
        )
    return weights.cost


def _read(folder: Path | None, name: str = "config.json") -> dict[str, Any] | None:
    """Return a folder's config.json, None where there is none."""
    if folder is None or not (folder / name).is_file():
        return None
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else None
