"""What a run is, for tests of its output folder."""

from __future__ import annotations

from typing import Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset.manifest import RunManifest


def manifest(*overrides: str, **differs: Any) -> RunManifest:
    """Return the manifest of a small run.

    Args:
        overrides: settings, as on a command line.
        differs: fields that are not as they are here; `config` may be a job's settings themselves.
    """
    config = differs.pop("config", None)
    if not isinstance(config, JobConfig):
        config = load_config(None, overrides, needs_files=False)
    count, rows = differs.get("prompt_count", 1), differs.get("rows_per_chunk", 256)
    fields = {
        "config": config.resolved(),
        "content": config.content(),
        "config_digest": config.digest(),
        "prompts_path": "p.txt",
        "prompts_digest": "d",
        "prompt_count": count,
        "bad_lines": 0,
        "rows_per_chunk": rows,
        "chunk_digests": tuple(f"d{index}" for index in range(-(-count // rows))),
        "column_types": {},
        "seed": config.seed,
    }
    return RunManifest(**(fields | differs))
