"""From a model's name, directory or repository to the model."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsvar_ray.errors import CheckpointError, ConfigurationError, nearest, reading_weights
from ttsvar_ray.models.description import CONFIG_NAME, ModelChoice, ModelDescription
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.weight_source import (
    HubRepository,
    WeightSource,
    fetch_all,
    is_hub_reference,
    parse_root,
    text_encoder_source,
)
from ttsvar_ray.own_code import named_object

if TYPE_CHECKING:
    import torch

    from ttsvar_ray.models.cached_model import CachedModel
    from ttsvar_ray.models.protocol import NextScaleModel


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyEntry:
    """One family.

    Attributes:
        load: (description, device=, dtype=, sampling=) to a model.
        on_meta: (description, dtype=, sampling=) to the same model on the meta device, without weights, to
            count its costs; `description.transformer["depth"]` may be another number of blocks than the
            model's, and a text that is a number is always understood. None: nobody can count them.
        published: presets of published models, by the name that settings use; may be empty.
        describe: a choice of a published model to its description; reads no weights.
        require_weights: raises `ConfigurationError` where a published model's weights were never released.
        at_size: (description, resolution, aspect ratio) to the model at another size; None for families
            whose models have one size.
        reads_texts: whether prompts are texts, so that there is a text encoder to choose.
        licence: of the published weights.
    """

    load: Callable[..., NextScaleModel]
    published: Mapping[str, Any]
    describe: Callable[[ModelChoice], ModelDescription]
    require_weights: Callable[[ModelChoice], None] = lambda choice: None
    on_meta: Callable[..., CachedModel] | None = None
    at_size: Callable[[ModelDescription, str | None, str | None], ModelDescription] | None = None
    reads_texts: bool = True
    licence: str = "unknown"


def imported_when_called(path: str) -> Callable[..., Any]:
    """Return the function at an import path of this package, such as what needs torch."""

    def call(*values: Any, **named: Any) -> Any:
        return named_object(path)(*values, **named)

    return call


BUILT_IN = "shapes"
"""The model that ships in the package."""

FAMILIES = {
    "infinity": "ttsvar_ray.models.infinity.published",
    "var": "ttsvar_ray.models.var.config",
}
"""Family name in config.json -> the module that holds its `ENTRY`, imported when it is asked for."""


def family_entry(name: str) -> FamilyEntry:
    """Return what there is to know of a family."""
    entry: FamilyEntry = importlib.import_module(FAMILIES[name]).ENTRY
    return entry


def _published(name: str) -> FamilyEntry | None:
    """Return the family that a published model is of; None for other names."""
    return next((entry for entry in map(family_entry, FAMILIES) if name in entry.published), None)


def model_path(name_or_path: str) -> Path:
    """Return the directory of a model that is none of the published names.

    Of a repository of the hub only the files named config.json are fetched.

    Raises:
        CheckpointError: neither the built-in name nor a directory.
    """
    if name_or_path == BUILT_IN:
        return Path(str(importlib.resources.files("ttsvar_ray"))) / "shapes" / "weights"
    root = parse_root(name_or_path)
    if isinstance(root, HubRepository):
        return root.fetch([CONFIG_NAME, f"*/{CONFIG_NAME}"])
    if not root.is_dir():
        meant = nearest(name_or_path, (BUILT_IN, *published_names()))
        raise CheckpointError(
            f"model {name_or_path!r}: no such directory{meant}; "
            f"give {BUILT_IN!r} (built in), a model directory, hf:OWNER/NAME, or one of "
            f"{', '.join(published_names())}"
        )
    return root


def published_names() -> tuple[str, ...]:
    """Return the names of the published models."""
    return tuple(name for entry in map(family_entry, FAMILIES) for name in entry.published)


def weights_licence(name: str) -> str:
    """Return the licence of the weights that settings call so; "unknown" for a directory of one's own."""
    if name == BUILT_IN:
        return "apache-2.0"
    published = _published(name)
    return "unknown" if published is None else published.licence


