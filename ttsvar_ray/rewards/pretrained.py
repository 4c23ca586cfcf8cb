"""Directories that transformers saved, read from disk alone and strictly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ttsvar_ray.errors import CheckpointError


def load_pretrained(model_class: type[PreTrainedModel], folder: Path, *, ignored: str = "") -> Any:
    """Load a model in float32 on the CPU; never from a hub, and no code in the weights is run.

    Args:
        model_class: which network.
        folder: holds config.json and the weights.
        ignored: regular expression of keys in the weights that this network leaves out on purpose.

    Raises:
        CheckpointError: not such a directory, or weights that do not fit its configuration.
    """
    if not (folder / "config.json").is_file():
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: expected config.json and weights as transformers saves them; found {found}"
        )
    try:
        model, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            # Reported below, with everything else that is wrong.
            ignore_mismatched_sizes=True,
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    # Position ids were saved as buffers once; they are no weights.
    known = rf"(.*\.)?position_ids|{ignored}"
    problems = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(key for key in report["unexpected_keys"] if not re.fullmatch(known, key)),
        "misshapen": sorted(str(key) for key in report["mismatched_keys"]),
    }
    if any(problems.values()):
        shown = "; ".join(f"{kind} {keys[:8]}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {shown}")
    return model
