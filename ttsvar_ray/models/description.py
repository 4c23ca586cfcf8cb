"""Which model a job wants, and what is known of it without its weights: config.json, or a published name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsvar_ray.errors import CheckpointError, ConfigurationError, reading_weights
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.models.weight_source import WeightSource
from ttsvar_ray.types import ScaleSchedule

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
REQUIRED_KEYS = frozenset(
    {"format_version", "family", "name", "transformer", "tokenizer", "scale_schedule", "sampling"}
)
OPTIONAL_KEYS = frozenset({"text", "plan", "reward", "features", "sizes", "files"})
PUBLISHED_SIZES = "published"
"""Value of `sizes`: the published resolutions and aspect ratios can be chosen from."""

WEIGHT_FILES = {"transformer": "transformer.safetensors", "tokenizer": "tokenizer.safetensors"}
"""Names in a model directory, unless `files` says otherwise."""

TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """A model, where its weights are, and how it draws.

    Attributes:
        name: "shapes" (built in), a model directory, `hf:owner/name` of one, or a published model's name.
        path: of a published model, the folder that holds its files under their published names, or
            `hf:owner/name`; None is the repository they were published in.
        text_encoder: folder or `hf:owner/name` of another text encoder than the model's own.
        resolution: image size by its published name, such as "1M"; None is the model's own.
        aspect_ratio: width:height, such as "16:9"; None is the model's own.
        positive_prompt: whether prompts about people get the published addition.
    """

    name: str
    path: str | None = None
    text_encoder: str | None = None
    resolution: str | None = None
    aspect_ratio: str | None = None
    positive_prompt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One model.

    Attributes:
        source: where this was read, for messages.
        name: written to the output rows.
        family: which builder reads the rest.
        image_height, image_width: pixels of a fully decoded image.
        sampling: the model's own sampling settings.
        plan: the model's own search settings, with the names of the job's `strategy` section; may be empty.
        reward_name, reward_path: the model's own reward, if it has one.
        extractor, backbone_path: the model's own features, if it has some.
        transformer, tokenizer: the family's sections, as written.
        weights: where the weights are, by part: "transformer", "tokenizer", and what else a family reads
            ("text_encoder", "classes").
        has_published_sizes: whether the published resolutions and aspect ratios can be chosen from.
        positive_prompt: whether prompts about people get the published addition.
    """

    source: str
    name: str
    family: str
    scale_schedule: ScaleSchedule
    bits_per_token: int
    image_height: int
    image_width: int
    sampling: SamplingSettings
    plan: Mapping[str, Any]
    reward_name: str | None
    reward_path: Path | None
    extractor: str | None
    backbone_path: Path | None
    transformer: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    weights: Mapping[str, WeightSource]
    has_published_sizes: bool = False
    positive_prompt: bool = False

    @property
    def num_scales(self) -> int:
        return len(self.scale_schedule)

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """Read `path`/config.json.

        Raises:
            CheckpointError: no such file, not JSON, keys missing or unknown, or another format version.
        """
        file = path / CONFIG_NAME
        if not file.is_file():
            raise CheckpointError(f"{path}: not a model directory, {CONFIG_NAME} is missing")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: expected an object, found {type(values).__name__}")
        problems = [f"missing key {key!r}" for key in sorted(REQUIRED_KEYS - values.keys())]
        problems += [f"unknown key {key!r}" for key in sorted(values.keys() - REQUIRED_KEYS - OPTIONAL_KEYS)]
        if values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            problems.append(f"format_version: expected {FORMAT_VERSION}, got {values['format_version']}")
        if problems:
            raise CheckpointError(f"{file}: " + "; ".join(problems))
        with reading_weights(file, kind="the description of a model"):
            return _description(path, file, values)


def _description(path: Path, file: Path, values: Mapping[str, Any]) -> ModelDescription:
    schedule = tuple((int(height), int(width)) for height, width in values["scale_schedule"])
    tokenizer, reward, features = values["tokenizer"], values.get("reward", {}), values.get("features", {})
    pixels = pixels_per_token(tokenizer)
    sampling = values["sampling"]
    files = {**WEIGHT_FILES, **values.get("files", {})}
    if "classes" not in files:
        files["text_encoder"] = values.get("text", {}).get("path", TEXT_ENCODER)
    for name in (*files.values(), reward.get("path"), features.get("backbone")):
        if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise CheckpointError(f"{file}: {name}: expected a path inside the model directory")
    return ModelDescription(
        source=str(file),
        name=str(values["name"]),
        family=str(values["family"]),
        scale_schedule=schedule,
        bits_per_token=int(values["transformer"]["bits_per_token"]),
        image_height=schedule[-1][0] * pixels,
        image_width=schedule[-1][1] * pixels,
        sampling=SamplingSettings(
            guidance=per_scale("guidance", sampling["guidance"], len(schedule)),
            temperature=per_scale("temperature", sampling["temperature"], len(schedule)),
            top_p=float(sampling["top_p"]),
            top_k=sampling.get("top_k"),
        ),
        plan=values.get("plan", {}),
        reward_name=reward.get("name"),
        reward_path=_inside(path, reward.get("path")),
        extractor=features.get("extractor"),
        backbone_path=_inside(path, features.get("backbone")),
        transformer=values["transformer"],
        tokenizer=tokenizer,
        weights={part: WeightSource(path, name) for part, name in files.items()},
        has_published_sizes=values.get("sizes") == PUBLISHED_SIZES,
    )


def pixels_per_token(tokenizer: Mapping[str, Any]) -> int:
    """Return the side of one token in pixels, of a tokenizer section."""
    if "patch_size" in tokenizer:
        return int(tokenizer["patch_size"])
    cells = 2 if tokenizer.get("spatial_patchify", False) else 1
    halvings = len(tokenizer["encoder_multipliers"]) - 1
    return int(cells * tokenizer.get("pixel_shuffle", 1) * 2**halvings)


def _inside(path: Path, relative: str | None) -> Path | None:
    return None if relative is None else path / relative


def section_values(
    config: type, values: Mapping[str, Any], *, section: str, beside: Collection[str] = ()
) -> dict[str, Any]:
    """Return the keywords for a family's config dataclass that a section of config.json holds.

    Args:
        config: whose fields the keys are; lists become tuples.
        values: of the section.
        section: its name, for messages.
        beside: further keys that may be there, for other readers.

    Raises:
        ConfigurationError: keys that are unknown or absent, all at once.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    problems = [f"{section}.{key}: unknown key; remove it" for key in values if key not in {*fields, *beside}]
    problems += [
        f"{section}.{name}: missing; add it"
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if problems:
        raise ConfigurationError(problems)
    own = {key: value for key, value in values.items() if key in fields}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
