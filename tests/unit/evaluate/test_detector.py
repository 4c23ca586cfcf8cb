"""GenEval's detector: mmdet's checkpoint in transformers' network, pixels as OpenCV's, objects by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.support.tiny_mask2former import mmdet_weights, save_mmdet, tiny_mask2former
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.evaluate import mask2former_weights
from ttsvar_ray.evaluate.detector import (
    Detector,
    DetectorPixels,
    detector_pixels,
    find_objects,
    resize_bilinear,
)
from ttsvar_ray.evaluate.mask2former_weights import HUB, OFFICIAL, OTHER_MMDET, load_detector_weights

IMAGE = np.array(
    [
        [30, 199, 45, 76, 104, 67, 18],
        [205, 246, 236, 70, 56, 183, 23],
        [178, 29, 42, 235, 64, 176, 142],
        [139, 122, 62, 184, 129, 199, 79],
        [145, 185, 23, 73, 78, 168, 181],
    ],
    np.uint8,
)[:, :, None]
# Made by OpenCV 4.10 from the image above.
SMALLER = [[135, 104, 86, 52], [122, 66, 85, 155], [151, 45, 97, 159]]
LARGER = [
    [30, 123, 160, 53, 65, 86, 102, 76, 45, 18],
    [106, 169, 197, 133, 93, 77, 85, 109, 74, 20],
    [203, 219, 230, 224, 130, 72, 63, 151, 114, 30],
    [186, 137, 98, 102, 155, 141, 67, 149, 145, 105],
    [166, 107, 55, 49, 159, 172, 89, 158, 156, 122],
    [141, 128, 102, 63, 143, 165, 128, 179, 146, 83],
    [142, 150, 128, 46, 93, 114, 104, 161, 161, 136],
    [145, 167, 144, 31, 55, 75, 82, 145, 174, 181],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as mmdet saves it."""
    folder = tmp_path_factory.mktemp("detector")
    save_mmdet(folder, mmdet_weights(tiny_mask2former()))
    return folder


def test_a_checkpoint_of_mmdet_is_the_same_network(folder: Path) -> None:
    detector, network = Detector.load(folder), tiny_mask2former()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pixel_values=pixels)
    classes, masks = detector.logits(pixels)
    assert torch.equal(classes, expected.class_queries_logits[0])
    assert torch.equal(masks, expected.masks_queries_logits[0])


def test_only_the_published_file_is_called_official(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_detector_weights(folder)
    assert weights.label == OTHER_MMDET
    monkeypatch.setattr(mask2former_weights, "OFFICIAL_DIGEST", weights.digest[:8])
    assert load_detector_weights(folder).label == OFFICIAL


def test_a_directory_of_the_hub_is_not_the_official_detector(tmp_path: Path) -> None:
    network = tiny_mask2former()
    network.save_pretrained(tmp_path)
    detector = Detector.load(tmp_path)
    assert detector.label == HUB and len(detector.digest) == 64
    pixels = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pixel_values=pixels)
    assert torch.equal(detector.logits(pixels)[0], expected.class_queries_logits[0])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = mmdet_weights(tiny_mask2former())
    key = "panoptic_head.transformer_decoder.post_norm.weight"
    for changed, message in (
        (
            {name: weight for name, weight in weights.items() if name != key},
            "missing.*decoder.layernorm.weight",
        ),
        ({**weights, "bbox_head.weight": weights[key]}, "unknown key 'bbox_head.weight'"),
        ({**weights, key: torch.zeros(3)}, "of another shape.*decoder.layernorm.weight"),
        ({"panoptic_head.cls_embed.weight": weights["panoptic_head.cls_embed.weight"]}, "Swin backbone"),
    ):
        save_mmdet(tmp_path, changed)
        with pytest.raises(CheckpointError, match=message):
            load_detector_weights(tmp_path)
    save_mmdet(tmp_path, mmdet_weights(tiny_mask2former(labels=81)))
    with pytest.raises(CheckpointError, match="expected 80 classes, as of COCO, found 81"):
        load_detector_weights(tmp_path)
    save_mmdet(tmp_path, weights, name="another.pth")
    with pytest.raises(CheckpointError, match=r"expected one \.pth.*another\.pth.*detector\.pth"):
        load_detector_weights(tmp_path)
    (tmp_path / "another.pth").unlink()
    (tmp_path / "detector.pth").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        load_detector_weights(tmp_path)


