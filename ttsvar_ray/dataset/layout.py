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
from dataclasses import dataclass
from pathlib import Path

from ttsvar_ray.storage.location import Location, locate

_PART_NAME = re.compile(r"part-(\d{5}|[1-9]\d{5,})(\.\w+)")
_NAMES_SHOWN = 5
_SHARD_NAME = re.compile(r"shard-(\d+)-of-\d+")


@dataclass(frozen=True, slots=True, init=False)
class OutputLayout:
    """The places below one output folder."""

    root: Location

    def __init__(self, root: str | Path | Location) -> None:
        """Start at a path, a URI or a location."""
        object.__setattr__(self, "root", root if isinstance(root, Location) else locate(root))

    @property
    def is_shard(self) -> bool:
        """Whether this is the folder of one of several runs that share a prompt set."""
        return _SHARD_NAME.fullmatch(self.root.name) is not None

    def shards(self) -> list[OutputLayout]:
        """Return the folders of such runs in this one."""
        found = filter(None, map(_SHARD_NAME.fullmatch, self.root.names()))
        named = [self.root / name[0] for name in sorted(found, key=lambda name: int(name[1]))]
        return [each for each in map(OutputLayout, named) if each.run_file.is_file()]

    @property
    def run_file(self) -> Location:
        """Where the manifest is."""
        return self.root / "run.json"

    @property
    def sessions_file(self) -> Location:
        """Where the sessions are."""
        return self.root / "sessions.jsonl"

    @property
    def card_file(self) -> Location:
        """Where the data set card is."""
        return self.root / "README.md"

    @property
    def log_file(self) -> Location:
        """Where the log of all sessions is."""
        return self.root / "run.log"

    @property
    def progress_file(self) -> Location:
        """Where it is written how far the sessions came."""
        return self.root / "progress.jsonl"

    @property
    def lock_file(self) -> Location:
        """Where the lock is while a run writes."""
        return self.root / ".lock"

    @property
    def data_folder(self) -> Location:
        """Where the parts with images are."""
        return self.root / "data"

    @property
    def trace_folder(self) -> Location:
        """Where the parts with search traces are."""
        return self.root / "trace"

    @property
    def manifest_folder(self) -> Location:
        """Where the manifests of the parts are."""
        return self.root / "manifest"

    @property
    def failed_folder(self) -> Location:
        """Where the dead letters are."""
        return self.root / "failed"

    @property
    def partial_folder(self) -> Location:
        """Where what is finished of unfinished parts is, between two sessions."""
        return self.root / "partial"

    @property
    def folders(self) -> tuple[Location, ...]:
        """All folders that a run writes to."""
        return self.data_folder, self.trace_folder, self.manifest_folder, self.failed_folder

    @property
    def bad_lines_file(self) -> Location:
        """Where the bad lines of the prompt file are."""
        return self.failed_folder / "bad_lines.jsonl"

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
