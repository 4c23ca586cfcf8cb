"""Prompts in a data set of the Hugging Face hub: which of its files are a split.

    hf://datasets/OWNER/NAME[@REVISION]     with prompts.split and prompts.subset

The card of the data set says so (`configs` at the head of its README.md); without that the names of its files
do, as on the hub: `data/train-00000-of-00002.parquet`, `test.jsonl`, `validation/...`. Code of a data set is
never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.fs as pafs
import yaml

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.source import fits_pattern, is_prompt_file
from ttsvar_ray.storage.location import Location, locate

_DATASET = re.compile(r"hf://datasets/[\w.-]+/[\w.-]+(@(refs/[\w.-]+/[\w.-]+|[^/\s]+))?")
_HEAD = re.compile(r"\s*---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_CARD = "README.md"
_CARD_BYTES = 1_000_000

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits, and the words in file names that mean them."""


def is_dataset(path: str) -> bool:
    """Whether a path names a whole data set of the hub, not a file or folder in one."""
    return _DATASET.fullmatch(path) is not None


def dataset_files(path: str, *, split: str | None, subset: str | None, any_format: bool) -> list[Location]:
    """Return the files of a split in the order of their names.

    Args:
        path: the data set, as `is_dataset` knows it.
        split, subset: by their names on the hub; None is the only one, else "train" and the default one.
        any_format: whether files are taken whatever their suffix.

    Raises:
        InputError: no such subset, split or file.
        StorageError: a data set that cannot be reached.
    """
    folder = locate(path)
    selector = pafs.FileSelector(folder.path, recursive=True)
    infos = folder.listed(selector)
    names = sorted(
        info.path.removeprefix(f"{folder.path}/") for info in infos if info.type == pafs.FileType.File
    )
    head: Mapping[str, Any] = {}
    if _CARD in names:
        with (folder / _CARD).open() as card:
            head = _head(card.read(_CARD_BYTES).decode("utf-8", errors="replace"))
    kept = [name for name in names if any_format or is_prompt_file(folder / name)]
    try:
        chosen = split_files(kept, head, split=split, subset=subset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return [folder / name for name in chosen]


def split_files(
    names: Sequence[str], head: Mapping[str, Any], *, split: str | None, subset: str | None
) -> list[str]:
    """Return those of a data set's files that are a split; see `dataset_files`.

    Args:
        names: of its prompt files, ascending, with their folders.
        head: what the head of its card says.
        split, subset: that are asked for.
    """
    configs = [each for each in _listed(head.get("configs")) if isinstance(each, Mapping)]
    found = {str(each.get("config_name", "default")): each for each in configs}
    if subset is not None and subset not in found:
        raise InputError(f"no subset {subset!r}; its card names {_shown(found)}; set prompts.subset")
    patterns = _patterns(found[subset or _default(found)]) if found else None
    if patterns is None:
        splits = _by_names([name for name in names if not _is_hidden(name)])
    else:
        splits = {
            key: [name for name in names if any(fits_pattern(name, pattern) for pattern in wanted)]
            for key, wanted in patterns.items()
        }
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        raise InputError(f"no split {split!r}; splits found: {_shown(splits)}; set prompts.split")
    if not splits[split]:
        raise InputError(f"split {split!r}: expected prompt files, found none")
    return splits[split]


def _head(card: str) -> Mapping[str, Any]:
    match = _HEAD.match(card)
    if match is None:
        return {}
    try:
        head = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, Mapping) else {}


def _default(found: Mapping[str, Mapping[str, Any]]) -> str:
    marked = [name for name, config in found.items() if config.get("default") is True]
    if marked or "default" in found or len(found) == 1:
        return next(iter(marked or (["default"] if "default" in found else found)))
    raise InputError(f"it has several subsets, {_shown(found)}; set prompts.subset")


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Return the patterns of each split, or None where the names of the files say what is a split."""
    splits: dict[str, list[str]] = {}
    below = f"{str(config['data_dir']).strip('/')}/" if config.get("data_dir") else ""
    for each in _listed(config.get("data_files")):
        name, paths = ("train", each)
        if isinstance(each, Mapping):
            name, paths = str(each.get("split", "train")), each.get("path")
        wanted = [below + str(path).removeprefix("./") for path in _listed(paths)]
        splits.setdefault(name, []).extend(wanted)
    return splits or ({"train": [f"{below}**"]} if below else None)


def _by_names(names: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for name in names:
        words = re.split(r"[^a-z]+", name.lower())
        means = next((key for key, known in _NAMES.items() if set(words) & set(known)), None)
        splits.setdefault(means or "", []).append(name)
    # Files that name no split are the set, where none does.
    unnamed = splits.pop("", [])
    return splits or {"train": unnamed}


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _shown(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
