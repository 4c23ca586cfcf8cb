"""The text encoder's tokenizer, as transformers loads it, against sentencepiece itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.infinity.text import T5TextEncoder, padded_length

TEXTS = [
    "a red circle",
    "Two GREEN rings, above a blue square.",
    "  double   spaces and a tab\t ",
    "a line\nbreak",
    "Ｆｕｌｌ width, ½ and … ™",
    "cafe\u0301 on the left",
    "unseen 漢字 🙂",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder as published: weights, and a sentencepiece model that normalises as T5's does."""
    path = tmp_path_factory.mktemp("t5")
    words = Path(__file__).parents[3] / "docs" / "search.md"
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(path / "spiece"),
        vocab_size=400,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    (path / "spiece.vocab").unlink()
    config = T5Config(
        vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(path)
    tokenizer = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def expected_ids(folder: Path, text: str) -> list[int]:
    pieces: list[int] = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model")).encode(text)
    return [*pieces, 1]


@pytest.mark.parametrize("form", ["spiece.model", "tokenizer.json"])
def test_texts_become_the_tokens_of_sentencepiece(folder: Path, tmp_path: Path, form: str) -> None:
    copy = tmp_path / "t5"
    shutil.copytree(folder, copy)
    if form == "tokenizer.json":
        AutoTokenizer.from_pretrained(folder).save_pretrained(copy)
        (copy / "spiece.model").unlink()
    encoder = T5TextEncoder.load(copy, max_length=64, device=torch.device("cpu"), dtype=torch.float32)
    for text in TEXTS:
        assert encoder.tokenizer(text).input_ids == expected_ids(folder, text), text
    features, lens = encoder.encode(TEXTS)
    assert features.shape == (len(TEXTS), padded_length(int(lens.max()), 64), 16)
    assert lens.tolist() == [min(len(expected_ids(folder, text)), 64) for text in TEXTS]


def test_a_config_of_other_layers_than_the_weights_have_is_refused_before_any_is_built(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "t5"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_layers": 10**300}))
    with pytest.raises(CheckpointError, match=r"num_layers 1000.*, the weights have"):
        T5TextEncoder.load(copy, max_length=64, device=torch.device("cpu"), dtype=torch.float32)
