"""What the registry knows of a model family: one value, in the family's own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttsvar_ray.models.cached_model import CachedModel
    from ttsvar_ray.models.description import ModelChoice, ModelDescription
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
    """

    load: Callable[..., NextScaleModel]
    published: Mapping[str, Any]
    describe: Callable[[ModelChoice], ModelDescription]
    require_weights: Callable[[ModelChoice], None] = lambda choice: None
    on_meta: Callable[..., CachedModel] | None = None
    at_size: Callable[[ModelDescription, str | None, str | None], ModelDescription] | None = None
    reads_texts: bool = True
