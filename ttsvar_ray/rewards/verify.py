"""Compare the rewards with recorded scores of the official implementations.

A folder holds `images` and any of

* `imagereward`: the published `ImageReward.pt` (of any size), `med_config.json`, `vocab.txt`, `ref.json`;
* `hpsv21`: `HPS_v2.1_compressed.pt`, open_clip's model file, `ref.json` with the token ids of its texts, and
  maybe `pixels_fp16.pt`;
* `aesthetic_v25`: `aesthetic_predictor_v2_5.pth`, `siglip/`, `ref.json`.

Scores are compared image by image and in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.recorded import EXACT, Case, read_images, read_json, reading, required
from ttsvar_ray.rewards.aesthetic_reward import load_aesthetic_v25
from ttsvar_ray.rewards.blip import PUBLISHED_IMAGE_REWARD, BlipRewardConfig, TextSize, VisionSize
from ttsvar_ray.rewards.clip import CONTEXT_LENGTH, END_ID
from ttsvar_ray.rewards.clip_reward import load_hps
from ttsvar_ray.rewards.image_reward import (
    PUBLISHED_FILE,
    ImageReward,
    load_tokenizer,
    read_image_reward,
    tokenize,
)
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.rewards.registry import REWARDS
from ttsvar_ray.types import Preprocessing, UInt8Array

IMAGE_REWARD, HPS, AESTHETIC = "imagereward", "hpsv21", "aesthetic_v25"

SCORES, HPS_SCORES, AESTHETIC_SCORES = 1e-5, 2e-6, 1e-5
"""Largest absolute differences. What was measured at full size: 4e-6 on scores of 11, 3e-7 on cosines, and
2e-6 on logits of 1 to 10."""
PIXELS_FP16 = 1e-3
"""Half a step of float16 at 2.6, the largest pixel."""

PUBLISHED_HEAD_WIDTH = 64
REDUCED_HEAD_WIDTH = 16
PUBLISHED_VISION_WIDTHS = (768, 1024)
"""ImageReward.pt does not tell its number of heads: BLIP's two sizes have heads of 64, recorded networks of
other widths heads of 16."""

TTS_VAR_SIZE = 128
"""One recorded run of the aesthetic predictor saw images resized to this size first."""


def _verify_image_reward(folder: Path, *, device: str = "cpu") -> Case:
    """Compare token ids, scores, and ranks with `folder` / imagereward."""
    place = folder / IMAGE_REWARD
    reference = _Reference.read(folder, place)
    case = Case(name=IMAGE_REWARD, recorded=reference.content)
    reward = load_recorded_image_reward(place, device=device)
    ids, mask = tokenize(reward.tokenizer, reference.prompts, reward.config.max_text_tokens)
    case.compare("input_ids", ids, EXACT)
    case.compare("attention_mask", mask, EXACT)
    scores = _scores(reward, reference.images, reference.prompts)
    case.compare("score", scores, SCORES)
    case.compare("rewards", scores, SCORES)
    # The best has rank 1.
    case.compare("rank", 1 + np.argsort(np.argsort(-scores, axis=1), axis=1), EXACT)
    _compare_batch(case, reward, reference, scores)
    return case


def _verify_hps(folder: Path, *, device: str = "cpu") -> Case:
    """Compare pixels and scores with `folder` / hpsv21; the texts are taken as the recorded token ids."""
    place = folder / HPS
    reference = _Reference.read(folder, place)
    case = Case(name=HPS, recorded=reference.content)
    ids = reference.field("tokens")
    if len(ids) != len(reference.prompts):
        raise CheckpointError(
            f"{reference.path}: tokens: expected one list for each of the {len(reference.prompts)} prompts, "
            f"found {len(ids)}"
        )
    tokens = _RecordedTokens(dict(zip(reference.prompts, ids, strict=True)))
    entry = REWARDS["hps-v2.1"]
    with reading(place / entry.settings["file"]):
        reward = load_hps(place, name=entry.name, tokens=tokens, device=device, **entry.settings)
    recorded_pixels = place / "pixels_fp16.pt"
    if recorded_pixels.is_file():
        with reading(recorded_pixels):
            pixels: Tensor = torch.load(recorded_pixels, map_location="cpu", weights_only=True)
        got = torch.cat([reward.preprocess(image[None]).cpu() for image in reference.images])
        case.between("pixels", got, pixels, PIXELS_FP16)
    scores = _scores(reward, reference.images, reference.prompts)
    case.compare("score", scores, HPS_SCORES)
    _compare_batch(case, reward, reference, scores)
    case.notes.append("texts as recorded token ids: the folder holds no vocabulary of CLIP")
    return case


def _verify_aesthetic(folder: Path, *, device: str = "cpu") -> Case:
    """Compare logits and scores with `folder` / aesthetic_v25."""
    place = folder / AESTHETIC
    reference = _Reference.read(folder, place)
    case = Case(name=AESTHETIC, recorded=reference.content)
    entry = REWARDS["aesthetic-v2.5"]
    head = place / entry.settings["head"]
    with reading(head):
        # Read here alone too, so that damage is blamed on the right file.
        torch.load(head, map_location="cpu", weights_only=True)
    with reading(place / "siglip" / "model.safetensors"):
        reward = load_aesthetic_v25(place, name=entry.name, device=device, **entry.settings)
    scores = _scores(reward, reference.images, [""])[0]
    logits = scores / reward.scale
    case.compare("logits", logits, AESTHETIC_SCORES)
    case.compare("tts_var_score", scores, AESTHETIC_SCORES)
    size = (TTS_VAR_SIZE, TTS_VAR_SIZE)
    resized = [np.asarray(Image.fromarray(image).resize(size)) for image in reference.images]
    small = _scores(reward, resized, [""])[0]
    case.compare(f"uint8_bhwc_{TTS_VAR_SIZE}_logits", small / reward.scale, AESTHETIC_SCORES)
    together = reward.score(np.stack(resized), [""] * len(resized))
    case.between("one batch against one by one", together, small, EXACT)
    return case


VERIFIERS: Mapping[str, Callable[..., Case]] = {
    IMAGE_REWARD: _verify_image_reward,
    HPS: _verify_hps,
    AESTHETIC: _verify_aesthetic,
}
"""Name of a recorded folder -> what compares with it: `(folder, *, device)`. All raise a CheckpointError
where a file is missing or damaged, or files do not belong together."""


def load_recorded_image_reward(
    place: Path, *, device: str = "cpu", preprocessing: Preprocessing = Preprocessing.PUBLISHED
) -> ImageReward:
    """Load an ImageReward of any size from the recorded folder `imagereward`.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    with reading(place / PUBLISHED_FILE):
        weights = read_image_reward(place / PUBLISHED_FILE)
        config = _image_reward_config(place, weights)
    with reading(place / "vocab.txt"):
        tokenizer = load_tokenizer(place)
    return ImageReward(
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        device=device,
        preprocessing=preprocessing,
        where=str(place / PUBLISHED_FILE),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """One ref.json and the images that it names."""

    path: Path
    content: dict[str, Any]
    images: list[UInt8Array]

    @classmethod
    def read(cls, folder: Path, place: Path) -> _Reference:
        path = place / "ref.json"
        content = read_json(path)
        names = required(content, "images", str(path))
        if not isinstance(names, list) or not names:
            raise CheckpointError(f"{path}: images: expected file names, found {names!r}")
        images = read_images(folder / "images", [str(name) for name in names])
        return cls(path=path, content=content, images=images)

    @property
    def prompts(self) -> list[str]:
        return [str(prompt) for prompt in self.field("prompts")]

    def field(self, key: str) -> list[Any]:
        value = required(self.content, key, str(self.path))
        if not isinstance(value, list):
            raise CheckpointError(f"{self.path}: {key}: expected a list, found {type(value).__name__}")
        return value


class _RecordedTokens:
    """Token ids by text, in place of a tokenizer (`rewards.clip.ClipTokens`)."""

    def __init__(self, ids: Mapping[str, list[int]]) -> None:
        self._ids = ids

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return the recorded ids; a text whose end token comes last may have been cut."""
        ids = [int(token) for token in self._ids[text]]
        return ids, len(ids) == CONTEXT_LENGTH and ids[-1] == END_ID


def _scores(reward: Reward, images: Sequence[UInt8Array], texts: Sequence[str]) -> np.ndarray:
    """Return float32 [texts, images], scored one by one: the images differ in size."""
    return np.array([[reward.score(image[None], [text])[0] for image in images] for text in texts])


def _compare_batch(case: Case, reward: Any, reference: _Reference, scores: np.ndarray) -> None:
    """Score all images of each text together; a row must not depend on its batch."""
    pixels = torch.cat([reward.preprocess(image[None]) for image in reference.images])
    together = [
        reward.score_prepared(pixels, reward.encode_text([text] * len(pixels))) for text in reference.prompts
    ]
    case.between("one batch against one by one", together, scores, EXACT)


def _image_reward_config(place: Path, weights: Mapping[str, Tensor]) -> BlipRewardConfig:
    """Return the sizes that med_config.json states and the tensors imply."""
    med = read_json(place / "med_config.json")
    where = str(place / "med_config.json")
    patch = weights["vision.embeddings.patch_embedding.weight"]
    width, tokens = patch.shape[0], weights["vision.embeddings.position_embedding"].shape[1]
    layers = {key.split(".")[3] for key in weights if key.startswith("vision.encoder.layers.")}
    named = (field.name for field in fields(TextSize) if field.default is MISSING)
    text: dict[str, Any] = {name: _number(med, name, where) for name in named}
    head_width = PUBLISHED_HEAD_WIDTH if width in PUBLISHED_VISION_WIDTHS else REDUCED_HEAD_WIDTH
    return replace(
        PUBLISHED_IMAGE_REWARD,
        vision=VisionSize(
            hidden_size=width,
            intermediate_size=weights["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=len(layers),
            num_attention_heads=max(1, width // head_width),
            image_size=round((tokens - 1) ** 0.5) * patch.shape[-1],
            patch_size=patch.shape[-1],
        ),
        text=TextSize(**text),
    )


def _number(content: Mapping[str, object], key: str, where: str) -> int:
    value = required(content, key, where)
    if not isinstance(value, int):
        raise CheckpointError(f"{where}: {key}: expected a whole number, found {value!r}")
    return value
