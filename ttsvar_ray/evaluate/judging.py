"""Images one after another to whoever judges them, here or elsewhere, and what was found of each into a file.

    images --not in the file yet--> judge, in any order --> the file, in the order of the images

So the file has the same bytes whoever judged, and after a stop the same command goes on behind its last line.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.errors import OutputError, brief
from ttsvar_ray.evaluate.verdict_file import VerdictFile
from ttsvar_ray.types import UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """One image file and its prompt.

    Attributes:
        key: unique name within the run or folder.
        encoded: the file.
        prompt: what it was drawn from; its `key` is a line of text that equal prompts share, and no others.
    """

    key: str
    encoded: bytes
    prompt: Any

    @property
    def digest(self) -> str:
        """Return the sha256 of the file and the prompt: a verdict holds as long as it stays."""
        return hashlib.sha256(self.prompt.key.encode() + b"\n" + self.encoded).hexdigest()

    def pixels(self) -> UInt8Array:
        """Return uint8 RGB [height, width, 3], turned as its EXIF says.

        Raises:
            OutputError: the file is no image, or is damaged.
        """
        try:
            with Image.open(io.BytesIO(self.encoded)) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise OutputError(f"{self.key}: not an image that can be read ({brief(error)})") from error


Numbered: TypeAlias = tuple[int, AskedImage]
JudgeEach: TypeAlias = Callable[[Iterator[Numbered]], Iterator[tuple[Numbered, Mapping[str, Any]]]]
"""Asks for images and yields each with what was found of it, in any order."""


def here(judge: Callable[[AskedImage], Mapping[str, Any]]) -> JudgeEach:
    """Return what judges in this process, one image in memory at a time."""
    return lambda images: (((place, image), judge(image)) for place, image in images)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """What was asked of one image, and what was found of it.

    Attributes:
        prompt: as in `AskedImage`.
        found: as JSON has it.
    """

    prompt: Any
    found: Mapping[str, Any]


def judge_images(
    images: Iterable[AskedImage],
    verdicts: VerdictFile,
    each: JudgeEach,
    *,
    on_image: Callable[[int], None] = lambda done: None,
) -> list[JudgedImage]:
    """Judge every image that has no verdict yet.

    Args:
        images: to judge; of equal images of one prompt one is looked at.
        verdicts: goes on from, and is added to.
        each: judges.
        on_image: called with the number of images judged so far, those of earlier sessions among them.

    Raises:
        OutputError: there is no image, or one cannot be read.
        InputError: an image whose prompt cannot be judged.
    """
    order: list[tuple[str, Any]] = []
    asked: dict[str, int] = {}

    def new() -> Iterator[Numbered]:
        for image in images:
            digest = image.digest
            order.append((digest, image.prompt))
            if digest not in asked and verdicts.get(digest) is None:
                asked[digest] = len(asked)
                yield asked[digest], image
            elif digest not in asked:
                on_image(len(order) - len(asked))

    waiting: dict[int, tuple[str, Mapping[str, Any]]] = {}
    written = 0
    for (place, image), found in each(new()):
        waiting[place] = (image.digest, {"image": image.key, **found})
        while written in waiting:
            verdicts.add(*waiting.pop(written))
            written += 1
            on_image(len(order) - len(asked) + written)
    if not order:
        raise OutputError("expected images to judge, found none")
    return [JudgedImage(prompt=prompt, found=verdicts[digest]) for digest, prompt in order]


def told_of_run(manifest: RunManifest) -> dict[str, Any]:
    """Return what of a run decides its scores: settings, sampling, seed, prompts, rewriting, software."""
    return {
        "config_digest": manifest.config_digest,
        "settings": dict(manifest.content),
        "seed": manifest.seed,
        "sampling": manifest.config.get("sampling"),
        "prompts": {
            "path": manifest.prompts_path,
            "digest": manifest.prompts_digest,
            "rewrite": (manifest.config.get("prompts") or {}).get("rewrite"),
        },
        "versions": dict(manifest.versions),
    }