def describe_model(model: str | ModelChoice) -> ModelDescription:
    """Say what is known of a model without its weights: its config.json, or its published sizes.

    Raises:
        CheckpointError: not a model directory, or a family this version does not know.
        ConfigurationError: an image size that the model does not have, or settings it does not read.
    """
    choice = ModelChoice(name=model) if isinstance(model, str) else model
    description = _describe(choice)
    if choice.resolution is not None or choice.aspect_ratio is not None:
        if not description.has_published_sizes:
            setting = "resolution" if choice.resolution is not None else "aspect_ratio"
            raise ConfigurationError(
                f"model.{setting}: model {description.name!r} draws {description.image_width}x"
                f"{description.image_height} pixels only; remove it"
            )
        at_size = family_entry(description.family).at_size
        assert at_size is not None, "a family whose directories say that they have published sizes"
        description = at_size(description, choice.resolution, choice.aspect_ratio)
    return dataclasses.replace(description, positive_prompt=choice.positive_prompt)


def _describe(choice: ModelChoice) -> ModelDescription:
    published = _published(choice.name)
    if published is not None:
        if not published.reads_texts:
            _refuse_text_settings(choice)
        return published.describe(choice)
    if choice.path is not None:
        raise ConfigurationError(
            f"model.path: names the files of a published model ({', '.join(published_names())}); model.name "
            f"is {choice.name!r}, which has its own: remove it, or choose the published model"
        )
    description = ModelDescription.read(model_path(choice.name))
    if description.family not in FAMILIES:
        raise CheckpointError(
            f"{description.source}: unknown model family {description.family!r}; "
            f"expected one of {', '.join(sorted(FAMILIES))}"
        )
    if "text_encoder" not in description.weights:
        _refuse_text_settings(choice)
    weights = dict(description.weights)
    if is_hub_reference(choice.name):
        root = HubRepository.parse(choice.name)
        weights = {part: WeightSource(root, source.name) for part, source in weights.items()}
    if choice.text_encoder is not None:
        weights["text_encoder"] = text_encoder_source(choice.text_encoder)
    return dataclasses.replace(description, weights=weights)


def _refuse_text_settings(choice: ModelChoice) -> None:
    given = {
        "model.text_encoder": choice.text_encoder is not None,
        "model.positive_prompt": choice.positive_prompt,
    }
    if problems := [
        f"{setting}: model {choice.name!r} takes class names, not texts; remove it"
        for setting, is_given in given.items()
        if is_given
    ]:
        raise ConfigurationError(problems)


def fetch_model(choice: ModelChoice) -> None:
    """Bring everything that a model needs to this machine, where it is in a repository of the hub.

    Raises:
        CheckpointError: with everything that is missing.
    """
    if is_hub_reference(choice.name):
        # With the reward and the features that may be in it.
        HubRepository.parse(choice.name).fetch(["*"])
    fetch_all(describe_model(choice).weights)


def pin_model(choice: ModelChoice) -> ModelChoice:
    """Return the choice with every repository of the hub at the commit it stands for now.

    Processes that load the model later, here or elsewhere, then load the same.

    Raises:
        CheckpointError: the hub cannot be asked.
    """
    if choice.name not in published_names():
        encoder = None if choice.text_encoder is None else _pinned(choice.text_encoder)
        return dataclasses.replace(choice, name=_pinned(choice.name), text_encoder=encoder)
    _require_weights(choice)
    weights = _describe(choice).weights
    root = weights["transformer"].root
    text_root = weights["text_encoder"].root if "text_encoder" in weights else None
    return dataclasses.replace(
        choice,
        path=str(root.pinned()) if isinstance(root, HubRepository) else choice.path,
        text_encoder=(
            str(text_root.pinned()) if isinstance(text_root, HubRepository) else choice.text_encoder
        ),
    )


def _require_weights(choice: ModelChoice) -> None:
    published = _published(choice.name)
    if published is not None:
        published.require_weights(choice)


def _pinned(reference: str) -> str:
    return str(HubRepository.parse(reference).pinned()) if is_hub_reference(reference) else reference


