"""Where things are in an output folder, which may be in an object store.

OUTPUT/run.json                     what this output is: settings, prompts, versions
OUTPUT/sessions.jsonl               software and devices of each session
OUTPUT/data/part-00000.parquet      images; its presence says that chunk 0 is done
OUTPUT/trace/part-00000.parquet     the searches behind them
OUTPUT/manifest/part-00000.json     sizes and digests of these two files
OUTPUT/failed/part-00000.jsonl      prompts of chunk 0 that were given up
OUTPUT/failed/bad_lines.jsonl       lines of the prompt file that hold no prompt
OUTPUT/partial/part-00000.parquet   what is finished of a part that a stopped run left unfinished
OUTPUT/README.md                    data set card: which files `datasets` opens
OUTPUT/run.log                      what every session logged
OUTPUT/progress.jsonl               where it stood, a line every ten seconds
OUTPUT/.lock                        who is writing now
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ttsvar_ray.storage.location import Location, locate

_PART_NAME = re.compile(r"part-(\d{5}|[1-9]\d{5,})(\.\w+)")
_NAMES_SHOWN = 5
_SHARD_NAME = re.compile(r"shard-(\d+)-of-\d+")


class OutputLayout:
    """The places below one output folder, by the names above.

    Attributes:
        run_file: the manifest of the run.
        progress_file: how far the sessions came.
        partial_folder: what is finished of unfinished parts, between two sessions.
        folders: all that a run writes to.
    """

    def __init__(self, root: str | Path | Location) -> None:
        """Start at a path, a URI or a location."""
        self.root = root if isinstance(root, Location) else locate(root)
        self.run_file = self.root / "run.json"
        self.sessions_file = self.root / "sessions.jsonl"
        self.card_file = self.root / "README.md"
        self.log_file = self.root / "run.log"
        self.progress_file = self.root / "progress.jsonl"
        self.lock_file = self.root / ".lock"
        self.data_folder = self.root / "data"
        self.trace_folder = self.root / "trace"
        self.manifest_folder = self.root / "manifest"
        self.failed_folder = self.root / "failed"
        self.partial_folder = self.root / "partial"
        self.folders = (self.data_folder, self.trace_folder, self.manifest_folder, self.failed_folder)
        self.bad_lines_file = self.failed_folder / "bad_lines.jsonl"

    @property
    def is_shard(self) -> bool:
        """Whether this is the folder of one of several runs that share a prompt set."""
        return _SHARD_NAME.fullmatch(self.root.name) is not None

    def shards(self) -> list[OutputLayout]:
        """Return the folders of such runs in this one."""
        found = filter(None, map(_SHARD_NAME.fullmatch, self.root.names()))
        named = [self.root / name[0] for name in sorted(found, key=lambda name: int(name[1]))]
        return [each for each in map(OutputLayout, named) if each.run_file.is_file()]

    def data_part(self, chunk_index: int) -> Location:
        """Return the part of one chunk."""
        return self.data_folder / f"part-{chunk_index:05d}.parquet"

    def trace_part(self, chunk_index: int) -> Location:
        """Return the trace of one chunk."""
        return self.trace_folder / f"part-{chunk_index:05d}.parquet"

    def manifest_part(self, chunk_index: int) -> Location:
        """Return the manifest of one chunk's part."""
        return self.manifest_folder / f"part-{chunk_index:05d}.json"

    def failed_part(self, chunk_index: int) -> Location:
        """Return the dead letters of one chunk."""
        return self.failed_folder / f"part-{chunk_index:05d}.jsonl"

    def partial_part(self, chunk_index: int) -> Location:
        """Return what is finished of the part of one chunk."""
        return self.partial_folder / f"part-{chunk_index:05d}.parquet"

    def partial_trace(self, chunk_index: int) -> Location:
        """Return the trace of that."""
        return self.partial_folder / f"trace-{chunk_index:05d}.parquet"

    def partial_parts(self) -> dict[int, Location]:
        """Return what is finished of unfinished parts by chunk index, ascending."""
        return {index: self.partial_part(index) for index in _indices(self.partial_folder, ".parquet")}

    def data_parts(self) -> dict[int, Location]:
        """Return the parts that are there by chunk index, ascending."""
        return {index: self.data_part(index) for index in _indices(self.data_folder, ".parquet")}

    def stray_files(self, chunks: Collection[int]) -> list[str]:
        """Return what is in data/ beside the parts of some chunks, and is taken in by who reads all of it."""
        own = {self.data_part(index).name for index in chunks}
        names = (name for name in self.data_folder.names() if name.endswith(".parquet") and name[0] != ".")
        return [name for name in names if name not in own]

    def strays(self, chunks: Collection[int]) -> str:
        """Return what to say of `stray_files`; "" where there are none."""
        names = self.stray_files(chunks)
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        told = (
            f"not of this run: {', '.join(names[:_NAMES_SHOWN])}{more} in data/, not counted here, but "
            "readers of data/*.parquet take them in; remove what you do not know"
        )
        return told if names else ""

    def failed_parts(self) -> dict[int, Location]:
        """Return the dead letters of chunks that are there by chunk index, ascending."""
        return {index: self.failed_part(index) for index in _indices(self.failed_folder, ".jsonl")}


def _indices(folder: Location, suffix: str) -> list[int]:
    matches = (_PART_NAME.fullmatch(name) for name in folder.names())
    return sorted(int(match.group(1)) for match in matches if match is not None and match.group(2) == suffix)
