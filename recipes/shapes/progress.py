"""Checkpoints that survive a kill at any moment, and learning curves beside them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` under its final name only when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state last saved at `path`, or None where there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Curve:
    """A learning curve: one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._started = time.monotonic()

    def add(self, **values: float | int | str | list[float]) -> None:
        """Append one point, with the seconds of this session."""
        point = {
            **values,
            "session_seconds": round(time.monotonic() - self._started, 1),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(point) + "\n")


class Session:
    """The time budget of one session, and when to save."""

    def __init__(self, budget_seconds: float | None, save_every_seconds: float) -> None:
        self._end = None if budget_seconds is None else time.monotonic() + budget_seconds
        self._save_every = save_every_seconds
        self._saved = time.monotonic()

    def is_over(self) -> bool:
        """Whether the budget of this session is used up."""
        return self._end is not None and time.monotonic() > self._end

    def save_is_due(self) -> bool:
        """Return True about every `save_every_seconds`."""
        if time.monotonic() - self._saved < self._save_every:
            return False
        self._saved = time.monotonic()
        return True
