"""CLIP's tokens against those that open_clip gives."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from tests.support.tiny_clip import TOKENS
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.rewards.clip import CONTEXT_LENGTH, END_ID, START_ID, TextCleaning, load_tokenizer

RECORDED: list[dict[str, Any]] = json.loads((TOKENS / "ref.json").read_text())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: ascii(recorded["text"][:20]))
def test_ids_and_cuts_are_those_of_open_clip(recorded: dict[str, Any]) -> None:
    ids, truncated = load_tokenizer(TOKENS, TextCleaning.CLIP).encode(recorded["text"])
    assert len(ids) == CONTEXT_LENGTH
    assert ids == recorded["ids"] + [0] * (CONTEXT_LENGTH - len(recorded["ids"]))
    assert truncated == recorded["truncated"]


def test_a_text_is_cut_after_75_tokens_and_keeps_its_end() -> None:
    tokens = load_tokenizer(TOKENS, TextCleaning.CLIP)
    (cat,) = tokens.encode("cat")[0][1:2]
    whole, cut = tokens.encode("cat " * 75), tokens.encode("cat " * 76)
    assert whole == ([START_ID, *[cat] * 75, END_ID], False)
    assert cut == ([START_ID, *[cat] * 75, END_ID], True)


def test_transformers_leaves_html_and_quotes_as_they_are() -> None:
    plain, mended = (
        load_tokenizer(TOKENS, cleaning) for cleaning in (TextCleaning.TRANSFORMERS, TextCleaning.CLIP)
    )
    assert plain.encode("fish &amp; chips") != mended.encode("fish &amp; chips")
    assert mended.encode("fish &amp; chips") == mended.encode("FISH & chips") == plain.encode("FISH & chips")


def test_either_kind_of_vocabulary_file_will_do(tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(TOKENS, local_files_only=True).save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        if file.name != "tokenizer.json":
            file.unlink()
    alone = load_tokenizer(tmp_path, TextCleaning.CLIP)
    pair = load_tokenizer(TOKENS, TextCleaning.CLIP)
    for recorded in RECORDED:
        assert alone.encode(recorded["text"]) == pair.encode(recorded["text"])


def test_a_folder_without_a_vocabulary_says_where_to_get_one(tmp_path: Path) -> None:
    shutil.copyfile(TOKENS / "vocab.json", tmp_path / "vocab.json")
    with pytest.raises(CheckpointError, match="copy them from openai/clip-vit-large-patch14"):
        load_tokenizer(tmp_path, TextCleaning.CLIP)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    vocabulary = json.loads((TOKENS / "vocab.json").read_text())
    vocabulary["<|endoftext|>"] = 7
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copyfile(TOKENS / "merges.txt", tmp_path / "merges.txt")
    with pytest.raises(CheckpointError, match=r"expected CLIP's tokenizer"):
        load_tokenizer(tmp_path, TextCleaning.CLIP)


def test_without_ftfy_it_is_said_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_ftfy(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "ftfy":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_ftfy)
    with pytest.raises(ConfigurationError, match=r"pip install 'ttsvar-ray\[rewards\]'"):
        load_tokenizer(TOKENS, TextCleaning.CLIP)
    assert load_tokenizer(TOKENS, TextCleaning.TRANSFORMERS).encode("a cat")[1] is False
