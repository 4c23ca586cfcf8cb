"""A workload as a JSON file: what a measurement leaves, and what a simulation or a job is planned with.

    {
      "format_version": 1,
      "kind": "ttsvar-ray-workload",
      "source": "measured on 2 CPU cores, built-in model, TTS-VAR N=1",
      "segments": [
        {"tokens": 64, "held_bytes": 0, "running_bytes": 0,
         "batch_seconds": 0.012, "row_seconds": 0.003, "replay_seconds": 0.0},
        ...one object per segment of the plan, in order...
      ]
    }

`held_bytes`, `running_bytes`, `replay_seconds` and `pass_rows` may be left out (0). Meanings: `SegmentLoad`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.errors import ConfigurationError

FORMAT_VERSION = 1
KIND = "ttsvar-ray-workload"

_FIELDS = {field.name: field for field in dataclasses.fields(SegmentLoad)}
_WHOLE_NUMBERS = ("tokens", "held_bytes", "running_bytes", "pass_rows")
_KEYS = ("format_version", "kind", "source", "segments")


def write_workload(path: Path, workload: Workload) -> None:
    """Write a workload; `read_workload` returns an equal one."""
    content = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "source": workload.source,
        "segments": [dataclasses.asdict(segment) for segment in workload.segments],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_workload(path: Path) -> Workload:
    """Read a workload.

    Raises:
        ConfigurationError: no such file, not this format, or entries that mean nothing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give a workload file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    if not is_workload(content):
        raise ConfigurationError(f"{path}: expected an object with kind {KIND!r}; is this a workload file?")
    if content.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"{path}: format_version: expected {FORMAT_VERSION}, got {content.get('format_version')!r}; "
            "it was written by another version of this package"
        )
    problems = [f"{path}: unknown key {key!r}; remove it" for key in content if key not in _KEYS]
    segments = content.get("segments")
    if not isinstance(segments, list) or not segments:
        raise ConfigurationError([*problems, f"{path}: segments: expected one object per segment"])
    for index, values in enumerate(segments):
        problems += [f"{path}: segments[{index}]{problem}" for problem in _problems(values)]
    if problems:
        raise ConfigurationError(problems)
    return Workload(
        segments=tuple(SegmentLoad(**values) for values in segments),
        source=str(content.get("source", path.name)),
    )


def is_workload(content: Any) -> bool:
    """Whether parsed JSON says that it is a workload."""
    return isinstance(content, Mapping) and content.get("kind") == KIND


def _problems(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f": expected an object, got {type(values).__name__}"]
    problems = [
        f".{name}: unknown key; known are {', '.join(_FIELDS)}" for name in values if name not in _FIELDS
    ]
    for name, field in _FIELDS.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                problems.append(f".{name}: missing")
            continue
        value = values[name]
        allowed = (int,) if name in _WHOLE_NUMBERS else (int, float)
        # JSON has no infinity, but Python's reader accepts one.
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value < float("inf"):
            kind = "whole number" if name in _WHOLE_NUMBERS else "number"
            problems.append(f".{name}: expected a {kind} of at least 0, got {value!r}")
    return problems
