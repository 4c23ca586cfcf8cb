"""A contact sheet: many images on one page, each over its caption, some marked right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ttsvar_ray.types import UInt8Array

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (205, 205, 205)
_RIGHT, _WRONG = (25, 145, 70), (205, 45, 45)
_GAP, _FRAME, _FONT_SIZE, _TITLE_SIZE = 12, 3, 13, 18
_MAX_LINES = 4


def contact_sheet(
    images: Sequence[UInt8Array],
    captions: Sequence[str],
    *,
    marks: Sequence[bool | None] | None = None,
    columns: int = 6,
    tile: int = 144,
    title: str | None = None,
) -> Image.Image:
    """Return one page with every image above its caption, row by row.

    Args:
        images: uint8 RGB [height, width, 3] each; sizes may differ. Each is fitted into its tile with its
            proportions kept: small ones are enlarged without smoothing, so that their pixels stay visible.
        captions: one text an image; wrapped, and cut with an ellipsis after four lines.
        marks: True frames an image in green, False in red, None in grey; omitted: all grey.
        tile: side of an image's place in pixels.
        title: a line above everything.

    Raises:
        ValueError: no images, lengths that differ, an image of another kind, or too few columns or pixels.
    """
    shades: Sequence[bool | None] = [None] * len(images) if marks is None else marks
    _require(images, captions, shades, columns, tile)
    font, title_font = ImageFont.load_default(_FONT_SIZE), ImageFont.load_default(_TITLE_SIZE)
    cell = tile + 2 * _FRAME
    texts = [_wrap(caption, font, cell) for caption in captions]
    line_height = _FONT_SIZE + 3
    columns = min(columns, len(images))
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [cell + 4 + line_height * max(len(texts[i]) for i in row) + _GAP for row in rows]
    width = _GAP + columns * (cell + _GAP)
    titles = [] if title is None else _wrap(title, title_font, width - 2 * _GAP)
    top = _GAP + (len(titles) * (_TITLE_SIZE + 6) + _GAP if titles else 0)
    page = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(titles):
        draw.text((_GAP, _GAP + number * (_TITLE_SIZE + 6)), line, font=title_font, fill=_INK)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            x = _GAP + place * (cell + _GAP)
            mark = shades[index]
            color = _FAINT if mark is None else _RIGHT if mark else _WRONG
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=color, width=_FRAME)
            picture = _fit(images[index], tile)
            page.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
            for number, line in enumerate(texts[index]):
                draw.text((x, y + cell + 4 + number * line_height), line, font=font, fill=_INK)
        y += height
    return page


def _require(
    images: Sequence[UInt8Array],
    captions: Sequence[str],
    marks: Sequence[bool | None],
    columns: int,
    tile: int,
) -> None:
    """Refuse what cannot be laid out."""
    if not images:
        raise ValueError("images: expected at least one, got none")
    if not len(images) == len(captions) == len(marks):
        raise ValueError(
            f"expected as many captions and marks as images ({len(images)}), "
            f"got {len(captions)} captions and {len(marks)} marks"
        )
    if columns < 1 or tile < 16:
        raise ValueError(f"expected columns >= 1 and tile >= 16, got columns {columns} and tile {tile}")
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"images[{index}]: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
            )


def _fit(image: UInt8Array, tile: int) -> Image.Image:
    """Return an image scaled so that its longer side is `tile` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = tile / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return picture.resize(size, method)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return a text as lines of at most `width` pixels, at most four of them; a longer word is broken."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        trial = f"{current} {word}".strip()
        if font.getlength(trial) <= width:
            current = trial
            continue
        if current:
            lines.append(current)
        current = word
        # What is beyond the last line is not measured: a word may be as long as a prompt.
        while len(lines) <= _MAX_LINES and font.getlength(current) > width:
            end = next(end for end in range(1, len(current) + 1) if font.getlength(current[:end]) > width)
            lines.append(current[: max(1, end - 1)])
            current = current[max(1, end - 1) :]
    lines.append(current)
    if len(lines) > _MAX_LINES:
        lines = lines[:_MAX_LINES]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip() + "…"
    return lines
