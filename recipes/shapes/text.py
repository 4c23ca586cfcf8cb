"""The text tokenizer of the built-in model: one token a word, T5's layout of special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ttsvar_ray.shapes.world import VOCABULARY

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def build_text_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; unknown words become <unk>, every text ends in </s>."""
    words = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *VOCABULARY))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = Sequence([Lowercase(), Replace(".", " "), Replace(",", " "), Strip()])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )
