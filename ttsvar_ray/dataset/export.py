"""A run's images in the layouts of others: WebDataset shards, a folder with metadata, benchmarks.

Comes in: the parts of a run, read a few rows at a time. Goes out: files in a local folder, each whole or not
there; exporting again goes on after the files that are there. Names never come from prompts unescaped.

Sources: webdataset's tar format (files of one sample share the name up to its first dot); `datasets`'
ImageFolder (metadata.jsonl with `file_name`); GenEval (djghosh13/geneval, generation/diffusers_generate.py);
T2I-CompBench (Karine-Huang/T2I-CompBench, names "prompt_000000.png"); OneIG-Bench
(OneIG-Bench/OneIG-Benchmark, README.md and scripts/utils); HPS v2 (tgxs002/HPSv2, README.md and
hpsv2/evaluation.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsvar_ray.dataset.dead_letters import as_text
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.part_manifest import data_digest
from ttsvar_ray.dataset.rows import PICTURE, data_schema, image_rows
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.location import locate

_ROWS_AT_A_TIME = 32
_FILES_PER_FOLDER = 10_000
_LONGEST_NAME_BYTES = 200


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
        column_types: of the caller's columns, as `run.json` has them.
        best_only: whether only the best image of each prompt counts.

    Raises:
        OutputError: a part that is damaged.
    """
    texts_of_json = {name for name, kind in column_types.items() if kind == "json"}
    for _, part in sorted(layout.data_parts().items()):
        for rows in image_rows(part, _ROWS_AT_A_TIME):
            for row in rows:
                if best_only and row["image_rank"] > 0:
                    continue
                metadata = {name: value for name, value in row.items() if name not in PICTURE}
                for name in texts_of_json & metadata.keys():
                    if isinstance(metadata[name], str):
                        metadata[name] = json.loads(metadata[name])
                yield ExportedImage(
                    key=f"{row['row']:08d}-{row['image_rank']:02d}",
                    encoded=row["image"]["bytes"],
                    suffix=Path(row["image"]["path"]).suffix,
                    metadata=_finite(metadata),
                )


@contextlib.contextmanager
def claimed(folder: Path, layout: OutputLayout, settings: Mapping[str, Any]) -> Iterator[None]:
    """Note in a folder what is exported to it, so that only the same goes on there.

    Of a run that the layout cannot hold the note goes, where nothing was written beside it.

    Args:
        folder: made if it is not there.

    Raises:
        OutputError: the folder holds another export, or one of other images: the run was extended since, its
            failed prompts were retried, a part was made again.
    """
    run = json.loads(layout.run_file.read_text())["config_digest"]
    told = json.dumps({**settings, "run": run, "images_digest": data_digest(layout)})
    file = folder / ".export.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if any(not each.name.startswith(".") for each in folder.iterdir()):
            raise OutputError(
                f"{folder}: expected an empty folder, or one of the same export; choose another"
            )
        locate(file).write_text(told)
    elif (found := file.read_text(encoding="utf-8")) != told:
        raise OutputError(
            f"{folder}: expected an export of {told}, found one of {found}; choose another folder"
        )
    try:
        yield
    except OutputError:
        if [each.name for each in folder.iterdir()] == [file.name]:
            file.unlink()
        raise