@pytest.mark.parametrize("expected", [SMALLER, LARGER])
def test_images_are_resized_as_opencv_does(expected: list[list[int]]) -> None:
    height, width = np.shape(expected)
    assert resize_bilinear(IMAGE, height, width)[:, :, 0].tolist() == expected
    assert np.array_equal(resize_bilinear(IMAGE, 5, 7), IMAGE)


def test_pixels_are_scaled_normalised_and_padded() -> None:
    white = np.full((4, 9, 3), 255, np.uint8)
    pixels = detector_pixels(white, longer=100, shorter=40)
    assert (pixels.height, pixels.width) == (40, 90)
    assert tuple(pixels.tensor.shape) == (1, 3, 64, 96)
    inside = pixels.tensor[0, :, :40, :90].flatten(1)
    assert torch.allclose(inside[:, 0], torch.tensor([2.248908, 2.428571, 2.640000]), atol=1e-5)
    assert (inside == inside[:, :1]).all()
    assert not pixels.tensor[0, :, 40:].any() and not pixels.tensor[0, :, :, 90:].any()
    assert detector_pixels(np.zeros((3, 30, 3), np.uint8), longer=100, shorter=40).width == 100


def logits(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_objects_are_pairs_of_a_query_and_a_class() -> None:
    classes = logits([0.5, 0.4, 0.1], [0.2, 0.05, 0.75])
    masks = torch.full((2, 8, 8), -4.0)
    masks[0, 2:6, 1:4] = 4.0
    # Nothing is padded and no size changes, so that logits are the masks'.
    pixels = DetectorPixels(tensor=torch.zeros(1, 3, 8, 8), height=8, width=8)
    found = find_objects(classes, masks, pixels, (8, 8), most=3)
    sure = float(torch.tensor(4.0).sigmoid())
    assert found.labels.tolist() == [0, 1, 0], "one query is two classes"
    assert found.scores.tolist() == pytest.approx([0.5 * sure, 0.4 * sure, 0.0], abs=1e-6)
    assert found.boxes.tolist() == [[1, 2, 4, 6], [1, 2, 4, 6], [0, 0, 0, 0]], "the other mask is empty"
    assert found.masks[0].sum() == 12
    assert find_objects(classes, masks, pixels, (8, 8), above=0.4).labels.tolist() == [0]


def test_what_is_padded_belongs_to_no_object() -> None:
    masks = torch.full((1, 4, 4), -4.0)
    masks[0, :, 2:] = 4.0
    pixels = DetectorPixels(tensor=torch.zeros(1, 3, 16, 16), height=16, width=12)
    found = find_objects(logits([0.9, 0.1]), masks, pixels, (32, 24))
    assert found.masks.shape == (1, 32, 24)
    assert found.boxes.tolist() == [[16, 0, 24, 32]], "half of the padded width is two thirds of the image"


def test_an_image_is_judged_by_what_scores_enough(folder: Path) -> None:
    detector = Detector.load(folder)
    image = np.random.default_rng(0).integers(0, 256, (3, 160, 3), dtype=np.uint8)
    everything, sure = detector.detect(image), detector.detect(image, above=0.4)
    assert sure
    assert sum(map(len, everything.values())) == 100
    for name in everything:
        expected = [one for one in everything[name] if one.score > 0.4]
        got = [one for one in sure.get(name, []) if one.score > 0.4]
        assert [one.score for one in got] == [one.score for one in expected]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(got, expected, strict=True))
        assert all(one.mask.shape == (3, 160) for one in got)


def test_the_command_compares_a_recording(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "mask2former"
    place.mkdir()
    (place / "mmdet_mask2former.pth").write_bytes((folder / "detector.pth").read_bytes())
    network = tiny_mask2former()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = network(pixel_values=pixels)
    classes, masks = output.class_queries_logits, output.masks_queries_logits
    found = find_objects(
        classes[0], masks[0], DetectorPixels(tensor=pixels, height=60, width=93), (80, 124), most=10
    )
    reference = {
        "x": pixels,
        "cls": classes,
        "mask": masks,
        "labels": found.labels,
        "scores": found.scores,
        "bboxes": found.boxes,
        "masks": found.masks,
    }
    torch.save(reference, place / "ref.pt")
    result = CliRunner().invoke(app, ["verify", "rewards", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "cpu float32: 1 cases, 6 arrays compared, all agree"
    torch.save({**reference, "mask": masks + 0.01}, place / "ref.pt")
    assert CliRunner().invoke(app, ["verify", "rewards", str(tmp_path)]).exit_code == 1
    torch.save({"x": pixels}, place / "ref.pt")
    assert CliRunner().invoke(app, ["verify", "rewards", str(tmp_path)]).exit_code == 2
