"""Images that nearly repeat an earlier one: by perceptual hashes, or by the features of a network.

Both read a table of what a scorer said of each image, in the order of the prompts, and write another:
`TABLE_of` is the first image that it is like, as "row-rank", or null. An image that repeats another is none
that others are compared with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ttsvar_ray.dataset.contents import read_columns
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import FeatureError
from ttsvar_ray.evaluate.comparison import grouped_mean, text_numbers
from ttsvar_ray.evaluate.score_table import KEYS, data_digest, read_scores, write_scores
from ttsvar_ray.types import Float32Array, Float64Array, Int64Array

HASH_BITS = 64
_ROWS_AT_A_TIME = 1024
"""Features that are compared with as many others: their cosines are all that is in memory at a time."""


def mark_near_duplicates(layout: OutputLayout, hashes: str, table: str, *, bits: int) -> tuple[int, int]:
    """Write which images nearly repeat an earlier one, from a table of hashes; return (such images, images).

    Args:
        table: name of the table to write: `TABLE_of`, the first image like it as "row-rank", or null.
        bits: hashes that differ in at most so many bits are alike.
    """
    # Of bits + 1 bands, hashes that differ in at most `bits` bits share one: only those are compared.
    bands = np.array_split(np.arange(HASH_BITS), bits + 1)
    masks = [sum(1 << int(bit) for bit in band) for band in bands]
    seen: list[dict[int, list[tuple[int, str]]]] = [{} for _ in bands]
    count = total = 0
    columns = pa.schema([(f"{table}_of", pa.string()), (f"{table}_bits", pa.int32())])
    for chunk in layout.data_parts():
        part = read_scores(layout, hashes, chunk)
        keys = {name: part[name].to_pylist() for name in KEYS}
        first: list[str | None] = []
        distances: list[int | None] = []
        for value, row, rank in zip(part[hashes].to_pylist(), keys["row"], keys["image_rank"], strict=True):
            near = [one for mask, band in zip(masks, seen, strict=True) for one in band.get(value & mask, ())]
            distance, like = min((((value ^ one).bit_count(), key) for one, key in near), default=(99, ""))
            is_like = distance <= bits
            first.append(like if is_like else None)
            distances.append(distance if is_like else None)
            for mask, band in () if is_like else zip(masks, seen, strict=True):
                band.setdefault(value & mask, []).append((value, f"{row:08d}-{rank}"))
        count, total = count + len(first) - first.count(None), total + len(first)
        told = {"basis": {"hashes": hashes, "bits": bits}, "data": data_digest(layout, chunk)}
        found: dict[str, list[Any]] = {f"{table}_of": first, f"{table}_bits": distances}
        write_scores(layout, chunk, table, keys, found, columns, told)
    return count, total


def mark_similar(
    layout: OutputLayout, features: str, table: str, *, least: float
) -> tuple[int, int, Float32Array]:
    """Write which images have features like those of an earlier one, from a table of features.

    Every pair is compared. Features lie in a temporary file meanwhile, four bytes a number; memory holds two
    blocks of them and twelve bytes an image, however many there are.

    Args:
        table: name of the table to write: `TABLE_of`, and `TABLE_cosine` of the two.
        least: cosine of features that are alike.

    Returns:
        Such images, images, and the cosine of each with the nearest that it was compared with: [images].

    Raises:
        FeatureError: features of several lengths, or that are no numbers.
    """
    rows: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    chunks = list(layout.data_parts())
    with tempfile.TemporaryDirectory(prefix="ttsvar-features-") as folder:
        file, width = Path(folder) / "features", 0
        with file.open("wb") as written:
            for chunk in chunks:
                part = read_scores(layout, features, chunk, ["row", "image_rank", features])
                rows.append(part["row"].to_numpy())
                ranks.append(part["image_rank"].to_numpy())
                if len(part):
                    vectors = _unit(np.stack(part[features].to_numpy()), f"{features} of part {chunk}")
                    if width not in (0, vectors.shape[1]):
                        raise FeatureError(
                            f"{features} of part {chunk}: expected {width} numbers an image, as before, got "
                            f"{vectors.shape[1]}"
                        )
                    width = vectors.shape[1]
                    written.write(vectors.tobytes())
        shape = (sum(map(len, rows)), width)
        stored = np.memmap(file, np.float32, "r", shape=shape) if shape[0] else np.empty(shape, np.float32)
        nearest, cosines = _nearest(stored, least)
        del stored
    all_rows, all_ranks = np.concatenate(rows), np.concatenate(ranks)
    columns = pa.schema([(f"{table}_of", pa.string()), (f"{table}_cosine", pa.float32())])
    start = 0
    for chunk, own in zip(chunks, rows, strict=True):
        part = read_scores(layout, features, chunk, list(KEYS))
        keys = {name: part[name].to_pylist() for name in KEYS}
        first: list[str | None] = []
        alike: list[float | None] = []
        for place in range(start, start + len(own)):
            is_like, like = cosines[place] >= least, nearest[place]
            first.append(f"{all_rows[like]:08d}-{all_ranks[like]}" if is_like else None)
            alike.append(float(cosines[place]) if is_like else None)
        told = {"basis": {"features": features, "least": least}, "data": data_digest(layout, chunk)}
        found: dict[str, list[Any]] = {f"{table}_of": first, f"{table}_cosine": alike}
        write_scores(layout, chunk, table, keys, found, columns, told)
        start += len(own)
    return int((cosines >= least).sum()), len(cosines), cosines


def prompt_diversity(layout: OutputLayout, features: str) -> tuple[Float64Array, float]:
    """Return the mean distance, 1 - cosine, of all pairs of a prompt's images: [prompts of several images].

    The second is the standard error of their mean; prompts that say the same enter it as one.

    Raises:
        FeatureError: features that are no numbers.
    """
    found: list[tuple[str, float]] = []
    said = dict(zip(*read_columns(layout, ["row", "prompt"]).to_pydict().values(), strict=True))
    for chunk in layout.data_parts():
        part = read_scores(layout, features, chunk, ["row", features])
        kinds = np.unique(part["row"].to_numpy(), return_index=True, return_counts=True)
        for row, start, count in zip(*(each.tolist() for each in kinds), strict=True):
            if count > 1:
                own = np.stack(part[features].slice(start, count).to_numpy())
                unit = _unit(own, f"{features} of part {chunk}")
                found.append((said[row], 1.0 - float((unit @ unit.T)[np.triu_indices(count, 1)].mean())))
    values = np.array([value for _, value in found])
    texts = text_numbers(text for text, _ in found)
    return values, grouped_mean(values, texts=texts).standard_error if found else np.nan


def _unit(vectors: np.ndarray, where: str) -> Float32Array:
    """Return vectors of length 1, float32 [images, numbers]."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise FeatureError(f"{where}: expected finite numbers, found others")
    unit: Float32Array = (wide / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
    return unit


def _nearest(vectors: Float32Array, least: float) -> tuple[Int64Array, Float32Array]:
    """Return the nearest earlier vector of each, and their cosine: [vectors]; -1 of the first.

    Vectors that are as near as `least` to an earlier one are none that later ones are compared with.
    """
    total = len(vectors)
    nearest, cosines = np.full(total, -1, np.int64), np.full(total, -1, np.float32)
    is_first = np.ones(total, dtype=np.bool_)
    for start in range(0, total, _ROWS_AT_A_TIME):
        block = np.asarray(vectors[start : start + _ROWS_AT_A_TIME])
        places = np.arange(start, start + len(block))
        for before in range(0, start, _ROWS_AT_A_TIME):
            others = slice(before, before + _ROWS_AT_A_TIME)
            cosine = np.where(is_first[others], block @ np.asarray(vectors[others]).T, -1)
            best = cosine.argmax(axis=1)
            value = cosine[np.arange(len(block)), best]
            nearer = value > cosines[places]
            nearest[places[nearer]], cosines[places[nearer]] = before + best[nearer], value[nearer]
        within = block @ block.T
        for place in range(len(block)):
            own = start + place
            if place:
                cosine = np.where(is_first[start:own], within[place, :place], -1)
                best_here = int(cosine.argmax())
                if cosine[best_here] > cosines[own]:
                    nearest[own], cosines[own] = start + best_here, cosine[best_here]
            is_first[own] = cosines[own] < least
    return nearest, cosines
