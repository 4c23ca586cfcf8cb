"""Where things are in an output folder.

OUTPUT/run.json                     what this output is: settings, prompts, versions
OUTPUT/data/part-00000.parquet      images; its presence says that chunk 0 is done
OUTPUT/trace/part-00000.parquet     the searches behind them
OUTPUT/failed/part-00000.jsonl      prompts of chunk 0 that were given up
OUTPUT/failed/bad_lines.jsonl       lines of the prompt file that hold no prompt
OUTPUT/README.md                    data set card: which files `datasets` opens
OUTPUT/.lock                        who is writing now
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PART_NAME = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """The paths below one output folder."""

    root: Path

    @property
    def run_file(self) -> Path:
        """Where the manifest is."""
        return self.root / "run.json"

    @property
    def card_file(self) -> Path:
        """Where the data set card is."""
        return self.root / "README.md"

    @property
    def lock_file(self) -> Path:
        """Where the lock is while a run writes."""
        return self.root / ".lock"

    @property
    def data_folder(self) -> Path:
        """Where the parts with images are."""
        return self.root / "data"

    @property
    def trace_folder(self) -> Path:
        """Where the parts with search traces are."""
        return self.root / "trace"

    @property
    def failed_folder(self) -> Path:
        """Where the dead letters are."""
        return self.root / "failed"

    @property
    def bad_lines_file(self) -> Path:
        """Where the bad lines of the prompt file are."""
        return self.failed_folder / "bad_lines.jsonl"

    def data_part(self, chunk_index: int) -> Path:
        """Return the part of one chunk."""
        return self.data_folder / f"part-{chunk_index:05d}.parquet"

    def trace_part(self, chunk_index: int) -> Path:
        """Return the trace of one chunk."""
        return self.trace_folder / f"part-{chunk_index:05d}.parquet"

    def failed_part(self, chunk_index: int) -> Path:
        """Return the dead letters of one chunk."""
        return self.failed_folder / f"part-{chunk_index:05d}.jsonl"

    def data_parts(self) -> dict[int, Path]:
        """Return the parts on disk by chunk index, ascending."""
        found = {
            int(match.group(1)): path
            for path in self.data_folder.glob("part-*.parquet")
            if (match := _PART_NAME.fullmatch(path.name))
        }
        return dict(sorted(found.items()))

    def failed_parts(self) -> list[Path]:
        """Return the dead-letter files of chunks on disk, ascending."""
        return sorted(self.failed_folder.glob("part-*.jsonl"))
