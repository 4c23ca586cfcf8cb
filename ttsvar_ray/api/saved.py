"""A data set that a run has written, opened from Python: rows as results, with their pictures and trees."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from ttsvar_ray.api.results import Result
from ttsvar_ray.dataset.contents import opened
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_run
from ttsvar_ray.dataset.rows import data_schema, image_rows
from ttsvar_ray.dataset.trace import selection_records
from ttsvar_ray.errors import OutputError
from ttsvar_ray.models.registry import BUILT_IN
from ttsvar_ray.results import FinalImage, PackedBits, ResultImage, SelectionRecord
from ttsvar_ray.storage.location import Location
from ttsvar_ray.types import Prompt, UInt8Array

if TYPE_CHECKING:
    from ttsvar_ray.api.replay import Replayer
    from ttsvar_ray.job.resolved import ResolvedJob

_PARTS_KEPT = 2
"""Parts in memory: going through the results in order reads each part once."""
_ROWS_AT_A_TIME = 256
_OWN = frozenset(data_schema((), bits=True, rounds=True, rewritten=True).names)


def load(
    output: str | Path, *, pictures: bool | None = None, settings: Sequence[str] | None = None
) -> SavedRun:
    """Open the data set that a run has written, whether it is finished or not.

    Args:
        output: folder or URI.
        pictures: whether trees draw the trajectories whose bits the trace has, for which the model is loaded
            when the first one is drawn; None is with the built-in model only.
        settings: `SECTION.KEY=VALUE`, where that model is now, and on which device it draws.

    Raises:
        OutputError: there is no run, or one that cannot be read.
        StorageError: a URI that cannot be opened.
    """
    return SavedRun(OutputLayout(output), pictures=pictures, settings=settings)


class SavedRun(Sequence[Result]):
    """The finished prompts of a run, in the order of the prompt file; pictures are read when asked for.

    Attributes:
        manifest: what the run is: settings, prompts, versions.
    """

    def __init__(
        self, layout: OutputLayout, *, pictures: bool | None = None, settings: Sequence[str] | None = None
    ) -> None:
        """Read which prompts are there, not their pictures; see `load`."""
        self._layout, manifest = read_run(layout)
        self.manifest: RunManifest = manifest
        self._settings = tuple(settings or ())
        is_built_in = manifest.content.get("model.name") == BUILT_IN
        self._draws = is_built_in if pictures is None else pictures
        self._parts: list[int] = []
        self._starts: list[int] = []
        self._rows: list[int] = []
        self._places: dict[str, list[int]] = {}
        for chunk, part in sorted(layout.data_parts().items()):
            best = _read(part, ["row", "prompt_id", "image_rank"])
            best = best.filter(pc.equal(best["image_rank"], 0))
            self._parts.append(chunk)
            self._starts.append(len(self._rows))
            for place, prompt_id in enumerate(best["prompt_id"].to_pylist(), start=len(self._rows)):
                self._places.setdefault(prompt_id, []).append(place)
            self._rows += best["row"].to_pylist()
        self._part = functools.lru_cache(maxsize=_PARTS_KEPT)(self._read_part)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> list[Result]: ...
    def __getitem__(self, place: int | slice) -> Result | list[Result]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"expected a place from 0 to {len(self) - 1}, got {place}")
        place %= len(self)
        chunk = self._parts[bisect.bisect_right(self._starts, place) - 1]
        return self._part(chunk)[self._rows[place]]

    def __iter__(self) -> Iterator[Result]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"SavedRun({str(self._layout.root)!r}, {len(self)} of {self.manifest.prompt_count} prompts)"

    def find(self, prompt: str) -> list[Result]:
        """Return the results of a prompt, by its id or else by its text: none, one or several."""
        if prompt in self._places:
            return [self[place] for place in self._places[prompt]]
        return [self[place] for place in self._with_text(prompt)]

    def _with_text(self, text: str) -> Iterator[int]:
        """Yield the places of a prompt's text, which is not kept in memory."""
        for start, chunk in zip(self._starts, self._parts, strict=True):
            best = _read(self._layout.data_part(chunk), ["prompt", "image_rank"])
            texts = best.filter(pc.equal(best["image_rank"], 0))["prompt"]
            yield from (start + int(place) for place in pc.indices_nonzero(pc.equal(texts, text)).to_pylist())

    def _read_part(self, chunk: int) -> dict[int, Result]:
        """Return the results of a chunk by row of the prompt file."""
        images: dict[int, list[dict[str, Any]]] = {}
        part, trace = self._layout.data_part(chunk), self._layout.trace_part(chunk)
        for batch in image_rows(part, _ROWS_AT_A_TIME):
            for row in batch:
                images.setdefault(row["row"], []).append(row)
        records = {}
        if trace.is_file():  # where it was deleted by hand the tree has only its ends
            records = selection_records(_read(trace))
            _check_searches(part, trace, images, records)
        painter = self._paint if self._draws else None
        return {
            number: _result(rows, records.get(number, ()), painter=painter) for number, rows in images.items()
        }

    @functools.cached_property
    def replayer(self) -> Replayer:
        """Draws bits of this run; its model is loaded once, when it is first asked for.

        Raises:
            ConfigurationError, CheckpointError: a model that cannot be loaded.
        """
        from ttsvar_ray.api.replay import Replayer

        return Replayer.of(self.job)

    @functools.cached_property
    def job(self) -> ResolvedJob:
        """The job that wrote the run, with the settings given since.

        Raises:
            ConfigurationError: settings that this version no longer has, or overrides that are wrong.
        """
        from ttsvar_ray.config.load import recorded_config
        from ttsvar_ray.job.resolved import resolve

        return resolve(recorded_config(self.manifest.config, self._settings))

    def _paint(self, text: str, population: Sequence[PackedBits]) -> list[UInt8Array]:
        return self.replayer.latest(text, population)


