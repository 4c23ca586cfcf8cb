"""A new output folder beside one that holds something else."""

from __future__ import annotations

import logging

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, check_output
from ttsvar_ray.errors import OutputError

logger = logging.getLogger(__name__)

_MOST_NEIGHBOURS = 999


def fresh_output(layout: OutputLayout, manifest: RunManifest) -> OutputLayout:
    """Return the first of OUTPUT, OUTPUT-2, OUTPUT-3, ... that this run may write to; nothing is deleted.

    That is a folder that is new or empty, or holds this very run, which it then continues: so the same
    command goes on after an interruption.

    Raises:
        OutputError: there is none in reach.
    """
    for number in range(1, _MOST_NEIGHBOURS + 1):
        candidate = layout if number == 1 else OutputLayout(layout.root.neighbour(f"-{number}"))
        if _is_free(candidate, manifest):
            if number > 1:
                logger.warning(
                    "output %s holds something else; this run writes to %s", layout.root, candidate.root
                )
            return candidate
    raise OutputError(
        f"{layout.root}: expected a free folder among it and {_MOST_NEIGHBOURS - 1} numbered ones beside it, "
        "found none; choose another --output folder"
    )


def _is_free(layout: OutputLayout, manifest: RunManifest) -> bool:
    try:
        check_output(layout, manifest)
    except OutputError:
        return False
    return True
