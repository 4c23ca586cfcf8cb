"""Write docs/configuration.md from the settings themselves: `python docs/write_configuration.py`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from ttsvar_ray.config.job import JobConfig

HEAD = """# Configuration
A job is a YAML file (`jobs/`) and options; every setting can also be given as `--set section.name=value`.
Unknown names, wrong values and settings that the plan would not read are refused, all at once, before
anything starts.
`none` means: what the model or the strategy's preset says.

| setting | default | meaning |
| --- | --- | --- |
"""


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        label = prefix + (field.alias or name)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += _rows(annotation, f"{label}.")
            continue
        meaning = [(field.description or "").replace("|", "/"), _choices(annotation)]
        rows.append(
            f"| `{label}` | {_shown(field.default)} | {'; '.join(part for part in meaning if part)} |"
        )
    return rows


def _shown(default: Any) -> str:
    value = getattr(default, "value", default)
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(annotation: Any) -> str:
    """Return the words that a closed choice may be."""
    options = get_args(annotation) if get_origin(annotation) is not Literal else (annotation,)
    words: list[str] = []
    for option in options or (annotation,):
        if get_origin(option) is Literal:
            words += [str(word) for word in get_args(option)]
        elif isinstance(option, type) and issubclass(option, enum.Enum):
            words += [str(member.value) for member in option]
    return "one of " + ", ".join(words) if len(words) > 1 else ""


def page() -> str:
    """Return the whole page."""
    return HEAD + "\n".join(_rows(JobConfig, "")) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
