"""What of a job's settings decides what is generated, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def content_digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of what changes what is generated, hexadecimal."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


NOT_CONTENT = (
    "model.device",
    # What the files hold counts, not where they are: a run records their fingerprints.
    "model.path",
    "model.text_encoder",
    "reward.path",
    "features.backbone",
    "prompts",
    # What they chose is content: the thresholds.
    "strategy.calibration",
    "strategy.budget",
    "engine.micro_batch_rows",
    "engine.cuda_graphs",
    "engine.threads",
    "engine.memory_gb",
    "cluster",
    "output.path",
    # A table beside the images, whose bytes stay.
    "output.trace",
    "max_failed",
)
"""Settings (or whole sections) that do not change what is generated; but see `content_of`."""


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def content_of(settings: Mapping[str, Any], *, counts: Sequence[str] = ()) -> dict[str, Any]:
    """Return those of flat settings that change what is generated.

    Args:
        counts: settings of `NOT_CONTENT` that do change it in this job.
    """
    return {
        key: None if _within(key, "reward.members") else value
        for key, value in settings.items()
        if key in counts or not any(_within(key, off) for off in NOT_CONTENT)
    }


def _within(key: str, area: str) -> bool:
    return key == area or key.startswith(f"{area}.")
