"""What the workers of a benchmark write down: when each micro-batch began and ended."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DiaryWriter:
    """Appends micro-batches to a file of this process, in whole lines."""

    def __init__(self, folder: Path) -> None:
        """Begin a diary in a folder that all workers share."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8", buffering=1)

    def write(self, **batch: Any) -> None:
        """Note one micro-batch: at least `segment`, `rows`, `replayed`, `began` and `ended`."""
        self._file.write(json.dumps(batch) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diary:
    """What one worker wrote down: its micro-batches in order."""

    batches: list[dict[str, Any]]

    @property
    def began(self) -> float:
        """When its first micro-batch began."""
        return float(self.batches[0]["began"])

    @property
    def ended(self) -> float:
        """When its last one ended."""
        return float(self.batches[-1]["ended"])

    def asked_between(self, start: float, end: float) -> float:
        """Return the seconds of computing it was asked for in a stretch; parts of micro-batches count."""
        asked = 0.0
        for batch in self.batches:
            length = batch["ended"] - batch["began"]
            inside = min(end, batch["ended"]) - max(start, batch["began"])
            asked += max(0.0, inside) / length * batch["asked"] if length else 0.0
        return asked


def read_diaries(log: Path) -> list[Diary]:
    """Return the diaries of all workers."""
    diaries = []
    for file in sorted(log.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        diaries.append(Diary(batches=[json.loads(line) for line in lines]))
    return diaries