def resolve_device(device: str) -> torch.device:
    """Return the named device; "auto" is a GPU where there is one.

    Raises:
        ConfigurationError: not a device name, or a GPU that this machine does not have.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f'model.device: expected "auto", "cpu" or "cuda", got {device!r}') from error
    seen = torch.cuda.device_count() if resolved.type == "cuda" and torch.cuda.is_available() else 0
    if resolved.type == "cuda" and seen <= (resolved.index or 0):
        raise ConfigurationError(f'model.device: {device!r}: torch sees {seen} GPUs; use "auto" or "cpu"')
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the blocks; "auto" is bfloat16 on a GPU and float32 elsewhere."""
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in names:
        raise ConfigurationError(f'model.dtype: expected "auto", "float32" or "bfloat16", got {dtype!r}')
    return names[dtype]


def check_top_k(description: ModelDescription, top_k: int | None) -> None:
    """Refuse a top-k for a model that would not read it.

    Raises:
        ConfigurationError: it draws bits.
    """
    if top_k is not None and description.sampling.top_k is None:
        raise ConfigurationError(
            f"sampling.top_k: model {description.name!r} draws bits of two values each, which top-k never "
            "changes; remove it"
        )


def confidences(
    description: ModelDescription, confidence: float | Sequence[float | None] | None
) -> tuple[float | None, ...]:
    """Return the confidence of each scale; none for None.

    Raises:
        ConfigurationError: a list of another length, or a model that draws entries of a codebook.
    """
    if confidence is None:
        return ()
    scales = description.num_scales
    if description.sampling.top_k is not None:
        raise ConfigurationError(
            f"sampling.confidence: model {description.name!r} draws entries of a codebook, not single bits; "
            "remove it"
        )
    each = (confidence,) * scales if isinstance(confidence, (int, float)) else tuple(confidence)
    if len(each) != scales:
        raise ConfigurationError(
            f"sampling.confidence: expected one number or {scales} (one a scale, null for none), got "
            f"{len(each)}"
        )
    return each


def load_model(
    model: str | ModelChoice,
    *,
    device: str = "auto",
    dtype: str = "auto",
    guidance: float | Sequence[float] | None = None,
    temperature: float | Sequence[float] | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    confidence: float | Sequence[float | None] | None = None,
    execution: Execution | None = None,
) -> NextScaleModel:
    """Load a model for generation.

    Args:
        model: which; a string is the name of a `ModelChoice`.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32" or "bfloat16", of the transformer's blocks and KV cache.
        guidance, temperature: one number or one per scale; None keeps the model's own.
        top_p: in (0, 1]; None keeps the model's own.
        top_k: at least 1, for models that draw from a codebook; None keeps the model's own.
        confidence: one number or one per scale, for models that draw single bits (`SamplingSettings`).
        execution: how it computes; None is the fastest way known for the device.

    Raises:
        CheckpointError: the directory or its weights cannot be used.
        ConfigurationError: settings that do not fit the model or the machine.
    """
    from ttsvar_ray.models.sampling import SamplingSettings, per_scale

    choice = ModelChoice(name=model) if isinstance(model, str) else model
    _require_weights(choice)
    fetch_model(choice)
    description = describe_model(choice)
    own, scales = description.sampling, description.num_scales
    sampling = SamplingSettings(
        guidance=own.guidance if guidance is None else per_scale("guidance", guidance, scales),
        temperature=own.temperature if temperature is None else per_scale("temperature", temperature, scales),
        top_p=own.top_p if top_p is None else float(top_p),
        top_k=own.top_k if top_k is None else top_k,
        confidence=confidences(description, confidence),
    )
    check_top_k(description, top_k)
    target = resolve_device(device)
    load = family_entry(description.family).load
    with reading_weights(f"model {choice.path or choice.name}"):
        loaded = load(description, device=target, dtype=resolve_dtype(dtype, target), sampling=sampling)
    if hasattr(loaded, "set_execution"):
        loaded.set_execution(Execution() if execution is None else execution)
    return loaded
