"""The contact sheet."""

from __future__ import annotations

import numpy as np
import pytest

from ttsvar_ray.report.contact_sheet import contact_sheet


def plain(color: tuple[int, int, int], height: int = 48, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def test_images_marks_and_captions_land_on_the_page() -> None:
    colors = [(10, 20, 200), (200, 20, 10), (20, 200, 10)]
    sheet = contact_sheet(
        [plain(color) for color in colors],
        ["a", "b", "c"],
        marks=[True, False, None],
        columns=2,
        tile=96,
        title="Three",
    )
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert sheet.mode == "RGB"
    for color in colors:
        assert (pixels == color).all(axis=1).sum() == 96 * 96
    green, red = (pixels == (25, 145, 70)).all(axis=1), (pixels == (205, 45, 45)).all(axis=1)
    # A frame of three pixels around a tile of 96.
    assert green.sum() == red.sum() == 102 * 102 - 96 * 96
    taller = contact_sheet([plain(colors[0])] * 3, ["a"] * 3, columns=1, tile=96)
    assert taller.height > sheet.height > taller.height / 2
    assert taller.width < sheet.width


def test_long_captions_are_wrapped_and_cut() -> None:
    short = contact_sheet([plain((0, 0, 0))], ["word"], tile=96)
    wrapped = contact_sheet([plain((0, 0, 0))], ["two lines of words here"], tile=96)
    cut = contact_sheet([plain((0, 0, 0))], ["word " * 200], tile=96)
    unbroken = contact_sheet([plain((0, 0, 0))], ["x" * 400], tile=96)
    assert short.height < wrapped.height < cut.height
    assert cut.height == unbroken.height
    assert cut.width == unbroken.width == short.width
    # No ink beyond the tile: the right margin stays paper.
    assert (np.asarray(unbroken)[:, -11:] == 255).all()


@pytest.mark.timeout(20)
def test_a_caption_that_is_one_long_word_takes_no_longer_than_a_short_one() -> None:
    # As texts are that are written without blanks; measured to its end, it takes minutes.
    word = "猫" * 20_000
    long, short = (contact_sheet([plain((0, 0, 0))], [text], tile=96) for text in (word, word[:100]))
    assert np.array_equal(np.asarray(long), np.asarray(short))


def test_images_of_other_sizes_keep_their_proportions() -> None:
    sheet = contact_sheet([plain((9, 9, 9), 32, 64), plain((99, 9, 9), 256, 256)], ["", ""], tile=64)
    pixels = np.asarray(sheet).reshape(-1, 3)
    assert (pixels == (9, 9, 9)).all(axis=1).sum() == 64 * 32
    assert (pixels == (99, 9, 9)).all(axis=1).sum() == 64 * 64


def test_nonsense_is_refused() -> None:
    image = plain((0, 0, 0))
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match=r"images \(1\), got 2 captions"):
        contact_sheet([image], ["a", "b"])
    with pytest.raises(ValueError, match="2 marks"):
        contact_sheet([image], ["a"], marks=[True, False])
    with pytest.raises(ValueError, match=r"images\[0\]: expected uint8"):
        contact_sheet([image[..., 0]], ["a"])
    with pytest.raises(ValueError, match="columns 0"):
        contact_sheet([image], ["a"], columns=0)
