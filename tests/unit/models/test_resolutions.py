from __future__ import annotations

import itertools

import pytest

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.infinity.resolutions import FULL_SCHEDULES, nearest_aspect, published_resolution


@pytest.mark.parametrize(
    ("size", "ratio", "image", "tokens"),
    [
        ("0.06M", 1.0, (256, 256), 521),
        ("0.25M", 1.0, (512, 512), 2521),
        ("0.60M", 1.0, (768, 768), 6425),
        ("1M", 1.0, (1024, 1024), 10521),
        ("1M", 1.5, (1248, 832), 10997),
        ("1M", 0.333, (592, 1776), 11123),
        ("0.60M", 2.5, (1280, 512), 6805),
        ("0.25M", 0.571, (384, 672), 2628),
    ],
)
def test_published_sizes(size: str, ratio: float, image: tuple[int, int], tokens: int) -> None:
    resolution = published_resolution(size, ratio)
    assert resolution.image_size == image
    assert sum(h * w for h, w in resolution.schedule) == tokens
    assert resolution.rope_grid == FULL_SCHEDULES[ratio][-1]


def test_every_template_has_thirteen_growing_scales_from_one_token() -> None:
    assert len(FULL_SCHEDULES) == 15
    for schedule in FULL_SCHEDULES.values():
        assert len(schedule) == 13
        assert schedule[0] == (1, 1)
        assert all(b[0] >= a[0] and b[1] >= a[1] for a, b in itertools.pairwise(schedule))


def test_nearest_template_and_ties() -> None:
    assert nearest_aspect(1.1) == 1.0
    assert nearest_aspect(1.125) == 1.0  # halfway to 1.25: the square comes first
    assert nearest_aspect(10.0) == 3.0
    assert nearest_aspect(9 / 16) == 0.571


def test_unknown_sizes_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"0\.06M, 0\.25M"):
        published_resolution("2M")
    with pytest.raises(ConfigurationError, match="aspect"):
        published_resolution("1M", 0.0)