def to_webdataset(images: Iterator[ExportedImage], folder: Path, *, shard_size: int) -> int:
    """Write tar shards `00000.tar`, ..., without gaps: each image beside a JSON of its other columns.

    Equal runs make equal bytes. A shard that is there is passed over.

    Returns:
        The images in all shards.
    """
    total = 0
    for number, shard in enumerate(iter(lambda: list(itertools.islice(images, shard_size)), [])):
        total += len(shard)
        path = folder / f"{number:05d}.tar"
        if path.exists():
            continue
        with _whole(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for image in shard:
                _add(tar, f"{image.key}{image.suffix}", image.encoded)
                _add(tar, f"{image.key}.json", _json(image.metadata).encode())
    return total


_PATHS = re.compile(r"(?<![^_])file_name(?=s?$)")
"""Of names of columns: what an image folder of `datasets` takes for paths."""


def to_folder(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `images/00000/KEY.png` and `metadata.jsonl`, which `datasets` opens as an image folder.

    It takes what ends in `file_name` for paths: such a column of the caller's ends in `filename`.
    """
    total = 0
    with _whole(folder / "metadata.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        for image in images:
            name = f"images/{total // _FILES_PER_FOLDER:05d}/{image.key}{image.suffix}"
            _write(folder / name, image.encoded)
            told = {_PATHS.sub("filename", key): value for key, value in image.metadata.items()}
            lines.write(_json({"file_name": name, **told}) + "\n")
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
        _write(place / "samples" / f"{sample:05d}.png", _recoded(image, ".png"))
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
        _write(folder / "samples" / f"{prompt}_{total:06d}.png", _recoded(image, ".png"))
        total += 1
    return total


def to_oneig(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `anime/MODEL/000.webp`: of each prompt one picture, its image or four of them as a grid of 2 x 2.

    Prompts have the columns `category` and `id` of OneIG-Bench.csv; images of one prompt stand together.
    Grids are WebP without loss. A prompt without an image has no file, and the benchmark passes it over.

    Raises:
        OutputError: a prompt without these columns, or that has neither one image nor four, or other than the
            prompts before it.
    """
    total, count = 0, 0
    seen: set[str] = set()
    for name, group in itertools.groupby(images, key=_oneig_name):
        own = list(group)
        count = count or len(own)
        if name in seen or len(own) != count or count not in (1, 4):
            raise OutputError(
                f"row {own[0].metadata['row']}: expected one image of every OneIG-Bench prompt, or four "
                f"beside each other (--images all), got {len(own)} of {name}"
            )
        seen.add(name)
        _write(folder / f"{name}.webp", _grid(own))
        total += len(own)
    return total


_ONEIG_FOLDERS = {
    "anime_stylization": "anime",
    "portrait": "human",
    "general_object": "object",
    "text_rendering": "text",
    "knowledge_reasoning": "reasoning",
    "multilingualism": "multilingualism",
}
_ID = re.compile(r"[\w-]+")


def _oneig_name(image: ExportedImage) -> str:
    """Return the name of a prompt's file without its ending."""
    folder, name = oneig_place(image.metadata).split("/")
    return f"{folder}/{_model(image)}/{name}"


def oneig_place(row: Mapping[str, Any]) -> str:
    """Return "anime/000" of the columns of OneIG-Bench.csv.

    Raises:
        OutputError: a row without them.
    """
    category, number = (row.get(name) for name in ("category", "id"))
    place = _ONEIG_FOLDERS.get(str(category).lower())
    # Tables of prompts may have been read with numbers for "000".
    name = f"{number:03d}" if isinstance(number, int) else str(number)
    if place is None or number is None or not _ID.fullmatch(name):
        raise OutputError(
            f"row {row['row']}: expected the columns category ({', '.join(_ONEIG_FOLDERS)}) and "
            f"id of OneIG-Bench.csv, got {category!r} and {number!r}"
        )
    return f"{place}/{name}"


def to_hps(images: Iterator[ExportedImage], folder: Path) -> int:
    """Write `MODEL/anime/00000.jpg`: a folder a style, its images numbered as the prompts of the style are.

    Prompts have a column `style`, and the order of the benchmark, or its numbers in a column `index`. Images
    that are no JPEG become one of quality 95 without subsampling: the benchmark names no quality.

    Raises:
        OutputError: a prompt without a style, with two images, or with one that is missing before it, so that
            numbers would be those of other prompts.
    """
    total = 0
    numbers: dict[str, int] = {}
    for image in images:
        told = image.metadata
        style, row = str(told.get("style") or ""), told["row"]
        if not _ID.fullmatch(style) or told["image_rank"]:
            raise OutputError(
                f"row {row}: expected one image (--images best) and a column style (anime, concept-art, "
                f"paintings or photo), got image {told['image_rank']} and {told.get('style')!r}"
            )
        if told.get("index") is None and row != total:
            raise OutputError(
                f"row {total}: has no image, and HPS numbers images by the order of their prompts; make it "
                "(--retry-failed), or give the prompts a column index"
            )
        # Of a CSV file it is text.
        number = numbers.get(style, 0) if told.get("index") is None else int(told["index"])
        numbers[style] = number + 1
        _write(
            folder / _model(image) / style / f"{number:05d}.jpg",
            _recoded(image, ".jpg", quality=95, subsampling=0),
        )
        total += 1
    return total


LAYOUTS: dict[str, Callable[[Iterator[ExportedImage], Path], int]] = {
    "folder": to_folder,
    "geneval": to_geneval,
    "t2i-compbench": to_t2i_compbench,
    "oneig": to_oneig,
    "hps": to_hps,
}
"""Layouts without settings of their own, by name; WebDataset is the other."""


def _recoded(image: ExportedImage, suffix: str, **options: Any) -> bytes:
    """Return the image as ".png" or ".jpg"; one that is that stays as it is."""
    if image.suffix == suffix:
        return image.encoded
    from PIL import Image

    file = io.BytesIO()
    kind = {".png": "PNG", ".jpg": "JPEG"}[suffix]
    Image.open(io.BytesIO(image.encoded)).convert("RGB").save(file, format=kind, **options)
    return file.getvalue()


def _grid(images: Sequence[ExportedImage]) -> bytes:
    """Return images of equal size as one WebP, row by row."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(image.encoded)).convert("RGB") for image in images]
    side, (width, height) = math.isqrt(len(pictures)), pictures[0].size
    page = Image.new("RGB", (side * width, side * height))
    for place, picture in enumerate(pictures):
        page.paste(picture, (place % side * width, place // side * height))
    file = io.BytesIO()
    page.save(file, format="WEBP", lossless=True)
    return file.getvalue()


def _model(image: ExportedImage) -> str:
    """Return the name of the model as a folder."""
    return re.sub(r"[^\w.-]+", "-", Path(image.metadata["model"]).name) or "model"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=as_text)


def _finite(value: Any) -> Any:
    """Return a value whose numbers JSON has: NaN and infinity are nothing there."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
