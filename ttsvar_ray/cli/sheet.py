"""`ttsvar-ray sheet`: the best images of a run, or of several side by side, on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.show import table_lines

if TYPE_CHECKING:
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.types import UInt8Array

SHEET_NAME = "contact_sheet.png"
SHEET_IMAGES = 48
COLUMNS = 8
NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShownImage:
    """The best image of one prompt.

    Attributes:
        kind: of the caption, or "not judged" where the text is none of the built-in world's.
        correct: the exact checker's verdict; None where it has none.
        pixels: uint8 RGB [height, width, 3]; None for images that the sheet has no place for.
    """

    prompt: str
    kind: str
    correct: bool | None
    reward: float
    pixels: UInt8Array | None


def sheet(
    outputs: Annotated[
        list[str],
        typer.Argument(help="Output of a run; several are shown side by side.", metavar="OUTPUT..."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help=f"PNG to write; by default {SHEET_NAME} in the first OUTPUT.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Draw the best image of each prompt on one page (PNG), for any model.

    Captions of the built-in world are judged by its exact checker: framed green where right, red where
    wrong, with the accuracy by kind.

    Example: ttsvar-ray sheet outputs/mine outputs/raw --to both.png
    """
    from ttsvar_ray.errors import InputError
    from ttsvar_ray.storage.uris import is_uri

    if to is None and is_uri(outputs[0]):
        raise InputError(f"{outputs[0]}: expected --to FILE.png, where the sheet of such an output goes")
    runs = {output: shown_images(output) for output in outputs}
    path = options.file_to_write(to or Path(outputs[0]) / SHEET_NAME, "--to", picture=True)
    first = runs[outputs[0]]
    if len(runs) == 1:
        save_sheet(first, path, title=f"{Path(outputs[0]).name}: {summary_words(first)}")
    else:
        save_side_by_side({Path(output).name: images for output, images in runs.items()}, path)
    for output, images in runs.items():
        typer.echo("\n".join([*([f"{output}:"] if len(runs) > 1 else []), *accuracy_lines(images), ""]))
    typer.echo(f"contact sheet  {path}")


def shown_images(output: str | Path) -> list[_ShownImage]:
    """Return the best image of every prompt of a run, in the order of the prompts, with its verdict.

    Raises:
        OutputError: no run there, or one without images.
    """
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.errors import InputError, OutputError
    from ttsvar_ray.shapes.checker import check
    from ttsvar_ray.shapes.world import parse_caption

    shown: list[_ShownImage] = []
    for prompt, pixels, reward in best_images(OutputLayout(output)):
        try:
            caption = parse_caption(prompt)
        except InputError:
            kind, correct = NOT_JUDGED, None
        else:
            kind, correct = caption.kind.value, check(pixels, caption).correct
        kept = pixels if len(shown) < SHEET_IMAGES else None
        shown.append(_ShownImage(prompt=prompt, kind=kind, correct=correct, reward=reward, pixels=kept))
    if not shown:
        raise OutputError(f"{output}: expected a run with images in its folder data, found none")
    return shown


def best_images(layout: OutputLayout) -> Iterator[tuple[str, UInt8Array, float]]:
    """Yield prompt, pixels and reward of the best image of each prompt."""
    import numpy as np

    from ttsvar_ray.dataset.rows import image_rows, picture_of

    for part in layout.data_parts().values():
        for batch in image_rows(part, 64, ["prompt", "image", "image_rank", "reward"]):
            for row in batch:
                if row["image_rank"] == 0:
                    pixels = np.asarray(picture_of(row["image"]["bytes"]))
                    yield row["prompt"] or "", pixels, row["reward"]


def save_sheet(images: list[_ShownImage], path: Path, *, title: str) -> None:
    """Draw the first images of a run over their prompts."""
    _save([(image, image.prompt) for image in images], COLUMNS, path, title)


def save_side_by_side(runs: Mapping[str, list[_ShownImage]], path: Path) -> None:
    """Draw the first prompts that every run has an image of; a prompt's images stand next to each other.

    Args:
        runs: by label.
        path: PNG to write.

    Raises:
        InputError: no prompt has an image in every run.
    """
    from ttsvar_ray.errors import InputError

    by_prompt = [{image.prompt: image for image in reversed(images)} for images in runs.values()]
    common = [prompt for prompt in by_prompt[0] if all(prompt in images for images in by_prompt)]
    common = sorted(common, key=[image.prompt for image in next(iter(runs.values()))].index)
    if not common:
        raise InputError(f"expected a prompt that all of {', '.join(runs)} have an image of, found none")
    tiles = [
        (images[prompt], f"{label}: {prompt}")
        for prompt in common
        for label, images in zip(runs, by_prompt, strict=True)
    ]
    _save(tiles, len(runs) * max(1, COLUMNS // len(runs)), path, "   ".join(runs))


def _save(tiles: list[tuple[_ShownImage, str]], columns: int, path: Path, title: str) -> None:
    from ttsvar_ray.report.contact_sheet import contact_sheet

    shown = [(image, image.pixels, words) for image, words in tiles if image.pixels is not None]
    contact_sheet(
        [pixels for _, pixels, _ in shown],
        [words for *_, words in shown],
        marks=[image.correct for image, *_ in shown],
        columns=columns,
        title=title,
    ).save(path)


def accuracy(images: list[_ShownImage]) -> tuple[float, float]:
    """Return the share of right images among those judged, and its standard error; NaN if none is."""
    judged = [image.correct for image in images if image.correct is not None]
    if not judged:
        return math.nan, math.nan
    share = sum(judged) / len(judged)
    return share, math.sqrt(share * (1 - share) / len(judged))


def summary_words(images: list[_ShownImage]) -> str:
    """Return "41 of 48 right", or "48 images" where none is judged."""
    judged = [image for image in images if image.correct is not None]
    return (
        f"{sum(bool(image.correct) for image in judged)} of {len(judged)} right"
        if judged
        else f"{len(images)} images"
    )


def accuracy_lines(images: list[_ShownImage]) -> list[str]:
    """Return the accuracy by kind of caption and over all, and how many have no verdict."""
    judged = [image for image in images if image.correct is not None]
    others = len(images) - len(judged)
    notes = [f"{others} {NOT_JUDGED}: no captions of the built-in world"] if others else []
    if not judged:
        return notes
    groups = {kind: [i for i in judged if i.kind == kind] for kind in dict.fromkeys(i.kind for i in judged)}
    rows = [
        (kind, f"{right}", f"{len(group)}", f"{right / len(group):.3f}")
        for kind, group in {**groups, "all": judged}.items()
        for right in (sum(bool(image.correct) for image in group),)
    ]
    *lines, last = table_lines(("kind", "right", "of", "accuracy"), rows)
    return [*lines, f"{last} (standard error {accuracy(judged)[1]:.3f})", *notes]
