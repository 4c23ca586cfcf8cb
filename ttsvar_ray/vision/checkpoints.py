"""Published weights into modules: read without running code, renamed by a table, and strictly.

Comes in: a file or a directory of the publisher, and a key table. Goes out: a module whose every weight was
in it. Whatever is missing, left over or of another shape is named at once, and nothing is fetched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ttsvar_ray.errors import CheckpointError

if TYPE_CHECKING:
    # Models read their weights here, too: no process is to wait seconds for what it does not use.
    from transformers import PretrainedConfig, PreTrainedModel

_Module = TypeVar("_Module", bound=nn.Module)

LISTED = 8
"""How many names of one kind a message lists."""

KeyTable = Sequence[tuple[str, str | None]]
"""(pattern of the published key, our key), the first match counts. None is dropped on purpose; a row with
{part} is a fused attention, split in query, key and value."""


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where a constructor would draw weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_, Tensor.erfinv_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Let modules be built on the meta device, where they have shapes and no weights.

    `torch.device("meta")` does that too, but has an embedding drawn all the same, in Python that imports
    torch's compiler first: seconds that each process would wait for nothing.
    """
    with torch.device("meta"), _Unfilled():
        yield


def read_published(path: Path, *, expected: str, inside: str | None = None) -> dict[str, Tensor]:
    """Read a .pth or .pt file of tensors (weights only, no code in it is run).

    Args:
        expected: what it should be, for messages, such as "the published ImageReward.pt".
        inside: key under which the file holds its tensors; None where it holds nothing else.

    Raises:
        CheckpointError: no such file, or something else than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected {expected}")
    # Files of the older format cannot be mapped.
    content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    if inside is not None:
        content = content.get(inside) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        under = "" if inside is None else f" under the key {inside!r}"
        raise CheckpointError(f"{path}: expected a dictionary of tensors{under}, as in {expected}")
    return dict(content)


def rename_keys(weights: Mapping[str, Tensor], table: KeyTable, *, source: str) -> dict[str, Tensor]:
    """Return published weights under our names.

    Raises:
        CheckpointError: a key in no row of the table, or a weight that is there under two names.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in weights.items():
        target = _target(key, table, source)
        if target is None:
            continue
        if target in origin:
            raise CheckpointError(
                f"{source}: {origin[target]} and {key}: two names of one weight; expected one of them"
            )
        origin[target] = key
        if "{part}" in target:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[target.replace("{part}", part)] = third
        else:
            renamed[target] = tensor
    return renamed


def _target(key: str, table: KeyTable, source: str) -> str | None:
    for pattern, target in table:
        if match := re.fullmatch(pattern, key):
            return None if target is None else match.expand(target)
    raise CheckpointError(f"{source}: unknown key {key!r}; these are not the published weights")


def load_strict(
    module: nn.Module, weights: Mapping[str, Tensor], *, source: str, optional: str = "", assign: bool = False
) -> None:
    """Put weights into a module; all names and shapes must fit.

    Args:
        module: may be on the meta device where `assign` is set.
        weights: under the module's names.
        source: where they came from, for messages.
        optional: regular expression of the module's names that may be missing, and stay as they are.
        assign: take the tensors themselves, in their dtype, instead of copying their values.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    check_fit(module, weights, source=source, optional=optional)
    module.load_state_dict(weights, strict=not optional, assign=assign)


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, optional: str = "") -> None:
    """See that weights have the names and shapes of a module; see `load_strict`.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    expected = module.state_dict()
    _refuse_misfits(
        missing=[key for key in expected if key not in weights and not re.fullmatch(optional, key)],
        unexpected=[key for key in weights if key not in expected],
        misshapen=[
            f"{key} (expected {tuple(value.shape)}, got {tuple(weights[key].shape)})"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
        source=source,
    )


def _refuse_misfits(
    *, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str], source: str
) -> None:
    """Raise a CheckpointError that names every key that does not fit; nothing where all do."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]
    if problems:
        raise CheckpointError(
            f"{source}: weights do not fit the architecture of the model: {'; '.join(problems)}"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown}, ... and {len(names) - LISTED} more"


def from_folder(kind: Any, folder: Path, **more: Any) -> Any:
    """Return what transformers makes of a folder: never of a hub, and none of the code in it is run."""
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)


def load_pretrained(model_class: type[PreTrainedModel], folder: Path, *, ignored: str = "") -> Any:
    """Load a directory that transformers saved, in float32 on the CPU; never from a hub.

    Args:
        folder: holds config.json and the weights.
        ignored: regular expression of keys in the weights that this network leaves out on purpose.

    Raises:
        CheckpointError: not such a directory, or weights that do not fit its configuration.
    """
    if not (folder / "config.json").is_file():
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: expected config.json and weights as transformers saves them; found {found}"
        )
    try:
        model, report = from_folder(
            model_class,
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            # Reported below, with everything else that is wrong.
            ignore_mismatched_sizes=True,
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    # Position ids were saved as buffers once; they are no weights.
    known = rf"(.*\.)?position_ids|{ignored}"
    _refuse_misfits(
        missing=sorted(report["missing_keys"]),
        unexpected=sorted(key for key in report["unexpected_keys"] if not re.fullmatch(known, key)),
        misshapen=sorted(str(key) for key in report["mismatched_keys"]),
        source=str(folder),
    )
    return model


def build_pretrained(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Return a network of transformers with weights under its names, on the CPU.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    with on_meta():
        check_fit(model_class(config), weights, source=source)
    # Unlike the constructor, it draws no initial weights.
    return model_class.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=dtype, trust_remote_code=False
    )


def build_loaded(
    make: Callable[[], _Module],
    weights: Mapping[str, Tensor],
    *,
    device: torch.device,
    source: str,
    narrow: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> _Module:
    """Return a module with given weights, in evaluation mode.

    Nothing is initialised only to be overwritten, and no weight is held twice: each goes to the device in
    its dtype alone, from files that are mapped, not read.

    Args:
        make: builds the module.
        weights: under the module's own names.
        source: of the weights, for messages.
        narrow: prefix of the names that are held in `dtype`; the rest is float32.
        dtype: see `narrow`.
    """
    with on_meta():
        module = make()
    placed = {
        key: value.to(device, dtype if narrow and key.startswith(narrow) else torch.float32)
        for key, value in weights.items()
    }
    load_strict(module, placed, source=source, assign=True)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:  # no file holds it: it is zero in every model
                beside = next(part.parameters(recurse=False))
                part.register_buffer(name, beside.new_zeros(buffer.shape), persistent=False)
    return module.requires_grad_(False).eval()
