"""Published files to a model directory of ours, once: safetensors, text encoder, config.json.

The originals are only read. The directory appears under its name when it is whole and has been compared
with them. One tensor is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ttsvar_ray.errors import CheckpointError, OutputError
from ttsvar_ray.models.description import (
    CONFIG_NAME,
    FORMAT_VERSION,
    PUBLISHED_SIZES,
    TEXT_ENCODER,
    WEIGHT_FILES,
    ModelDescription,
)
from ttsvar_ray.models.infinity.config import FAMILY, TransformerConfig
from ttsvar_ray.models.infinity.directory import BLOCKS, TOKENIZER_KEYS, parse_tokenizer, transformer_weights
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.weight_files import (
    TensorPlan,
    Weights,
    read_weights,
    shard_names,
    write_safetensors,
    write_shards,
)
from ttsvar_ray.models.weight_source import fetch_all
from ttsvar_ray.vision.checkpoints import check_fit, on_meta, rename_keys

SHARD_BYTES = 5 * 10**9
SHARDED_TRANSFORMER = "transformer"
SPARE_DISK = 1.02
"""Room asked of the disk, over the bytes of the tensors."""

_TEXT_WEIGHTS = ("shared.", "encoder.")
_TIED_EMBEDDING = "encoder.embed_tokens.weight"
_WEIGHT_NAMES = ("*.safetensors", "*.bin", "*.pt", "*.h5", "*.msgpack", "*.index.json")
_COMPARED = 4096

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A reward or an extractor that goes into the directory.

    Attributes:
        path: its weights, copied as they are; None leaves them to the job's settings.
    """

    name: str
    path: Path | None = None


def convert(
    description: ModelDescription,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    reward: Companion | None = None,
    extractor: Companion | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda line: None,
) -> None:
    """Write a model directory from published files.

    Args:
        description: of a published model, with where its files are.
        folder: the directory to make; must not exist, or be empty.
        dtype: of the transformer's blocks; None keeps what is stored. The rest is kept always: it runs in
            float32.
        reward, extractor: put into the directory too; None leaves both to the job's settings.
        shard_bytes: size of one file from which the transformer is split.

    Raises:
        CheckpointError: files missing, or weights that do not fit the model.
        OutputError: the folder is there already, the disk is too small, or what was written differs.
    """
    partial_folder = folder.with_name(f"{folder.name}.partial")
    _refuse_existing(folder, partial_folder)
    for companion in (reward, extractor):
        if companion is not None and companion.path is not None and not companion.path.exists():
            raise CheckpointError(f"{companion.name}: nothing at {companion.path}")
        if companion is not None and companion.path is not None and companion.path.is_dir():
            refuse_foreign_links(companion.path)
    files = fetch_all(description.weights)
    refuse_foreign_links(files["text_encoder"], but=_WEIGHT_NAMES)
    parts = {
        "transformer": _transformer_plans(description, files["transformer"], dtype),
        "tokenizer": _tokenizer_plans(description, files["tokenizer"]),
        TEXT_ENCODER: _text_plans(files["text_encoder"]),
    }
    _check_disk(folder, parts)
    partial_folder.mkdir(parents=True)
    try:
        names = {}
        for part, plans in parts.items():
            written = _write(partial_folder, part, plans, shard_bytes, report)
            _compare(written, plans)
            names[part] = written.relative_to(partial_folder).as_posix()
        _copy_beside(files["text_encoder"], partial_folder / TEXT_ENCODER)
        config = _config(description, names)
        if reward is not None:
            config["reward"] = {"name": reward.name, **_copied(reward, partial_folder, "reward", "path")}
        if extractor is not None:
            copied = _copied(extractor, partial_folder, "features", "backbone")
            config["features"] = {"extractor": extractor.name, **copied}
        text = json.dumps(config, indent=1) + "\n"
        (partial_folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial_folder)
        raise
    if folder.is_dir():
        folder.rmdir()
    partial_folder.replace(folder)


def with_files(
    description: ModelDescription, *, transformer: Path | None, tokenizer: Path | None
) -> ModelDescription:
    """Return a description whose weights are in files of other names than the published ones."""
    weights = dict(description.weights)
    for part, path in (("transformer", transformer), ("tokenizer", tokenizer)):
        if path is not None:
            weights[part] = dataclasses.replace(weights[part], root=path.parent, name=path.name)
    return dataclasses.replace(description, weights=weights)


