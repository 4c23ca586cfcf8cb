"""A vision-language model as a reward and a judge: the probability that it answers yes to a question.

    reward: {name: qwen3-vl-2b, path: FOLDER}
    reward: {name: "ttsvar_ray.rewards.vision_language:VisionLanguage", path: FOLDER,
             options: {question: "Does this figure show \\"{prompt}\\"? Answer yes or no."}}

The second is for any model of the family, and for a question of your own.

The answer is read from the distribution of the next token; nothing is generated. Images go through the model
one at a time: scores of this class of models depend on what else is in a padded batch, and here they cannot.

Source: VQAScore (arXiv 2404.01291), the probability of "Yes"; Qwen2.5-VL and Qwen3-VL, whose image processor
merges `merge_size` squared patches into one token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ttsvar_ray.errors import CheckpointError, ConfigurationError, brief
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

if TYPE_CHECKING:
    import torch

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_IMAGE = "<|image_pad|>"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What the published chat templates of Qwen2-VL and Qwen2.5-VL begin with, and that of Qwen3-VL does not."""
_ASKED = (
    f"<|im_start|>user\n<|vision_start|>{_IMAGE}<|vision_end|>{{question}}<|im_end|>\n<|im_start|>assistant\n"
)


class ImageReader(PlainReward):
    """Makes of an image and a text what a model of the Qwen-VL family reads.

    Args:
        path: folder with its image processor and its tokenizer; no code of it is run.

    Raises:
        ConfigurationError: no folder.
        CheckpointError: a folder without them.
    """

    _model: Any

    def __init__(self, path: Path | None, device: str) -> None:
        if path is None:
            raise ConfigurationError("reward.path: a vision-language model needs the folder of its files")
        from transformers import AutoImageProcessor, AutoTokenizer

        from ttsvar_ray.vision.checkpoints import from_folder

        with reading_family(path):
            self._pixels = from_folder(AutoImageProcessor, path)
            self._tokenizer = from_folder(AutoTokenizer, path)
        self._path, self._device = path, device
        if not hasattr(self._pixels, "merge_size") or self._id(_IMAGE) is None:
            raise CheckpointError(f"{path}: expected a model of the Qwen-VL family, found another")

    def _inputs(self, seen: Any, text: str) -> dict[str, torch.Tensor]:
        """Return what the model is called with, in the chat template of its own family.

        Args:
            seen: of one image, from the image processor.
            text: said beside it; what a user wrote in it must have gone through `without_marks`.
        """
        import torch

        tokens = int(seen["image_grid_thw"][0].prod()) // self._pixels.merge_size**2
        asked = (_SYSTEM if self._model.config.model_type.startswith("qwen2") else "") + _ASKED
        asked = asked.replace(_IMAGE, _IMAGE * tokens).replace("{question}", text)
        ids = self._tokenizer(asked, return_tensors="pt", add_special_tokens=False)["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": seen["pixel_values"].to(self._model.dtype),
            "image_grid_thw": seen["image_grid_thw"],
            "mm_token_type_ids": (ids == self._id(_IMAGE)).long(),
        }
        return {name: value.to(self._device) for name, value in inputs.items()}

    def _id(self, word: str) -> int | None:
        """Return the token that a word is, or None where it is several."""
        ids = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        return ids[0] if len(ids) == 1 and ids[0] != unknown else None


def without_marks(text: str) -> str:
    """Return a user's text without the family's special tokens: it cannot smuggle in another image."""
    return text.replace("<|", "< |")


@contextlib.contextmanager
def reading_family(path: Path) -> Iterator[None]:
    """Tell what transformers raises over a folder as a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected a vision-language model of transformers ({brief(error)})"
        ) from None


class VisionLanguage(ImageReader):
    """Asks a model of the Qwen-VL family about each image."""

    name = "vision-language"

    def __init__(
        self,
        path: Path | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        question: str = QUESTION,
    ) -> None:
        """Load the model.

        Args:
            path: folder of a transformers checkpoint; none of its code is run.
            question: with `{prompt}` in it, to be answered by yes or no.

        Raises:
            ConfigurationError: no folder, or a question without a prompt.
            CheckpointError: a folder without such a model.
        """
        if "{prompt}" not in question:
            raise ConfigurationError(f"reward.options: question: expected {{prompt}} in it, got {question!r}")
        super().__init__(path, device)
        import torch
        from transformers import AutoModelForImageTextToText

        from ttsvar_ray.vision.checkpoints import from_folder

        with reading_family(self._path):
            model = from_folder(
                AutoModelForImageTextToText, self._path, dtype=getattr(torch, dtype), use_safetensors=True
            )
        self._model, self._question = model.to(device).eval(), question
        self._tokens: dict[str, list[int]] = {}
        self.tokens_of("yes")

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] probabilities of yes; `images` uint8 RGB [n, height, width, 3]."""
        asked = [self._question.replace("{prompt}", text) for text in texts]
        shares = [
            self.probabilities(image, [(question, ("yes",))])[0][0]
            for image, question in zip(images, asked, strict=True)
        ]
        return np.array(shares, np.float32)

    def probabilities(
        self, image: UInt8Array, asked: Sequence[tuple[str, Sequence[str]]]
    ) -> list[list[float]]:
        """Return for each question how probable each of its answers is as the next word.

        Args:
            image: uint8 RGB [height, width, 3].
            asked: questions, each with answers.

        Raises:
            ConfigurationError: an answer that is no word of the model's.
        """
        seen = self._pixels(images=Image.fromarray(image), return_tensors="pt")
        shares = []
        for question, answers in asked:
            next_word = self._next_word(seen, question)
            shares.append([float(next_word[self.tokens_of(answer)].sum()) for answer in answers])
        return shares

    def tokens_of(self, answer: str) -> list[int]:
        """Return the tokens that an answer may be: as it is or capitalised, after a space or not, in digits.

        Raises:
            ConfigurationError: it is none.
        """
        if answer not in self._tokens:
            low = answer.lower()
            forms = [answer, low, low.capitalize(), *([str(_NUMBERS.index(low))] if low in _NUMBERS else [])]
            ids = {self._id(space + form) for form in forms for space in ("", " ")} - {None}
            if not ids:
                raise ConfigurationError(
                    f"{self._path}: expected a tokenizer with {answer!r} as one word, found none: it cannot "
                    "answer such a question"
                )
            self._tokens[answer] = sorted(int(one) for one in ids if one is not None)
        return self._tokens[answer]

    def _next_word(self, seen: Any, question: str) -> Any:
        """Return float32 [vocabulary] probabilities of the word after a question about prepared pixels."""
        import torch

        inputs = self._inputs(seen, without_marks(question))
        with torch.inference_mode():
            # Of 150,000 words at a thousand places only the last is read, and nothing follows it.
            logits = self._model(**inputs, logits_to_keep=1, use_cache=False).logits[0, -1]
        return logits.float().softmax(dim=-1)


def load_vision_language(
    folder: Path, *, name: str, preprocessing: Preprocessing, device: str, dtype: torch.dtype
) -> VisionLanguage:
    """Load a published model by its name in the settings.

    Args:
        folder, name, device, dtype: as the settings have them.
        preprocessing: its own, whatever this says; the registry refuses another.

    Raises:
        CheckpointError: a folder without such a model.
    """
    reward = VisionLanguage(folder, device=device, dtype=str(dtype).removeprefix("torch."))
    reward.name = name
    return reward
