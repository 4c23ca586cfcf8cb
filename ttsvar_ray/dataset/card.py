"""The card of a data set, `README.md`: which files `datasets` opens, what they are and whence.

A run writes one when it begins, from what it is; `ttsvar-ray push` writes one with sizes, results and limits
once all is there. A card that somebody has made their own, by removing its mark, is left alone.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from ttsvar_ray.columns import held_type
from ttsvar_ray.dataset.contents import OutputSummary, map_files, opened
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.rows import PICTURE, SUFFIXES
from ttsvar_ray.errors import amount
from ttsvar_ray.results import RunCost
from ttsvar_ray.storage.location import Location
from ttsvar_ray.storage.uris import redacted, without_folders

MARK = "<!-- Written by ttsvar-ray. Remove this line to keep what you change here. -->"
"""In a card that may be written anew."""
UNKNOWN_LICENCE = "unknown"
PAPER = "https://arxiv.org/abs/2507.18537"

_TYPES = {
    "double": "float64",
    "float": "float32",
    "halffloat": "float16",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M")


@dataclass(frozen=True, slots=True, kw_only=True)
class _TableSize:
    """Of all parts of one table.

    Attributes:
        bytes: of their values, before any codec.
        schema: of the first part; None without parts.
    """

    rows: int
    bytes: int
    file_bytes: int
    schema: pa.Schema | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """Mean of a score over the best images of the prompts, with its standard error."""

    name: str
    prompts: int
    mean: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is known of a data set that is whole.

    Attributes:
        repository: OWNER/NAME.
        licence, model_licence: of the images, and of the model's weights.
        reward: that steered the search.
        images, trace: of the tables; a trace without rows is not named, since `datasets` cannot open it.
        cost: of the run, where it is known.
        scores: the steering reward first.
        tables: of scores, beside the data.
        devices: that the run was made on.
        sheet: file of the contact sheet in the data set; "" for none.
    """

    repository: str
    licence: str
    model_licence: str
    reward: str
    images: _TableSize
    trace: _TableSize
    totals: OutputSummary
    cost: RunCost | None
    scores: Sequence[ScoreRow]
    tables: Sequence[str]
    devices: Sequence[str]
    sheet: str = ""


def table_size(parts: Iterable[Location]) -> _TableSize:
    """Read how large a table is from the footers of its parts.

    Raises:
        OutputError: a part is not a whole Parquet file.
    """

    def read(part: Location) -> tuple[int, int, int, pa.Schema]:
        with opened(part) as parquet:
            found = parquet.metadata
            groups = [found.row_group(index).total_byte_size for index in range(found.num_row_groups)]
            return found.num_rows, sum(groups), part.size() or 0, parquet.schema_arrow

    rows = size = file_bytes = 0
    schema: pa.Schema | None = None
    for one_rows, one_size, one_bytes, one_schema in map_files(read, parts):
        rows, size, file_bytes = rows + one_rows, size + one_size, file_bytes + one_bytes
        schema = schema or one_schema
    return _TableSize(rows=rows, bytes=size, file_bytes=file_bytes, schema=schema)


def card_text(manifest: RunManifest, *, has_trace: bool, publication: Publication | None = None) -> str:
    """Return the card of a run.

    Args:
        has_trace: whether its searches select anything: `datasets` cannot open a table that has no row in any
            part, so that the card must not name it.
        publication: what is known once the run is whole.
    """
    head = yaml.safe_dump(
        _head(manifest, has_trace, publication), sort_keys=False, allow_unicode=True, width=1000
    )
    title = "Images generated with ttsvar_ray" if publication is None else publication.repository
    opened = "path/to/this/folder" if publication is None else publication.repository
    lines = [
        f"---\n{head}---",
        MARK,
        f"# {title}",
        "",
        *([f"![Some images]({publication.sheet})", ""] if publication and publication.sheet else []),
        "```python",
        "import datasets",
        "",
        f'images = datasets.load_dataset("{opened}", split="train")',
        'images[0]["prompt"], images[0]["image"]',
        "```",
        "",
        "One row per kept image; `image_rank` 0 is the best image of its prompt by `reward`. `run.json` has",
        "settings, the prompt set's digest and versions, `failed/` prompts without an image, `manifest/` the",
        "sha256 of every part.",
        *_about(manifest, publication),
    ]
    if publication is not None:
        lines += [*_results(publication), *_limits(manifest, publication)]
    return "\n".join(lines) + "\n"