def _check_searches(
    part: Location,
    trace: Location,
    images: Mapping[int, Sequence[Mapping[str, Any]]],
    records: Mapping[int, Sequence[SelectionRecord]],
) -> None:
    """Raise `OutputError` unless every image has passed the selections that its trace has."""
    for row, of_prompt in images.items():
        for image in of_prompt:
            found = [one for one in records.get(row, ()) if one.round_index == (image.get("round") or 0)]
            if len(image["lineage"]) != len(found) + 1:
                raise OutputError(
                    f"{part}: an image of row {row} has passed {len(image['lineage']) - 1} selections, and "
                    f"{trace} has {len(found)}: one of both is another run's; `ttsvar-ray check` says which"
                )


def _read(part: Location, columns: list[str] | None = None) -> pa.Table:
    with opened(part, columns or ()) as parquet:
        return parquet.read(columns=columns)


def _result(
    rows: list[dict[str, Any]],
    trace: Sequence[SelectionRecord],
    *,
    painter: Callable[[str, Sequence[PackedBits]], list[UInt8Array]] | None,
) -> Result:
    rows = sorted(rows, key=lambda row: row["image_rank"])
    images = [
        ResultImage(
            rank=row["image_rank"],
            image=FinalImage.of_bytes(
                row["image"]["bytes"],
                width=row["width"],
                height=row["height"],
                image_format=row["image"]["path"].rpartition(".")[2],
            ),
            reward=row["reward"],
            reward_history=tuple(float("nan") if r is None else r for r in row["reward_history"]),
            lineage=tuple(row["lineage"]),
            bits=tuple(row.get("bits") or ()),
            round_index=row.get("round") or 0,
        )
        for row in rows
    ]
    best = rows[0]
    prompt = Prompt(
        row=best["row"],
        prompt_id=best["prompt_id"],
        ordinal=best["ordinal"],
        text=best["prompt"],
        rewritten=best.get("prompt_used"),
        columns={name: value for name, value in best.items() if name not in _OWN},
    )
    drawn = None if painter is None else functools.partial(painter, prompt.model_text)
    return replace(Result.of(prompt, images, trace, painter=drawn), cost_images=best.get("cost_images"))
