"""Colors by CLIP: what it is shown of an object, and which sentences it compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.tiny_clip import save_clip
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.evaluate.color_names import ColorNames, cut_out
from ttsvar_ray.evaluate.geneval_prompts import COLORS
from ttsvar_ray.evaluate.geneval_rules import Detected
from ttsvar_ray.rewards.clip import TextCleaning, load_tokenizer


def detected(box: tuple[int, int, int, int], mask: np.ndarray) -> Detected:
    return Detected(box=np.array(box, np.float32), score=np.float32(0.9), mask=mask)


def test_what_is_outside_the_mask_is_grey_and_the_rest_is_cut_off() -> None:
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    mask[1, 2] = False
    cut = cut_out(image, detected((2, 1, 5, 3), mask))
    assert cut.shape == (2, 3, 3)
    assert cut[0, 0].tolist() == [0x99, 0x99, 0x99]
    assert np.array_equal(cut[1], image[2, 2:5]) and np.array_equal(cut[0, 1:], image[1, 3:5])


def test_colors_are_the_nearest_of_the_mean_sentences(tmp_path: Path) -> None:
    model = save_clip(tmp_path)
    names = ColorNames.load(tmp_path)
    assert names.label.startswith("not CLIP ViT-L/14: sizes (32, 2, 28)") and len(names.digest) == 64
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    boxes = [(0, 0, 28, 28), (10, 5, 38, 33), (20, 10, 48, 38), (5, 10, 33, 38)]
    objects = [detected(box, np.ones((40, 50), bool)) for box in boxes]
    tokens = load_tokenizer(tmp_path, TextCleaning.TRANSFORMERS)
    means = []
    with torch.inference_mode():
        for color in COLORS:
            sentences = [f"a photo of a {color} cup", f"a photo of a {color}-colored cup"]
            ids = torch.tensor(
                [tokens.encode(text)[0] for text in [*sentences, f"a photo of a {color} object"]]
            )
            texts = model.text_projection(model.text_model(input_ids=ids).pooler_output)
            means.append(F.normalize(F.normalize(texts, dim=-1).mean(dim=0), dim=-1))
        crops = np.stack([image[top:bottom, left:right] for left, top, right, bottom in boxes])
        pixels = names.clip.preprocess(crops)
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        expected = (F.normalize(images, dim=-1) @ torch.stack(means).T).argmax(dim=1)
    assert names.name(image, objects, "cup") == [COLORS[place] for place in expected]
    assert names.name(image, objects[1:2], "cup") == [COLORS[expected[1]]]


def test_another_activation_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path, activation="gelu")
    with pytest.raises(CheckpointError, match="expected a CLIP with quick_gelu, as OpenAI's, found gelu"):
        ColorNames.load(tmp_path)