def derived_card(manifest: RunManifest, head: Mapping[str, Any], *lines: str) -> str:
    """Return the card of a data set of a run's images.

    Args:
        head: what `datasets` reads of it.
        lines: what it is, for people.
    """
    text = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join([f"---\n{text}---", MARK, *lines, *_about(manifest, None), ""])


def write_card(file: Location, text: str) -> None:
    """Write a card, unless somebody has made the one that is there their own."""
    if not file.is_file() or MARK in file.read_text():
        file.write_text(text)


def shards_head(manifest: RunManifest, schema: pa.Schema) -> dict[str, Any]:
    """Return what the card of WebDataset shards begins with: else `datasets` guesses types by five samples.

    Args:
        schema: of the parts that they are made of.
    """
    columns = pa.schema([(field.name, _in_json(field.type)) for field in schema if field.name not in PICTURE])
    features = [
        {"name": SUFFIXES[manifest.config["output"]["image_format"]], "dtype": "image"},
        {"name": "json", "struct": _features(columns)},
        *({"name": name, "dtype": "string"} for name in ("__key__", "__url__")),
    ]
    configs = [{"config_name": "default", "data_files": "*.tar"}]
    return {"configs": configs, "dataset_info": {"features": features}}


def _in_json(kind: pa.DataType, *, is_inner: bool = False) -> pa.DataType:
    """Return the type of a column in the JSON of an export."""
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _in_json(field.type, is_inner=True)) for field in kind])
    if pa.types.is_nested(kind):
        return pa.list_(_in_json(kind.value_type, is_inner=True))
    if pa.types.is_temporal(kind) and is_inner:
        return held_type(kind)
    is_plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    # Of whole numbers beyond int64 `datasets` can make text alone.
    return kind if is_plain and kind != pa.uint64() else pa.string()


def _head(manifest: RunManifest, has_trace: bool, publication: Publication | None) -> dict[str, Any]:
    configs: list[dict[str, Any]] = [
        {"config_name": "images", "default": True, "data_files": "data/*.parquet"}
    ]
    if has_trace:
        configs.append({"config_name": "trace", "data_files": "trace/*.parquet"})
    if publication is None:
        return {"configs": configs}
    configs += [
        {"config_name": f"scores-{name}", "data_files": f"scores/{name}/*.parquet"}
        for name in publication.tables
    ]
    run = _run(manifest, publication)
    sizes = {"images": publication.images, **({"trace": publication.trace} if has_trace else {})}
    return {
        "license": publication.licence,
        "pretty_name": publication.repository.partition("/")[2],
        "task_categories": ["text-to-image"],
        "size_categories": [_SIZES[min(max(len(str(publication.images.rows)) - 3, 0), 5)]],
        "tags": ["synthetic", "text-to-image", "test-time-scaling", "ttsvar-ray"],
        "configs": configs,
        "dataset_info": [_info(name, size) for name, size in sizes.items()],
        "ttsvar_ray": {
            **run,
            "model_license": publication.model_licence,
            "plan": _plan(manifest),
            "paper": PAPER,
            "prompts": publication.totals.prompts,
            "images": publication.totals.images,
            "config_digest": manifest.config_digest,
            "version": manifest.versions.get("ttsvar-ray", ""),
        },
    }


def _info(name: str, size: _TableSize) -> dict[str, Any]:
    features = None if size.schema is None else _features(size.schema)
    return {
        "config_name": name,
        **({} if features is None else {"features": features}),
        "splits": [{"name": "train", "num_bytes": size.bytes, "num_examples": size.rows}],
        "download_size": size.file_bytes,
        "dataset_size": size.bytes,
    }


