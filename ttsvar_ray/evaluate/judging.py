"""Images one after another to whoever judges them, here or elsewhere, and what was found of each into a file.

    images --not in the file yet--> judge, in any order --> the file, in the order of the images

So the file has the same bytes whoever judged, and after a stop the same command goes on behind its last line.
It is JSONL, one line an image; the first line says what the verdicts rest on, and only the same evaluation
goes on in it. A line counts once it is whole: a last one that was cut short is written again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.errors import ConfigurationError, OutputError, brief, doing
from ttsvar_ray.storage.location import locate
from ttsvar_ray.types import UInt8Array


class VerdictFile:
    """Verdicts by the digest of image and prompt; to be used as a context.

    Args:
        path: made where it is not there.
        basis: everything but the images that verdicts rest on, as JSON has it.

    Raises:
        OutputError: the file has verdicts that rest on something else, or is no such file.
    """

    def __init__(self, path: Path, basis: Mapping[str, Any]) -> None:
        self.path = path
        self._found: dict[str, Mapping[str, Any]] = {}
        self._file = path.open("a+b")
        try:
            self._read({"basis": dict(basis)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> VerdictFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, digest: str) -> Mapping[str, Any] | None:
        """Return what was found of an image; None where there is no verdict on it."""
        return self._found.get(digest)

    def __getitem__(self, digest: str) -> Mapping[str, Any]:
        return self._found[digest]

    def add(self, digest: str, found: Mapping[str, Any]) -> None:
        """Write what was found of an image; it is there when this returns."""
        self._write({"digest": digest, **found})
        self._found[digest] = found

    def _read(self, expected: Mapping[str, Any]) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            try:
                content = json.loads(line)
                if number:
                    self._found[content.pop("digest")] = content
                else:
                    self._compare(content["basis"], expected["basis"])
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path}: line {number + 1}: expected verdicts of an evaluation; choose another file"
                ) from error
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._write(expected)

    def _compare(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        differ = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        if differ:
            changes = "; ".join(
                f"{name}: {found.get(name)} there, {expected.get(name)} now" for name in differ
            )
            raise OutputError(
                f"{self.path}: its verdicts rest on something else ({changes}); choose another file"
            )

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedImage:
    """One image file and its prompt.

    Attributes:
        key: unique name within the run or folder.
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

    def judged(image: AskedImage) -> Mapping[str, Any]:
        with doing(f"judging {image.key}"):
            return judge(image)

    return lambda images: (((place, image), judged(image)) for place, image in images)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """What was asked of one image, and what was found of it.

    Attributes:
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


def verdict_file(source: str, benchmark: str) -> Path:
    """Return where verdicts go by default."""
    local = locate(source).local_path
    if local is None:
        raise ConfigurationError(f"--verdicts: expected a local file, since {source} is not local; name one")
    return local.with_name(f"{local.name}.{benchmark}.jsonl")


def images_of(
    source: str,
    which: str | None,
    *,
    of_run: Callable[[OutputLayout, RunManifest, bool], Iterator[AskedImage]],
    of_folder: Callable[[Path], Iterator[AskedImage]],
    is_folder: Callable[[Path], object],
    expected: str,
) -> tuple[Iterator[AskedImage], Mapping[str, Any]]:
    """Return the images of a run, or of a folder of an expected kind, and what is to be known of them.

    Args:
        source: a path or URI.
        which: images of a run: "best", which is the default, or "all".
        expected: the folders that `is_folder` knows, in words.

    Raises:
        OutputError: neither is there.
        ConfigurationError: `which` is said of a folder.
    """
    layout = OutputLayout(source)
    manifest = read_manifest(layout)
    if manifest is not None:
        kept = which or "best"
        return of_run(layout, manifest, kept == "best"), {**told_of_run(manifest), "images": kept}
    if not is_folder(Path(source)):
        raise OutputError(f"{source}: expected the output of a run, or {expected}, found neither")
    if which is not None:
        raise ConfigurationError(
            f"--images: {source} is no run, so that no image in it is the best; remove it"
        )
    return of_folder(Path(source)), {"folder": source}
