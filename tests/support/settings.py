"""All settings of a job by their dotted names."""

from __future__ import annotations

from ttsvar_ray.config.explain import key_names, section_of
from ttsvar_ray.config.job import JobConfig


def option_names() -> list[str]:
    """Return every setting under its dotted name, in order: the whole configuration surface."""
    return [
        f"{name}.{key}" if section is not None else name
        for name, field in JobConfig.model_fields.items()
        for section in [section_of(field.annotation)]
        for key in (key_names(section) if section is not None else [""])
    ]
