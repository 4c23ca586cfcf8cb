"""`ttsvar-ray shapes-report`: a run of the built-in model judged by the exact checker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people
from ttsvar_ray.cli.show import table_lines

if TYPE_CHECKING:
    from ttsvar_ray.types import UInt8Array

SHEET_NAME = "contact_sheet.png"
SHEET_IMAGES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """The best image of one prompt and the checker's verdict."""

    prompt: str
    kind: str
    pixels: UInt8Array
    reward: float
    correct: bool


def shapes_report(
    output: Annotated[Path, typer.Argument(help="Output folder of a run.", metavar="OUTPUT")],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help=f"Contact sheet; by default OUTPUT/{SHEET_NAME}.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Print the checker's accuracy on a run of the built-in model and draw a contact sheet (PNG)."""
    with errors_for_people(debug=debug):
        judged = judge_output(output)
        path = sheet or output / SHEET_NAME
        save_sheet(judged, path, title=f"{output.name}: {accuracy_words(judged)}")
        typer.echo("\n".join([*accuracy_lines(judged), "", f"contact sheet  {path}"]))


def judge_output(output: Path) -> list[JudgedImage]:
    """Judge the best image of every prompt of a run, in the order of the prompts.

    Raises:
        OutputError: no run there, or one without images.
        InputError: a prompt that is no caption of the built-in world.
    """
    from ttsvar_ray.errors import OutputError
    from ttsvar_ray.shapes.captions import parse_caption
    from ttsvar_ray.shapes.checker import check

    judged = []
    for prompt, pixels, reward in _best_images(output):
        caption = parse_caption(prompt)
        correct = check(pixels, caption).correct
        judged.append(
            JudgedImage(prompt=prompt, kind=caption.kind.value, pixels=pixels, reward=reward, correct=correct)
        )
    if not judged:
        raise OutputError(f"{output}: expected a run with images in {output / 'data'}, found none")
    return judged


def _best_images(output: Path) -> Iterator[tuple[str, UInt8Array, float]]:
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    from ttsvar_ray.dataset import OutputLayout

    for part in OutputLayout(output).data_parts().values():
        with part.open_arrow() as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(64, columns=["prompt", "image", "image_rank", "reward"]):
                for row in batch.to_pylist():
                    if row["image_rank"] == 0:
                        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
                        yield row["prompt"], np.asarray(picture), row["reward"]


def save_sheet(judged: list[JudgedImage], path: Path, *, title: str) -> None:
    """Draw the first images of a run over their prompts, framed green where right and red where wrong."""
    from ttsvar_ray.report.contact_sheet import contact_sheet

    shown = judged[:SHEET_IMAGES]
    page = contact_sheet(
        [image.pixels for image in shown],
        [image.prompt for image in shown],
        marks=[image.correct for image in shown],
        columns=8,
        title=title,
    )
    page.save(path)


def accuracy(judged: list[JudgedImage]) -> tuple[float, float]:
    """Return the share of right images and its standard error."""
    share = sum(image.correct for image in judged) / len(judged)
    return share, math.sqrt(share * (1 - share) / len(judged))


def accuracy_words(judged: list[JudgedImage]) -> str:
    """Return "41 of 48 right"."""
    return f"{sum(image.correct for image in judged)} of {len(judged)} right"


def accuracy_lines(judged: list[JudgedImage]) -> list[str]:
    """Return the accuracy by kind of caption and over all prompts."""
    kinds = dict.fromkeys(image.kind for image in judged)
    groups = {kind: [image.correct for image in judged if image.kind == kind] for kind in kinds}
    groups["all"] = [image.correct for image in judged]
    rows = [
        (kind, f"{sum(right)}", f"{len(right)}", f"{sum(right) / len(right):.3f}")
        for kind, right in groups.items()
    ]
    *lines, last = table_lines(("kind", "right", "of", "accuracy"), rows)
    _, error = accuracy(judged)
    return [*lines, f"{last} (standard error {error:.3f})"]
