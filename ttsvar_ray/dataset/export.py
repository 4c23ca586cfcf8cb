"""A run's images in the layouts of others: WebDataset shards, a folder with metadata, GenEval, T2I-CompBench.

Comes in: the parts of a run, read a few rows at a time. Goes out: files in a local folder, each whole or not
there; exporting again goes on after the files that are there. Names never come from prompts unescaped.

Sources: webdataset's tar format (files of one sample share the name up to its first dot); `datasets`'
ImageFolder (metadata.jsonl with `file_name`); GenEval (djghosh13/geneval, generation/diffusers_generate.py);
T2I-CompBench (Karine-Huang/T2I-CompBench, names "prompt_000000.png").
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ttsvar_ray.columns import held
from ttsvar_ray.dataset.contents import damaged
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.schema import data_schema
from ttsvar_ray.errors import OutputError

_ROWS_AT_A_TIME = 32
_FILES_PER_FOLDER = 10_000
_LONGEST_NAME_BYTES = 200
_PICTURE = ("image", "bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedImage:
    """One row of a run.

    Attributes:
        key: unique and sortable: row of the prompt file and rank.
        encoded, suffix: the image file and its ending, such as ".png".
        metadata: every other column; what was JSON in the prompt file is no text again.
    """

    key: str
    encoded: bytes
    suffix: str
    metadata: Mapping[str, Any]


def exported_images(
    layout: OutputLayout, column_types: Mapping[str, str], *, best_only: bool
) -> Iterator[ExportedImage]:
    """Yield the images of a run in the order of the prompt file, best first.

    Args:
        layout: of the run.
        column_types: of the caller's columns, as `run.json` has them.
        best_only: whether only the best image of each prompt counts.

    Raises:
        OutputError: a part that is damaged.
    """
    texts_of_json = {name for name, kind in column_types.items() if kind == "json"}
    for _, part in sorted(layout.data_parts().items()):
        try:
            with part.open_arrow() as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROWS_AT_A_TIME):
                    for row in _readable(batch).to_pylist():
                        if best_only and row["image_rank"] > 0:
                            continue
                        metadata = {
                            name: _finite(value) for name, value in row.items() if name not in _PICTURE
                        }
                        for name in texts_of_json & metadata.keys():
                            if isinstance(metadata[name], str):
                                metadata[name] = json.loads(metadata[name])
                        yield ExportedImage(
                            key=f"{row['row']:08d}-{row['image_rank']:02d}",
                            encoded=row["image"]["bytes"],
                            suffix=Path(row["image"]["path"]).suffix,
                            metadata=metadata,
                        )
        except (pa.ArrowException, OSError) as error:
            raise damaged(part, error) from None


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows whose times, of which Python does not have all, are text."""
    arrays = [
        array.cast(pa.string()) if pa.types.is_temporal(array.type) else held(array, array.type)
        for array in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def claim(folder: Path, layout: OutputLayout, settings: Mapping[str, Any]) -> None:
    """Note in a folder what is exported to it, so that only the same goes on there.

    Args:
        folder: made if it is not there.
        layout: of the run.
        settings: of the export.

    Raises:
        OutputError: the folder holds another export, or one of fewer parts of the run.
    """
    told = json.dumps(
        {
            **settings,
            "run": json.loads(layout.run_file.read_text())["config_digest"],
            "parts": len(layout.data_parts()),
        }
    )
    file = folder / ".export.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if any(folder.iterdir()):
            raise OutputError(
                f"{folder}: expected an empty folder, or one of the same export; choose another"
            )
        file.write_text(told, encoding="utf-8")
    elif (found := file.read_text(encoding="utf-8")) != told:
        raise OutputError(
            f"{folder}: expected an export of {told}, found one of {found}; choose another folder"
        )


def to_webdataset(images: Iterator[ExportedImage], folder: Path, *, shard_size: int) -> int:
    """Write tar shards `00000.tar`, ..., without gaps: each image beside a JSON of its other columns.

    Equal runs make equal bytes. A shard that is there is passed over.

    Returns:
        The images in all shards.
    """
    total = 0
    for number in itertools.count():
        shard = list(itertools.islice(images, shard_size))
        if not shard:
            return total
        total += len(shard)
        path = folder / f"{number:05d}.tar"
        if path.exists():
            continue
        with _whole(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for image in shard:
                _add(tar, f"{image.key}{image.suffix}", image.encoded)
                _add(tar, f"{image.key}.json", _json(image.metadata).encode())
    raise AssertionError("unreachable: counting does not end")


def to_folder(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `images/00000/KEY.png` and `metadata.jsonl`, which `datasets` opens as an image folder."""
    total = 0
    with _whole(folder / "metadata.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for image in images:
            name = f"images/{total // _FILES_PER_FOLDER:05d}/{image.key}{image.suffix}"
            _write(folder / name, image.encoded)
            lines.write(_json({"file_name": name, **image.metadata}) + "\n")
            total += 1
    return total


def to_geneval(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `00000/metadata.jsonl` and `00000/samples/00000.png`: a folder a prompt, its images in it.

    Lines of the prompt file with equal ids are samples of one prompt, and so are the images kept of each. The
    metadata are the caller's columns and the prompt, as GenEval's generators copy them from its prompt file.
    """
    own = set(data_schema((), bits=True, rounds=True, rewritten=True).names)
    places: dict[str, int] = {}
    samples: dict[str, int] = {}
    total = 0
    for image in images:
        prompt_id = image.metadata["prompt_id"]
        place = folder / f"{places.setdefault(prompt_id, len(places)):05d}"
        sample = samples.get(prompt_id, 0)
        samples[prompt_id] = sample + 1
        if sample == 0:
            told = {name: value for name, value in image.metadata.items() if name not in own}
            line = json.dumps({**told, "prompt": image.metadata["prompt"]}, default=str)
            _write(place / "metadata.jsonl", line.encode())
        _write(place / "samples" / f"{sample:05d}.png", _png(image))
        total += 1
    return total


def to_t2i_compbench(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `samples/PROMPT_000000.png`, numbered over all images: the benchmark reads prompts off the names.

    Raises:
        OutputError: a prompt that no file can be called by; its scores would be of another text.
    """
    total = 0
    for image in images:
        prompt = image.metadata["prompt"]
        if "/" in prompt or "\0" in prompt or len(prompt.encode()) > _LONGEST_NAME_BYTES:
            raise OutputError(
                f"row {image.metadata['row']}: expected a prompt without '/' of at most "
                f"{_LONGEST_NAME_BYTES} bytes, since T2I-CompBench names files by it, got {prompt[:80]!r}; "
                "leave it out"
            )
        _write(folder / "samples" / f"{prompt}_{total:06d}.png", _png(image))
        total += 1
    return total


LAYOUTS: dict[str, Callable[[Iterator[ExportedImage], Path], int]] = {
    "folder": to_folder,
    "geneval": to_geneval,
    "t2i-compbench": to_t2i_compbench,
}
"""Layouts without settings of their own, by name; WebDataset is the other."""


def _png(image: ExportedImage) -> bytes:
    """Return the image as PNG; one that is PNG stays as it is."""
    if image.suffix == ".png":
        return image.encoded
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(image.encoded)).convert("RGB").save(file, format="PNG")
    return file.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    """Return a value whose numbers JSON has: NaN and infinity are nothing there."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


def _write(path: Path, content: bytes) -> None:
    """Write a file at once; one of this size is there already, whole."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == len(content):
            return
    with _whole(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a place beside `path`, which takes its name when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    yield temporary
    temporary.replace(path)
