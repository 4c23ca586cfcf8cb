"""The command line. Commands import what is heavy inside their bodies: `--help` is quick."""

from __future__ import annotations

from ttsvar_ray.cli.app import main

__all__ = ["main"]
