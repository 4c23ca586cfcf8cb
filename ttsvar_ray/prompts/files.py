"""Which files a prompt set is: one, several, those of a pattern, those of a folder."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.fs as pafs

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.hub_dataset import dataset_files, is_dataset
from ttsvar_ray.prompts.source import (
    PromptFormat,
    PromptSource,
    check_readable,
    fits_pattern,
    format_of,
    is_prompt_file,
)
from ttsvar_ray.storage.location import Location, locate
from ttsvar_ray.storage.uris import is_uri, split_query, without_secrets


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One file of a prompt set."""

    location: Location
    format: PromptFormat


def prompt_files(source: PromptSource) -> list[PromptFile]:
    """Return the files of a prompt set in the order in which they are read.

    Those of a pattern, a folder or a data set of the hub are in the order of their names.

    Raises:
        InputError: none, one that cannot be read, or files of several formats.
    """
    for name, value in (("split", source.split), ("subset", source.subset)):
        if value is not None and not any(map(is_dataset, source.paths)):
            raise InputError(
                f"prompts.{name}: read of a data set of the hub only (hf://datasets/OWNER/NAME); the prompts "
                f"are {source.name}; remove it"
            )
    locations = [location for path in source.paths for location in _locations(path, source)]
    for location in locations:
        check_readable(location)
    files = [PromptFile(location, source.format or format_of(location)) for location in locations]
    formats = sorted({file.format.value for file in files})
    if len(formats) > 1:
        raise InputError(
            f"{source.name}: expected files of one format, got {', '.join(formats)}; name those that are "
            "meant by a pattern, such as set/*.jsonl"
        )
    return files


def _locations(path: str, source: PromptSource) -> Iterator[Location]:
    any_format = source.format is not None
    if is_dataset(path):
        yield from dataset_files(path, split=source.split, subset=source.subset, any_format=any_format)
        return
    remote = is_uri(path)
    if not remote and any(char in path for char in "*?[") and not Path(path).expanduser().exists():
        found = [Path(each) for each in sorted(glob.glob(str(Path(path).expanduser()), recursive=True))]  # noqa: PTH207
        yield from _some([locate(each) for each in found if each.is_file()], path)
        return
    if remote and "*" in path:
        yield from _some(_matching(path), path)
        return
    location = locate(path)
    if not location.is_folder():
        yield location
        return
    inside = [
        location / name
        for name in location.names()
        if not name.startswith((".", "_")) and (any_format or is_prompt_file(location / name))
    ]
    yield from _some([each for each in inside if each.is_file()], path)


def _some(found: list[Location], path: str) -> list[Location]:
    if not found:
        raise InputError(f"{without_secrets(path)}: expected prompt files, found none")
    return found


def _matching(pattern: str) -> list[Location]:
    """Return the files of a store that match a pattern: `*` for what has no slash, `**` for what may have."""
    text, query = split_query(pattern)
    base = text[: text.index("*")].rpartition("/")[0]
    tail = text[len(base) + 1 :]
    folder = locate(base + query)
    selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive="/" in tail)
    infos = sorted(folder.listed(selector), key=lambda info: info.path)
    wanted = f"{folder.path}/{tail}"
    return [
        replace(folder, path=info.path)
        for info in infos
        if info.type == pafs.FileType.File and fits_pattern(info.path, wanted)
    ]