def _features(schema: pa.Schema) -> list[dict[str, Any]] | None:
    """Return the columns as cards name them; None where one is of a type that they have no name for."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    images = {
        name
        for name, feature in told.get("info", {}).get("features", {}).items()
        if feature.get("_type") == "Image"
    }
    try:
        return [
            {"name": field.name, **({"dtype": "image"} if field.name in images else _feature(field.type))}
            for field in schema
        ]
    except NotImplementedError:
        return None


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _feature(kind.value_type)
        # What has a single word stands without its name.
        word = inner.get("dtype") or inner.get("struct") or inner
        return {"large_list" if pa.types.is_large_list(kind) else "list": word}
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        raise NotImplementedError
    return {"dtype": _TYPES.get(str(kind), str(kind))}


def _run(manifest: RunManifest, publication: Publication | None) -> dict[str, Any]:
    def setting(section: str, key: str) -> Any:
        values = manifest.config.get(section)
        return redacted(values.get(key)) if isinstance(values, Mapping) else None

    reward = setting("reward", "name") if publication is None else publication.reward
    if reward == "auto":
        weights = "weights.reward."
        reward = next((name[len(weights) :] for name in manifest.content if name.startswith(weights)), reward)
    found = {
        "model": without_folders(redacted(manifest.content.get("model.name"))),
        "reward": reward,
        "strategy": manifest.content.get("strategy.name"),
        "n": setting("strategy", "n"),
    }
    return {**{name: value for name, value in found.items() if value is not None}, "seed": manifest.seed}


def _plan(manifest: RunManifest) -> str:
    """Return what is done to each prompt in one line: trajectories, and operators at the ends of segments."""
    if manifest.plan is None:
        return "unknown"
    words = [f"{manifest.plan.segments[0].population} trajectories"]
    words += [
        f"{before.selection} after scale {before.last_scale} keeps {segment.population}"
        for before, segment in itertools.pairwise(manifest.plan.segments)
    ]
    rounds = len(manifest.plan.growth)
    again = f"; up to {rounds} rounds" if rounds > 1 else ""
    return ", ".join(words) + again


def _about(manifest: RunManifest, publication: Publication | None) -> list[str]:
    run = _run(manifest, publication)
    rows = [(name, str(value)) for name, value in run.items()]
    rows += [("plan", _plan(manifest)), ("paper", PAPER)]
    if publication is not None:
        rows += [
            ("prompts with images", f"{publication.totals.prompts:,} of {manifest.prompt_count:,}"),
            ("images", f"{publication.totals.images:,}"),
            ("size", f"{amount(publication.images.file_bytes, 'B')} of images"),
            ("licence of the images", publication.licence),
            ("licence of the model's weights", publication.model_licence),
            ("made on", ", ".join(publication.devices) or "unknown"),
        ]
        rows += _cost(publication.cost)
    weights = [(name[8:], print_) for name, print_ in manifest.content.items() if name.startswith("weights.")]
    rows += [(f"weights of {name}", str(print_)) for name, print_ in weights]
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    return ["", "## How it was made", "| | |", "| --- | --- |", *(f"| {a} | {_cell(b)} |" for a, b in rows)]


def _cost(cost: RunCost | None) -> list[tuple[str, str]]:
    if cost is None or math.isnan(cost.images_per_prompt):
        return []
    return [
        ("cost of a prompt", f"{cost.images_per_prompt:.3f} images drawn without a search"),
        *([("not counted", cost.uncounted_code)] if cost.uncounted_code else []),
        ("FLOPs", f"{amount(cost.total_flops, 'FLOP')}, and {cost.device_seconds:,.0f} s of devices"),
    ]


def _results(publication: Publication) -> list[str]:
    rows = [
        f"| {_cell(row.name)} | {row.prompts:,} | {row.mean:.4f} | {row.error:.4f} |"
        for row in publication.scores
    ]
    return [
        "",
        "## Results",
        "Over the best image of each prompt.",
        "",
        "| score | prompts | mean | standard error |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _limits(manifest: RunManifest, publication: Publication) -> list[str]:
    totals, tables = publication.totals, set(publication.tables)
    limits = [
        "The first score is the reward that the search looked at: it says little of what the search found.",
        "Rewards of different prompts do not compare.",
        "Images show what a model learnt, prejudices included, and not always what a prompt says.",
    ]
    if "safety" not in tables:
        limits.append("No classifier has looked at whether images are safe, and none was removed.")
    if not tables & {"near_duplicate", "similar"}:
        limits.append("Images that nearly repeat others were not looked for.")
    if totals.failed or manifest.bad_lines:
        limits.append(
            f"{totals.failed:,} prompts were given up, {manifest.bad_lines:,} lines of the prompt file hold "
            "none: `failed/` says why."
        )
    if totals.cut:
        limits.append(f"{totals.cut:,} prompts are longer than what the model reads (`text_truncated`).")
    if UNKNOWN_LICENCE in (publication.licence, publication.model_licence):
        limits.append("Not all licences are known: what may be done with the images is for you to find out.")
    return ["", "## Known limits", *(f"* {limit}" for limit in limits)]


def _cell(text: str) -> str:
    """Return text that ends no cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
