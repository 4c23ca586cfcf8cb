"""The part of the environment that says how to reach an object store."""

from __future__ import annotations

import os

_PREFIXES = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_")


def storage_environment() -> dict[str, str]:
    """Return the variables that hold endpoints and credentials of object stores.

    A process on a cluster inherits the environment of the node, not of the job: what the job was given
    must be handed on. The values are secrets: never log them.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
