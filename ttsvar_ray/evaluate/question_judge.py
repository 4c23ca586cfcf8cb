"""A model that answers a benchmark's questions: the probability of each answer to each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from ttsvar_ray.evaluate.blip_vqa import MODEL_TYPE, BlipVqa
from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.questions import Benchmark, QuestionPrompt
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.rewards.vision_language import VisionLanguage


class QuestionJudge:
    """Answers all questions about one image after another.

    Args:
        folder: of a transformers checkpoint: of the Qwen-VL family, or a BLIP that answers questions.
        asked: what it is told, with `{question}` in it.
        answers: whose probabilities will be wanted.
        device, dtype: of the model.

    Raises:
        CheckpointError: a folder without such a model.
        ConfigurationError: an answer that is no word of its.
    """

    def __init__(self, folder: Path, asked: str, answers: Iterable[str], *, device: str, dtype: str) -> None:
        # A worker has no terminal, and here the images are counted.
        transformers_logging.disable_progress_bar()
        kind = BlipVqa if _model_type(folder) == MODEL_TYPE else VisionLanguage
        self._model: BlipVqa | VisionLanguage = kind(folder, device=device, dtype=dtype)
        self._asked = asked
        for answer in answers:
            self._model.tokens_of(answer)

    def __call__(self, image: AskedImage) -> dict[str, Any]:
        """Return what the file of verdicts holds of an image."""
        prompt: QuestionPrompt = image.prompt
        asked = [(self._asked.replace("{question}", one.text), one.answers) for one in prompt.questions]
        return {"prompt": prompt.name, "probabilities": self._model.probabilities(image.pixels(), asked)}


def _model_type(folder: Path) -> str:
    """Return the family that a folder's config.json names; "" where there is none that can be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def judge_basis(benchmark: Benchmark, folder: Path, *, device: str, dtype: str) -> dict[str, Any]:
    """Return what answers rest on beside the image and the questions; the model is not loaded.

    Raises:
        CheckpointError: nothing there.
    """
    return {
        "benchmark": benchmark.title,
        "judge": {"label": folder.resolve().name, "weights": fingerprint_path(folder)},
        "asked": benchmark.asked,
        "device": device,
        "dtype": dtype,
    }
