"""Images to judge and what was asked of them: from a run's parts, or from a folder in GenEval's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ttsvar_ray.dataset.export import exported_images
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.errors import InputError, brief
from ttsvar_ray.evaluate.geneval_prompts import read_prompt
from ttsvar_ray.evaluate.judging import AskedImage


def images_of_run(layout: OutputLayout, manifest: RunManifest, *, best_only: bool) -> Iterator[AskedImage]:
    """Yield a run's images, whose prompt file was GenEval's: its columns were carried along.

    Raises:
        OutputError: a part is damaged.
        InputError: a row has no metadata of GenEval.
    """
    for image in exported_images(layout, manifest.column_types, best_only=best_only):
        prompt = read_prompt(image.metadata, where=f"{layout.root}: row {image.metadata['row']}")
        yield AskedImage(key=image.key, encoded=image.encoded, prompt=prompt)


def images_of_folder(folder: Path) -> Iterator[AskedImage]:
    """Yield the images of `00000/metadata.jsonl` and `00000/samples/0000.png`, and so on.

    As in the official code, folders and files whose names are no numbers are passed over.

    Raises:
        OutputError: there is no such folder, or an image cannot be read.
        InputError: metadata are missing or are not GenEval's.
    """
    for place in prompt_folders(folder):
        path = place / "metadata.jsonl"
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected one line of GenEval's metadata ({brief(error)})") from error
        if not isinstance(metadata, dict):
            raise InputError(f"{path}: expected a JSON object, found {type(metadata).__name__}")
        prompt = read_prompt(metadata, where=str(path))
        samples = place / "samples"
        files = sorted(samples.iterdir()) if samples.is_dir() else []
        for file in files:
            if re.fullmatch(r"\d+\.png", file.name):
                key = file.relative_to(folder).as_posix()
                yield AskedImage(key=key, encoded=file.read_bytes(), prompt=prompt)


def prompt_folders(folder: Path) -> list[Path]:
    """Return the folders of the prompts, in order; none where the layout is another one."""
    if not folder.is_dir():
        return []
    return sorted(place for place in folder.iterdir() if place.is_dir() and place.name.isdigit())
