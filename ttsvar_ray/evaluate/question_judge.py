"""Models that answer a benchmark's questions: the probability of each answer to each.

Any of the Qwen-VL family does (`rewards.vision_language`), or BLIP-VQA, the judge of T2I-CompBench's
attributes, by transformers' own network. It reads one image and one question at a time: transformers ignores
the mask of padded questions (5.23), and nothing is padded here. Published:
`Salesforce/blip-vqa-capfilt-large` (BLIP base, 480 pixels), the same weights as
`model_base_vqa_capfilt_large.pth`. Where the image is square no pixel differs from the authors'.

Source: BLIP (arXiv 2201.12086); what T2I-CompBench asks of it (arXiv 2307.06350): the first word of the
answer, whose question begins with [ENC] in place of [CLS].
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, BlipForQuestionAnswering
from transformers.utils import logging as transformers_logging

from ttsvar_ray.errors import CheckpointError, ConfigurationError, brief
from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.questions import Benchmark, QuestionPrompt
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.rewards.vision_language import VisionLanguage
from ttsvar_ray.types import UInt8Array
from ttsvar_ray.vision.batches import settle
from ttsvar_ray.vision.checkpoints import from_folder
from ttsvar_ray.vision.pixels import Fit, PixelRecipe

FIRST_ID = 30523
"""[ENC], which BLIP's tokenizer adds behind bert-base-uncased's words."""


class BlipVqa:
    """Answers questions about images by one word.

    Args:
        path: folder of a transformers checkpoint, with `vocab.txt`.

    Raises:
        CheckpointError: a folder without such a model.
    """

    def __init__(self, path: Path, *, device: str = "cpu", dtype: str = "float32") -> None:
        try:
            network = from_folder(
                BlipForQuestionAnswering, path, use_safetensors=True, dtype=getattr(torch, dtype)
            )
            self._tokenizer = from_folder(BertTokenizer, path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path}: expected a BLIP that answers questions ({brief(error)})"
            ) from None
        if network.config.text_config.vocab_size <= FIRST_ID:
            raise CheckpointError(
                f"{path}: expected BLIP's vocabulary with [ENC] as {FIRST_ID}, found a smaller one"
            )
        self._path, self._device = path, torch.device(device)
        self._network = settle(network, self._device, getattr(torch, dtype))
        self._recipe = PixelRecipe(size=network.config.vision_config.image_size, fit=Fit.STRETCH)

    def probabilities(
        self, image: UInt8Array, asked: Sequence[tuple[str, Sequence[str]]]
    ) -> list[list[float]]:
        """Return for each question how probable each of its answers is as the first word.

        Args:
            image: uint8 RGB [height, width, 3].
            asked: questions, each with answers.
        """
        pixels = self._recipe.apply(image[None], self._device).to(self._device, self._network.dtype)
        shares = []
        with torch.inference_mode():
            seen = self._network.vision_model(pixel_values=pixels)[0]
            for question, answers in asked:
                first_word = self._first_word(seen, question)
                shares.append([float(first_word[self.tokens_of(answer)].sum()) for answer in answers])
        return shares

    def tokens_of(self, answer: str) -> list[int]:
        """Return the token that an answer is.

        Raises:
            ConfigurationError: it is several, or none.
        """
        ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            raise ConfigurationError(
                f"{self._path}: expected a tokenizer with {answer!r} as one word, found none: it cannot "
                "answer such a question"
            )
        return list(ids)

    def _first_word(self, seen: Any, question: str) -> Any:
        """Return float32 [vocabulary] probabilities of the answer's first word."""
        ids = self._tokenizer(question, return_tensors="pt")["input_ids"].to(self._device)
        ids[:, 0] = FIRST_ID
        read = self._network.text_encoder(input_ids=ids, encoder_hidden_states=seen)[0]
        start = torch.full((1, 1), self._network.decoder_start_token_id, device=self._device)
        logits = self._network.text_decoder(input_ids=start, encoder_hidden_states=read).logits[0, -1]
        return logits.float().softmax(dim=-1)


class QuestionJudge:
    """Answers all questions about one image after another.

    Args:
        folder: of a transformers checkpoint: of the Qwen-VL family, or a BLIP that answers questions.
        asked: what it is told, with `{question}` in it.
        answers: whose probabilities will be wanted.

    Raises:
        CheckpointError: a folder without such a model.
        ConfigurationError: an answer that is no word of its.
    """

    def __init__(self, folder: Path, asked: str, answers: Iterable[str], *, device: str, dtype: str) -> None:
        # A worker has no terminal, and here the images are counted.
        transformers_logging.disable_progress_bar()
        kind = BlipVqa if _model_type(folder) == "blip" else VisionLanguage
        self._model: BlipVqa | VisionLanguage = kind(folder, device=device, dtype=dtype)
        self._asked = asked
        for answer in answers:
            self._model.tokens_of(answer)

    def __call__(self, image: AskedImage) -> dict[str, Any]:
        """Return what the file of verdicts holds of an image."""
        prompt: QuestionPrompt = image.prompt
        asked = [(self._asked.replace("{question}", one.text), one.answers) for one in prompt.questions]
        return {"prompt": prompt.name, "probabilities": self._model.probabilities(image.pixels(), asked)}

    @staticmethod
    def basis(benchmark: Benchmark, folder: Path, *, device: str, dtype: str) -> dict[str, Any]:
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


def _model_type(folder: Path) -> str:
    """Return the family that a folder's config.json names; "" where there is none that can be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
