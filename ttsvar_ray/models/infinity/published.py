"""A published Infinity by name: its description, without any file; and any model at another image size."""

from __future__ import annotations

import dataclasses

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.description import ModelChoice, ModelDescription, pixels_per_token
from ttsvar_ray.models.infinity.config import FAMILY
from ttsvar_ray.models.infinity.presets import (
    HUB_REPOSITORY,
    PRESETS,
    TEXT_ENCODER_FOLDER,
    TEXT_ENCODER_REPOSITORY,
    TOP_P,
    InfinityPreset,
)
from ttsvar_ray.models.infinity.quantizer import tokenizer_section
from ttsvar_ray.models.infinity.resolutions import (
    FULL_SCHEDULES,
    SCALES_OF_SIZE,
    height_over_width,
    published_resolution,
)
from ttsvar_ray.models.registry import FamilyEntry, imported_when_called
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.models.weight_source import (
    TEXT_ENCODER_FILES,
    HubRepository,
    Root,
    WeightSource,
    parse_root,
    text_encoder_source,
)
from ttsvar_ray.types import ScaleSchedule


def describe_preset(
    preset: InfinityPreset, *, path: str | None = None, text_encoder: str | None = None
) -> ModelDescription:
    """Describe a published model, at the size it was trained for last; reads no weights.

    Args:
        path: folder of its files under their published names, or `hf:owner/name[@revision]`; None is the
            repository they were published in.
        text_encoder: folder or repository of the text encoder; None is `flan-t5-xl` in `path`, where that
            is a folder that has it, and else the published repository.
    """
    resolution = published_resolution(preset.size)
    height, width = resolution.image_size
    scales = len(resolution.schedule)
    root = HubRepository(HUB_REPOSITORY) if path is None else parse_root(path)
    names = {
        "transformer": preset.weights or f"{preset.published_name}.pth",
        "tokenizer": preset.tokenizer.file,
    }
    return ModelDescription(
        source=preset.name,
        name=preset.name,
        family=FAMILY,
        scale_schedule=resolution.schedule,
        bits_per_token=preset.bits_per_token,
        image_height=height,
        image_width=width,
        sampling=SamplingSettings(
            guidance=per_scale("guidance", preset.guidance, scales),
            temperature=per_scale("temperature", preset.temperature, scales),
            top_p=TOP_P,
        ),
        plan={},
        reward_name=preset.reward,
        reward_path=None,
        extractor=preset.extractor,
        backbone_path=None,
        transformer=preset.transformer_config(resolution).to_json(),
        tokenizer=tokenizer_section(preset.tokenizer.config(), preset.quantizer(resolution)),
        weights={
            **{part: WeightSource(root, name) for part, name in names.items()},
            "text_encoder": _locate_text_encoder(root, text_encoder),
        },
        has_published_sizes=True,
    )


def require_weights(choice: ModelChoice) -> None:
    """See that there are weights to load.

    Raises:
        ConfigurationError: a model whose weights were never released, and no path to others.
    """
    preset = PRESETS[choice.name]
    if preset.weights is None and choice.path is None:
        raise ConfigurationError(
            f"model.path: no weights of {preset.name!r} were released; give the folder of your own, with "
            f"{preset.published_name}.pth and {preset.tokenizer.file} in it"
        )


def _locate_text_encoder(root: Root, text_encoder: str | None) -> WeightSource:
    """Return where the text encoder of a published model is; see `describe_preset`."""
    if text_encoder is not None:
        return text_encoder_source(text_encoder)
    if not isinstance(root, HubRepository) and (root / TEXT_ENCODER_FOLDER).is_dir():
        return WeightSource(root, TEXT_ENCODER_FOLDER)
    return WeightSource(HubRepository(TEXT_ENCODER_REPOSITORY), patterns=TEXT_ENCODER_FILES)


def _at_size(
    description: ModelDescription, resolution: str | None, aspect_ratio: str | None
) -> ModelDescription:
    """Return a model with another image size: another schedule, and positions stretched to its grid.

    Args:
        description: of a model with the published sizes.
        resolution: a key of `SCALES_OF_SIZE`; None keeps the model's.
        aspect_ratio: width:height, to the nearest template; None keeps the model's.

    Raises:
        ConfigurationError: a size that is none.
    """
    size, ratio = _size_of(description.scale_schedule)
    chosen = published_resolution(
        size if resolution is None else resolution,
        ratio if aspect_ratio is None else height_over_width(aspect_ratio),
    )
    side, (height, width) = pixels_per_token(description.tokenizer), chosen.schedule[-1]
    sampling = description.sampling
    return dataclasses.replace(
        description,
        scale_schedule=chosen.schedule,
        image_height=height * side,
        image_width=width * side,
        sampling=dataclasses.replace(
            sampling,
            guidance=_refit("guidance", sampling.guidance, len(chosen.schedule)),
            temperature=_refit("temperature", sampling.temperature, len(chosen.schedule)),
        ),
        transformer={**description.transformer, "rope_grid": list(chosen.rope_grid)},
    )


def _size_of(schedule: ScaleSchedule) -> tuple[str, float]:
    for size, scales in SCALES_OF_SIZE.items():
        for ratio, full in FULL_SCHEDULES.items():
            if full[:scales] == schedule:
                return size, ratio
    raise ConfigurationError(
        'sizes: "published" in config.json, but its scale_schedule is none of the published ones'
    )


def _refit(name: str, values: tuple[float, ...], scales: int) -> tuple[float, ...]:
    # Sizes are prefixes of one schedule: a scale keeps its value.
    if len(values) >= scales:
        return values[:scales]
    if len(set(values)) == 1:
        return values[:1] * scales
    raise ConfigurationError(
        f"sampling.{name}: the model's own has {len(values)} different values and this size has {scales} "
        f"scales; set sampling.{name}"
    )


ENTRY = FamilyEntry(
    load=imported_when_called("ttsvar_ray.models.infinity.directory:load_infinity"),
    on_meta=imported_when_called("ttsvar_ray.models.infinity.directory:infinity_on_meta"),
    published=PRESETS,
    describe=lambda choice: describe_preset(
        PRESETS[choice.name], path=choice.path, text_encoder=choice.text_encoder
    ),
    require_weights=require_weights,
    at_size=_at_size,
    licence="mit",
)
