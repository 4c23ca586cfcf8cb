"""Weight files: reading published ones as they are, and writing safetensors one tensor at a time.

Reading maps files into memory instead of copying them, executes nothing, and undoes how files are wrapped:
one flat .pth, a training checkpoint, a folder of shards with an index, a file with several models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from ttsvar_ray.errors import CheckpointError

Weights = dict[str, Tensor]

NESTINGS: tuple[tuple[str, ...], ...] = (("trainer", "gpt_fsdp"), ("vae",))
"""Where published .pth files hold the state dict: in a training checkpoint, in a tokenizer beside an EMA."""

INDEX_SUFFIX = ".index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def read_weights(path: Path) -> Weights:
    """Read a .safetensors file, a .pth/.pt/.bin file, or a folder of shards; to CPU, executing nothing.

    Raises:
        CheckpointError: nothing there, not a weights file, or shards missing.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected weights (.safetensors, .pth, .pt) or a folder of shards"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not readable as plain tensors (weights_only): {error}") from error
    for nesting in NESTINGS:
        inner = content
        for key in nesting:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected names and tensors, found {type(content).__name__}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read_folder(folder: Path) -> Weights:
    indexes = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    # Some repositories hold the same weights twice.
    safe = [index for index in indexes if index.name.endswith(f".safetensors{INDEX_SUFFIX}")]
    indexes = safe if len(safe) == 1 else indexes
    if not indexes:
        for suffix in _WEIGHT_SUFFIXES:
            files = [file for file in folder.iterdir() if file.suffix == suffix]
            if len(files) == 1:
                return read_weights(files[0])
    if len(indexes) != 1:
        raise CheckpointError(
            f"{folder}: expected one *{INDEX_SUFFIX} naming the shards, found {len(indexes)}"
        )
    names = shard_names(indexes[0])
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{folder}: {len(absent)} of {len(names)} shards missing, first {absent[0]}")
    weights: Weights = {}
    for name in names:
        shard = read_weights(folder / name)
        if twice := sorted(shard.keys() & weights.keys()):
            raise CheckpointError(f"{folder / name}: {twice[0]} is in an earlier shard too")
        weights |= shard
    return weights


def shard_names(index: Path) -> list[str]:
    """Return the files that an index names.

    Raises:
        CheckpointError: not an index, or a name that leads out of its folder.
    """
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in placed.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of shards: {error!r}") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: expected plain file names, got {name!r}")
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """A tensor that is to be written: made when its turn comes, and let go after.

    Attributes:
        dtype, shape: of what `make` returns.
        make: returns the tensor, on any device.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


_NAMES_OF_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(path: Path, tensors: Mapping[str, TensorPlan]) -> None:
    """Write one safetensors file, holding one tensor in memory at a time.

    The file appears under its name only when whole.

    Raises:
        CheckpointError: a dtype that the format has no name for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES_OF_DTYPES:
            raise CheckpointError(f"{name}: cannot be stored as {tensor.dtype}")
        header[name] = {
            "dtype": _NAMES_OF_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name, tensor in tensors.items():
            made = tensor.make()
            if made.dtype != tensor.dtype or tuple(made.shape) != tensor.shape:
                raise CheckpointError(
                    f"{name}: planned as {tensor.dtype} {tensor.shape}, made as {made.dtype} "
                    f"{tuple(made.shape)}"
                )
            _write_bytes(stream, made)
    partial.replace(path)


def _write_bytes(stream: BinaryIO, tensor: Tensor) -> None:
    data = tensor.detach().cpu().contiguous().reshape(-1)
    if data.numel():
        # numpy has no bfloat16; bytes are bytes.
        stream.write(data.view(torch.uint8).numpy().data)


def write_shards(folder: Path, tensors: Mapping[str, TensorPlan], *, largest: int) -> None:
    """Write tensors to a folder of safetensors files with an index.

    Args:
        folder: made if absent.
        tensors: in the order in which they are written.
        largest: bytes of one file, unless a single tensor is larger.
    """
    groups = _groups(tensors, largest)
    folder.mkdir(parents=True, exist_ok=True)
    placed: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names})
        placed |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / f"model.safetensors{INDEX_SUFFIX}").write_text(json.dumps(index, indent=1) + "\n")


def _groups(tensors: Mapping[str, TensorPlan], largest: int) -> Sequence[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups
