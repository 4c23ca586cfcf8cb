"""CLIP's byte-pair tokens: 77 a text, cut as published, from a local vocabulary."""

from __future__ import annotations

import enum
import html
from pathlib import Path
from typing import Protocol

from transformers import CLIPTokenizer

from ttsvar_ray.errors import CheckpointError, ConfigurationError

CONTEXT_LENGTH = 77
START_ID = 49406
END_ID = 49407


class TextCleaning(str, enum.Enum):
    """What happens to a text before it is split into tokens."""

    CLIP = "clip"
    """Mended by ftfy, unescaped from HTML twice: OpenAI's CLIP, open_clip, HPS, ImageReward's CLIP score."""
    TRANSFORMERS = "transformers"
    """Left as it is: what transformers' processor does, and so PickScore."""


class ClipTokens(Protocol):
    """Turns texts into ids."""

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return exactly 77 ids, zero after the end token, and whether the text was cut."""
        ...


class ClipTokenizer:
    """Lower-cased byte-pair tokens between the start and the end token (`ClipTokens`).

    A text of more than 75 tokens loses its end; the end token stays. Padding is zero as in open_clip:
    attention is causal and the end token's state is what is read, so nothing depends on it.
    """

    def __init__(self, tokenizer: CLIPTokenizer, cleaning: TextCleaning) -> None:
        self._tokenizer = tokenizer
        self._cleaning = cleaning

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Return exactly 77 ids, zero after the end token, and whether the text was cut."""
        clean = _mend(text) if self._cleaning is TextCleaning.CLIP else text
        ids = self._tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
        most = CONTEXT_LENGTH - 2
        kept = [START_ID, *ids[:most], END_ID]
        return kept + [0] * (CONTEXT_LENGTH - len(kept)), len(ids) > most


def load_tokenizer(folder: Path, cleaning: TextCleaning) -> ClipTokenizer:
    """Load CLIP's tokenizer from tokenizer.json, or vocab.json and merges.txt; never from a hub.

    Raises:
        CheckpointError: the files are missing, or are not CLIP's.
        ConfigurationError: the cleaning needs ftfy, which is not installed.
    """
    pair = ("vocab.json", "merges.txt")
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in pair):
        raise CheckpointError(
            f"{folder}: expected CLIP's tokenizer.json, or vocab.json and merges.txt, beside the weights; "
            "copy them from openai/clip-vit-large-patch14 (every CLIP has the same)"
        )
    if cleaning is TextCleaning.CLIP:
        _mend("")
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if found != (START_ID, END_ID):
        raise CheckpointError(
            f"{folder}: expected CLIP's tokenizer (start, end {(START_ID, END_ID)}), got {found}"
        )
    return ClipTokenizer(tokenizer, cleaning)


def _mend(text: str) -> str:
    """Return the text as OpenAI's CLIP cleans it; its tokenizer lower-cases."""
    try:
        import ftfy
    except ImportError as error:
        raise ConfigurationError(
            "this reward mends texts with ftfy, as published, and ftfy is not installed; "
            "pip install 'ttsvar-ray[rewards]'"
        ) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
