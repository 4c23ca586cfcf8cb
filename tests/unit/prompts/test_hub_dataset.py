"""Which files of a data set of the hub are a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.hub_dataset import is_dataset, split_files
from ttsvar_ray.prompts.read import scan_prompts
from ttsvar_ray.prompts.source import PromptSource

SHARDS = [
    "data/test-00000-of-00001.parquet",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
]
ENGLISH = {"config_name": "en", "data_files": [{"split": "train", "path": "en/*.jsonl"}]}
GERMAN = {"config_name": "de", "data_files": [{"split": "train", "path": ["de/a.jsonl", "de/b.jsonl"]}]}
TONGUES = ["de/a.jsonl", "de/b.jsonl", "en/a.jsonl", "en/deep/c.jsonl"]


@pytest.mark.parametrize(
    ("names", "head", "split", "subset", "expected"),
    [
        (SHARDS, {}, None, None, SHARDS[1:]),
        (SHARDS, {}, "test", None, SHARDS[:1]),
        (["dev.jsonl", "training.jsonl"], {}, "validation", None, ["dev.jsonl"]),
        (["test/0.txt", "test/1.txt"], {}, None, None, ["test/0.txt", "test/1.txt"]),
        (["a.txt", "latest.txt", "_hidden/b.txt"], {}, None, None, ["a.txt", "latest.txt"]),
        (TONGUES, {"configs": [GERMAN, ENGLISH]}, None, "en", ["en/a.jsonl"]),
        (TONGUES, {"configs": [GERMAN, {**ENGLISH, "default": True}]}, None, None, ["en/a.jsonl"]),
        (TONGUES, {"configs": [GERMAN]}, None, None, TONGUES[:2]),
        (TONGUES, {"configs": [{"config_name": "default", "data_files": "en/**"}]}, None, None, TONGUES[2:]),
        (TONGUES, {"configs": [{"config_name": "x", "data_dir": "de"}]}, None, "x", TONGUES[:2]),
        (SHARDS, {"configs": "what"}, None, None, SHARDS[1:]),
    ],
)
def test_the_files_of_a_split(
    names: list[str], head: dict[str, Any], split: str | None, subset: str | None, expected: list[str]
) -> None:
    assert split_files(names, head, split=split, subset=subset) == expected


@pytest.mark.parametrize(
    ("head", "split", "subset", "message"),
    [
        ({}, "dev", None, "no split 'dev'; splits found: test, train; set prompts.split"),
        ({}, None, "en", "no subset 'en'; its card names none; set prompts.subset"),
        ({"configs": [ENGLISH, GERMAN]}, None, None, "several subsets, de, en; set prompts.subset"),
        ({"configs": [ENGLISH]}, None, None, "split 'train': expected prompt files, found none"),
    ],
)
def test_what_is_not_there_is_named(
    head: dict[str, Any], split: str | None, subset: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        split_files(SHARDS, head, split=split, subset=subset)


def test_a_data_set_is_told_from_what_is_in_it() -> None:
    sets = ["hf://datasets/o/n", "hf://datasets/o/n.x@main", "hf://datasets/o/n@refs/convert/parquet"]
    others = ["hf://datasets/o/n/data", "hf://datasets/o/n@main/a.txt", "hf://o/n", "datasets/o/n", "o/n"]
    assert [is_dataset(path) for path in (*sets, *others)] == [True] * len(sets) + [False] * len(others)


@pytest.mark.parametrize("setting", ["split", "subset"])
def test_splits_of_other_prompt_files_are_refused(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a star\n")
    with pytest.raises(InputError, match=rf"prompts.{setting}: read of a data set of the hub only"):
        scan_prompts(PromptSource(path=str(path), **{setting: "train"}))
