from __future__ import annotations

import itertools

import pytest

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.infinity.resolutions import (
    ASPECT_RATIOS,
    FULL_SCHEDULES,
    SCALES_OF_SIZE,
    height_over_width,
    nearest_aspect,
    published_resolution,
)

PUBLISHED = {
    3.0: ("432x144 864x288 1440x480 1776x592", (509, 2588, 7016, 11123)),
    2.5: ("400x160 800x320 1280x512 1600x640", (555, 2555, 6805, 10805)),
    2.0: ("352x176 736x368 1184x592 1440x720", (451, 2681, 7219, 11269)),
    1.75: ("336x192 672x384 1120x640 1344x768", (472, 2628, 7220, 11252)),
    1.5: ("336x224 624x416 1008x672 1248x832", (533, 2759, 6941, 10997)),
    1.333: ("320x240 576x432 960x720 1152x864", (665, 2657, 7085, 10973)),
    1.25: ("320x256 560x448 880x704 1120x896", (614, 2814, 6854, 10774)),
    1.0: ("256x256 512x512 768x768 1024x1024", (521, 2521, 6425, 10521)),
}
"""Height x width in pixels and tokens of 0.06M, 0.25M, 0.60M and 1M, by height / width."""

TRANSPOSED = {0.8: 1.25, 0.75: 1.333, 0.666: 1.5, 0.571: 1.75, 0.5: 2.0, 0.4: 2.5, 0.333: 3.0}


@pytest.mark.parametrize("ratio", FULL_SCHEDULES)
def test_published_sizes(ratio: float) -> None:
    sizes, tokens = PUBLISHED[TRANSPOSED.get(ratio, ratio)]
    expected = [tuple(int(side) for side in size.split("x")) for size in sizes.split()]
    if ratio in TRANSPOSED:
        expected = [(width, height) for height, width in expected]
    chosen = [published_resolution(size, ratio) for size in SCALES_OF_SIZE]
    assert [resolution.image_size for resolution in chosen] == expected
    assert tuple(sum(h * w for h, w in resolution.schedule) for resolution in chosen) == tokens
    assert {resolution.rope_grid for resolution in chosen} == {FULL_SCHEDULES[ratio][-1]}
    assert all(resolution.aspect == ratio for resolution in chosen)


def test_each_template_has_a_name_of_width_to_height() -> None:
    assert sorted(ASPECT_RATIOS.values()) == sorted(FULL_SCHEDULES)
    for name, template in ASPECT_RATIOS.items():
        assert nearest_aspect(height_over_width(name)) == template
    assert published_resolution("1M", height_over_width("16:9")).image_size == (768, 1344)
    assert published_resolution("1M", height_over_width("9:16")).image_size == (1344, 768)
    for wrong in ("16/9", "16", "0:1", "1:0", "-1:2", "wide:1", ""):
        with pytest.raises(ConfigurationError, match="width:height"):
            height_over_width(wrong)


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