def _refuse_existing(folder: Path, partial_folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: already there; choose another --to, or remove it")
    if partial_folder.exists():
        raise OutputError(f"{partial_folder}: left by an interrupted conversion; remove it and start again")


def _transformer_plans(
    description: ModelDescription, file: Path, dtype: torch.dtype | None
) -> dict[str, TensorPlan]:
    config = TransformerConfig.from_json(description.transformer)
    weights = transformer_weights(read_weights(file), config, source=str(file))
    with on_meta():
        module = InfinityTransformer(config, description.scale_schedule)
    check_fit(module, weights, source=str(file))
    return {
        name: _plan(tensor, dtype if name.startswith(BLOCKS) else None) for name, tensor in weights.items()
    }


def _tokenizer_plans(description: ModelDescription, file: Path) -> dict[str, TensorPlan]:
    config, _ = parse_tokenizer(description.tokenizer, description.scale_schedule)
    weights = rename_keys(read_weights(file), TOKENIZER_KEYS, source=str(file))
    with on_meta():
        module = ImageTokenizer(config)
    check_fit(module, weights, source=str(file))
    return {name: _plan(tensor) for name, tensor in weights.items()}


def _text_plans(folder: Path) -> dict[str, TensorPlan]:
    """Keep the encoder of a T5 checkpoint, which may hold a decoder too, as it is stored."""
    weights: Weights = read_weights(folder)
    kept = {name: tensor for name, tensor in weights.items() if name.startswith(_TEXT_WEIGHTS)}
    if "shared.weight" in kept:
        kept.pop(_TIED_EMBEDDING, None)
    if not kept:
        raise CheckpointError(f"{folder}: expected the weights of a T5 encoder, found none of its names")
    return {name: _plan(tensor) for name, tensor in kept.items()}


def _plan(tensor: Tensor, dtype: torch.dtype | None = None) -> TensorPlan:
    chosen = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return TensorPlan(dtype=chosen, shape=tuple(tensor.shape), make=partial(tensor.to, chosen))


def _check_disk(folder: Path, parts: Mapping[str, Mapping[str, TensorPlan]]) -> None:
    needed = sum(plan.nbytes for plans in parts.values() for plan in plans.values()) * SPARE_DISK
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{folder}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; make room or "
            "choose another --to"
        )


def _write(
    folder: Path, part: str, plans: Mapping[str, TensorPlan], shard_bytes: int, report: Report
) -> Path:
    """Write one part; return its file or folder."""
    size = sum(plan.nbytes for plan in plans.values())
    report(f"{part}: writing {len(plans)} tensors, {size / 1e9:.2f} GB")
    if part == TEXT_ENCODER:
        write_shards(folder / TEXT_ENCODER, plans, largest=shard_bytes)
        return folder / TEXT_ENCODER
    if size > shard_bytes and part == "transformer":
        write_shards(folder / SHARDED_TRANSFORMER, plans, largest=shard_bytes)
        return folder / SHARDED_TRANSFORMER
    write_safetensors(folder / WEIGHT_FILES[part], plans)
    return folder / WEIGHT_FILES[part]


def _compare(written: Path, plans: Mapping[str, TensorPlan]) -> None:
    """Compare what was written with what was meant: each name, shape and dtype, and both ends of a tensor."""
    files = [written]
    if written.is_dir():
        (index,) = written.glob("*.index.json")
        files = [written / name for name in shard_names(index)]
    seen: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                found, plan = stored.get_tensor(name), plans.get(name)
                if plan is None or found.dtype != plan.dtype or tuple(found.shape) != plan.shape:
                    raise OutputError(f"{file}: {name} was not written as meant; is the disk sound?")
                meant = plan.make().reshape(-1)
                flat = found.reshape(-1)
                ends = (slice(0, _COMPARED), slice(-_COMPARED, None))
                if not all(torch.equal(_bits(flat[end]), _bits(meant[end])) for end in ends):
                    raise OutputError(f"{file}: {name} reads back other numbers; is the disk sound?")
                seen.add(name)
    if lost := sorted(plans.keys() - seen):
        raise OutputError(f"{written}: {lost[0]} and {len(lost) - 1} more were not written")


def _bits(tensor: Tensor) -> Tensor:
    # A NaN is not equal to itself; its bits are.
    return tensor.contiguous().view(torch.uint8)


def _copy_beside(source: Path, target: Path) -> None:
    """Copy what is not weights: the text encoder's config and tokenizer."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHT_NAMES):
            shutil.copyfile(file, target / file.name)


def refuse_foreign_links(folder: Path, *, but: Sequence[str] = ()) -> None:
    """Refuse a folder with links to what is not its own: a copy of that would be given away with the model.

    A hub's cache keeps what belongs to a snapshot beside it, and links to it.

    Args:
        folder: with what is below it.
        but: patterns of files that are read as weights and not copied.

    Raises:
        CheckpointError: names the first such link.
    """
    root = folder.resolve()
    cache = next((place.parent / "blobs" for place in root.parents if place.name == "snapshots"), None)
    for file in sorted(folder.rglob("*")):
        if not file.is_symlink() or any(file.match(pattern) for pattern in but):
            continue
        target = file.resolve()
        if target.is_dir() or not (target.is_relative_to(root) or target.parent == cache):
            raise CheckpointError(
                f"{file}: expected a file of this folder, got a link to {target}; put the file itself there "
                "if it belongs to the model"
            )


def _copied(companion: Companion, folder: Path, place: str, key: str) -> dict[str, str]:
    """Copy a companion's weights into the directory; return what config.json says of where they are."""
    source = companion.path
    if source is None:
        return {}
    if source.is_dir():
        shutil.copytree(source, folder / place)
        return {key: place}
    (folder / place).mkdir()
    shutil.copyfile(source, folder / place / source.name)
    return {key: f"{place}/{source.name}"}


def _config(description: ModelDescription, names: Mapping[str, str]) -> dict[str, Any]:
    sampling = description.sampling
    return {
        "format_version": FORMAT_VERSION,
        "family": FAMILY,
        "name": description.name,
        "transformer": dict(description.transformer),
        "tokenizer": dict(description.tokenizer),
        "scale_schedule": [list(size) for size in description.scale_schedule],
        "sampling": {
            "guidance": list(sampling.guidance),
            "temperature": list(sampling.temperature),
            "top_p": sampling.top_p,
        },
        "sizes": PUBLISHED_SIZES,
        "files": {part: name for part, name in names.items() if part != TEXT_ENCODER},
        "text": {"path": TEXT_ENCODER},
    }
