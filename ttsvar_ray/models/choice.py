"""Which model a job wants: the values of its `model` section, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass


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
