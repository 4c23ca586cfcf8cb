"""Exported images are those of the run, in layouts that their readers open."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from outcome_samples import CONTEXT, encoded, failure, pixels, result
from PIL import Image
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray.cli.app import app
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset.export import (
    ExportedImage,
    claimed,
    exported_images,
    to_folder,
    to_geneval,
    to_hps,
    to_oneig,
    to_t2i_compbench,
    to_webdataset,
)
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import OutputError

TYPES = {"tag": "string", "include": "json"}
COLUMNS: dict[str, Any] = {"tag": "counting", "include": [{"class": "dog", "count": 3}]}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """Five images of three prompts in two parts."""
    layout = OutputLayout(tmp_path / "run")
    run = manifest("seed=7", prompt_count=3, rows_per_chunk=2, column_types=TYPES)
    open_output(layout, replace(run, content={**run.content, "weights.reward.shapes": "sha256:abc"}))
    context = RowContext(
        model="shapes",
        strategy="tts-var",
        seed=7,
        reward_name="shapes",
        carried=carried_columns({"tag": ColumnType.STRING, "include": ColumnType.JSON}),
        bits=True,
    )
    first = [result(0, images=2, **COLUMNS), result(1, images=2, **COLUMNS)]
    write_chunk(layout, 0, rows=range(2), finished=first, failed=[], context=context)
    last = result(2, tag="counting", include=[{"class": "dog", "count": float("nan")}])
    write_chunk(layout, 1, rows=range(2, 3), finished=[last], failed=[], context=context)
    return layout


def images(layout: OutputLayout, *, best_only: bool = False) -> Iterator[ExportedImage]:
    return exported_images(layout, TYPES, best_only=best_only)


def test_rows_come_in_order_with_their_columns_and_without_numbers_that_json_lacks(
    layout: OutputLayout,
) -> None:
    found = list(images(layout))
    keys = ["00000000-00", "00000000-01", "00000001-00", "00000001-01", "00000002-00"]
    assert [image.key for image in found] == keys
    assert [image.key for image in images(layout, best_only=True)] == [keys[0], keys[2], keys[4]]
    assert found[0].encoded == encoded(0).payload
    assert found[0].metadata["include"] == COLUMNS["include"]
    assert found[0].metadata["reward_history"] == [None, 0.25]
    assert not {"image", "bits"} & found[0].metadata.keys()
    assert found[4].metadata["include"] == [{"class": "dog", "count": None}]
    json.dumps(found[0].metadata, allow_nan=False)


def test_webdataset_shards_have_no_gaps_and_open(layout: OutputLayout, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert to_webdataset(images(layout), shards, shard_size=2) == 5
    assert [path.name for path in sorted(shards.iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]
    with tarfile.open(shards / "00001.tar") as tar:
        assert tar.getnames() == [
            f"{key}{suffix}" for key in ("00000001-00", "00000001-01") for suffix in (".png", ".json")
        ]
    rows = datasets.load_dataset(
        "webdataset", data_files=str(shards / "*.tar"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [row["__key__"] for row in rows] == [image.key for image in images(layout)]
    assert [row["json"]["tag"] for row in rows] == ["counting"] * 5
    np.testing.assert_array_equal(np.asarray(rows[3]["png"]), pixels(1, 1))


def test_shards_open_whatever_their_first_samples_lack(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "run")
    types = {"note": "string", "mixed": "json", "when": "timestamp[us]", "price": "decimal128(10, 2)"}
    types |= {"hash": "uint64", "hashes": "list<item: uint64>"}
    open_output(layout, manifest(prompt_count=8, rows_per_chunk=8, column_types=types))
    carried = carried_columns(
        {
            "note": ColumnType.STRING,
            "mixed": ColumnType.JSON,
            "when": ColumnType(pa.timestamp("us")),
            "price": ColumnType(pa.decimal128(10, 2)),
            "hash": ColumnType(pa.uint64()),
            "hashes": ColumnType(pa.list_(pa.uint64())),
        }
    )
    mixed = [{"a": 1}, [1, "x"], 3, "text", None, True, 1.5, [[]]]
    finished = [result(row, mixed=value) for row, value in enumerate(mixed)]
    late = {"note": "late", "mixed": mixed[7], "when": 10**15, "price": Decimal("1.20")}
    late |= {"hash": 2**64 - 1, "hashes": [2**64 - 1]}
    finished[7] = result(7, **late)
    context = replace(CONTEXT, carried=carried)
    write_chunk(layout, 0, rows=range(8), finished=finished, failed=[], context=context)
    shards = tmp_path / "shards"
    done = CliRunner().invoke(
        app, ["export", str(layout.root), "--to", str(shards), "--layout", "webdataset", "--shard-size", "3"]
    )
    assert done.exit_code == 0, done.output
    rows = datasets.load_dataset(str(shards), split="train", cache_dir=str(tmp_path / "c"))
    assert [row["json"]["note"] for row in rows] == [None] * 7 + ["late"]
    assert [None if (text := row["json"]["mixed"]) is None else json.loads(text) for row in rows] == mixed
    assert (rows[7]["json"]["hash"], rows[7]["json"]["hashes"]) == (str(2**64 - 1), [str(2**64 - 1)])
    assert (rows[7]["json"]["when"], rows[7]["json"]["price"]) == ("2001-09-09 01:46:40.000000", "1.20")
    assert rows[7]["png"].size == (8, 6)
    assert "## How it was made" in (shards / "README.md").read_text()


def test_an_image_folder_says_how_it_was_made(layout: OutputLayout, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    command = ["export", str(layout.root), "--to", str(folder), "--layout", "folder"]
    assert CliRunner().invoke(app, command).exit_code == 0
    card = (folder / "README.md").read_text()
    assert "| seed | 7 |" in card
    assert "| reward | shapes |" in card, "the model's own, which settings call auto"
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "c"))
    assert rows[2]["image"].size == (8, 6)


@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_a_card_that_somebody_made_their_own_is_kept(layout: OutputLayout, tmp_path: Path, kind: str) -> None:
    command = ["export", str(layout.root), "--to", str(tmp_path / "to"), "--layout", kind]
    assert CliRunner().invoke(app, command).exit_code == 0
    card = tmp_path / "to" / "README.md"
    written = card.read_text()
    card.write_text(written + "changed, the mark left\n")
    assert CliRunner().invoke(app, command).exit_code == 0
    assert card.read_text() == written
    own = "".join(line for line in written.splitlines(True) if "Remove this line" not in line) + "Of Ann's.\n"
    assert len(own.splitlines()) == len(written.splitlines()), "one line less, one more"
    card.write_text(own)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert card.read_text() == own


def test_a_killed_process_leaves_no_export_that_its_command_refuses(
    layout: OutputLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(layout.root), "--to", str(tmp_path / "to"), "--layout", "folder"]

    def killed(file: Path, text: str, **_: str) -> int:
        file.write_bytes(text[:9].encode())
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", killed)
        assert CliRunner().invoke(app, command).exit_code == 1
    (tmp_path / "to" / "..export.json.0a1b2c3d.tmp").touch()  # of one that ends without a word
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_an_export_of_no_images_is_refused(tmp_path: Path, kind: str) -> None:
    layout = OutputLayout(tmp_path / "run")
    open_output(layout, manifest(prompt_count=1))
    write_chunk(layout, 0, rows=range(1), finished=[], failed=[failure(0)], context=CONTEXT)
    command = ["export", str(layout.root), "--to", str(tmp_path / "to"), "--layout", kind]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2, refused.output
    assert "expected images to export, found none" in refused.stderr
    assert not (tmp_path / "to").exists()


def test_an_export_that_was_stopped_goes_on_to_the_same_bytes(layout: OutputLayout, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    to_webdataset(images(layout), whole, shard_size=2)

    def some() -> Iterator[ExportedImage]:
        for number, image in enumerate(images(layout)):
            if number == 3:
                raise KeyboardInterrupt
            yield image

    with pytest.raises(KeyboardInterrupt):
        to_webdataset(some(), stopped, shard_size=2)
    assert [path.name for path in stopped.iterdir()] == ["00000.tar"]
    kept = (stopped / "00000.tar").stat().st_mtime_ns
    to_webdataset(images(layout), stopped, shard_size=2)
    assert (stopped / "00000.tar").stat().st_mtime_ns == kept
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_datasets_opens_the_folder(layout: OutputLayout, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert to_folder(images(layout), folder) == 5
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [(row["row"], row["image_rank"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    np.testing.assert_array_equal(np.asarray(rows[1]["image"]), pixels(0, 1))


def test_datasets_opens_a_folder_whose_json_is_of_many_kinds(tmp_path: Path) -> None:
    run = OutputLayout(tmp_path / "run")
    values: list[Any] = [{"a": 1}, [2, None], 3, "four", None]
    open_output(run, manifest(prompt_count=5, rows_per_chunk=5, column_types={"tag": "json"}))
    context = RowContext(
        model="shapes",
        strategy="raw",
        seed=0,
        reward_name="none",
        carried=carried_columns({"tag": ColumnType.JSON}),
    )
    finished = [result(row, tag=value) for row, value in enumerate(values)]
    write_chunk(run, 0, rows=range(5), finished=finished, failed=[], context=context)
    command = ["export", str(run.root), "--to", str(tmp_path / "a #1"), "--layout", "folder"]
    assert CliRunner().invoke(app, command).output.endswith("5 images (folder)\n")
    rows = datasets.load_dataset(str(tmp_path / "a #1"), split="train", cache_dir=str(tmp_path / "c"))
    assert [text and json.loads(text) for text in rows["tag"]] == values


def test_geneval_gets_a_folder_a_prompt_with_its_own_metadata(layout: OutputLayout, tmp_path: Path) -> None:
    folder = tmp_path / "geneval"
    assert to_geneval(images(layout), folder) == 5
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "00000/metadata.jsonl",
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "00001/metadata.jsonl",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
        "00002/metadata.jsonl",
        "00002/samples/00000.png",
    ]
    told = (folder / "00001" / "metadata.jsonl").read_text()
    assert told == json.dumps({**COLUMNS, "prompt": "prompt number 1"}), "as the prompt file has it"


def test_lines_of_one_id_are_samples_of_one_geneval_prompt(layout: OutputLayout, tmp_path: Path) -> None:
    repeated = [
        ExportedImage(
            key=image.key,
            encoded=image.encoded,
            suffix=image.suffix,
            metadata={**image.metadata, "prompt_id": "same"},
        )
        for image in images(layout, best_only=True)
    ]
    to_geneval(iter(repeated), tmp_path / "geneval")
    samples = sorted((tmp_path / "geneval" / "00000" / "samples").iterdir())
    assert [path.name for path in samples] == ["00000.png", "00001.png", "00002.png"]
    assert samples[2].read_bytes() == encoded(2).payload


def test_t2i_compbench_reads_prompts_off_names(layout: OutputLayout, tmp_path: Path) -> None:
    assert to_t2i_compbench(images(layout, best_only=True), tmp_path / "t2i") == 3
    assert sorted(path.name for path in (tmp_path / "t2i" / "samples").iterdir()) == [
        "prompt number 0_000000.png",
        "prompt number 1_000001.png",
        "prompt number 2_000002.png",
    ]


def with_columns(given: Iterator[ExportedImage], *columns: dict[str, Any]) -> Iterator[ExportedImage]:
    """Give the images of each row the columns at its place."""
    for image in given:
        yield replace(image, metadata={**image.metadata, **columns[image.metadata["row"]]})


ONEIG = ({"category": "Portrait", "id": "007"}, {"category": "Anime_Stylization", "id": 12})


def oneig(layout: OutputLayout, per_prompt: int) -> Iterator[ExportedImage]:
    """Yield two prompts with so many images each."""
    for row in range(2):
        image = next(one for one in images(layout) if one.metadata["row"] == row)
        for rank in range(per_prompt):
            told = {**image.metadata, **ONEIG[row], "image_rank": rank, "model": "weights/mine"}
            yield replace(image, encoded=encoded(row, rank).payload, metadata=told)


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_oneig_gets_one_picture_a_prompt(layout: OutputLayout, tmp_path: Path, per_prompt: int) -> None:
    folder = tmp_path / "oneig"
    assert to_oneig(oneig(layout, per_prompt), folder) == 2 * per_prompt
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == ["anime/mine/012.webp", "human/mine/007.webp"], "as the benchmark's README draws them"
    page = np.asarray(Image.open(folder / names[0]))
    side = 2 if per_prompt == 4 else 1
    assert page.shape == (side * 6, side * 8, 3)
    for rank in range(per_prompt):
        top, left = 6 * (rank // side), 8 * (rank % side)
        np.testing.assert_array_equal(page[top : top + 6, left : left + 8], pixels(1, rank))


def test_what_oneig_cannot_read_is_refused(layout: OutputLayout, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"row 0: expected one image .*, got 3 of human/mine/007"):
        to_oneig(oneig(layout, 3), tmp_path / "three")
    uneven = [*oneig(layout, 4)][:5]
    with pytest.raises(OutputError, match=r"row 1: .*, got 1 of anime/mine/012"):
        to_oneig(iter(uneven), tmp_path / "uneven")
    one = [*oneig(layout, 1)]
    with pytest.raises(OutputError, match=r"row 0: .*, got 1 of human"):
        to_oneig(iter([*one, one[0]]), tmp_path / "apart")
    with pytest.raises(OutputError, match=r"row 0: expected the columns category .* got None and None"):
        to_oneig(images(layout), tmp_path / "none")


STYLES = ({"style": "photo"}, {"style": "anime"}, {"style": "photo"})


def test_hps_gets_a_folder_a_style_numbered_by_the_prompts(layout: OutputLayout, tmp_path: Path) -> None:
    folder = tmp_path / "hps"
    assert to_hps(with_columns(images(layout, best_only=True), *STYLES), folder) == 3
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == ["shapes/anime/00000.jpg", "shapes/photo/00000.jpg", "shapes/photo/00001.jpg"]
    written = Image.open(folder / names[2])
    assert written.format == "JPEG"
    assert np.abs(np.asarray(written).astype(int) - pixels(2)).max() <= 2


def test_what_hps_would_number_otherwise_is_refused(layout: OutputLayout, tmp_path: Path) -> None:
    def best() -> Iterator[ExportedImage]:
        return with_columns(images(layout, best_only=True), *STYLES)

    gap = [image for image in best() if image.metadata["row"] != 1]
    with pytest.raises(OutputError, match="row 1: has no image, and HPS numbers images by the order"):
        to_hps(iter(gap), tmp_path / "gap")
    numbered = [
        replace(image, metadata={**image.metadata, "index": (41, "42")[at]}) for at, image in enumerate(gap)
    ]
    to_hps(iter(numbered), tmp_path / "numbered")
    photos = sorted(path.name for path in (tmp_path / "numbered/shapes/photo").iterdir())
    assert photos == ["00041.jpg", "00042.jpg"]
    with pytest.raises(OutputError, match=r"row 0: expected one image .* got image 1 and 'photo'"):
        to_hps(with_columns(images(layout), *STYLES), tmp_path / "two")
    with pytest.raises(OutputError, match=r"row 0: expected one image .* got image 0 and None"):
        to_hps(images(layout), tmp_path / "none")


@pytest.mark.parametrize("prompt", ["a and/or b", "../../up", "x" * 300])
def test_a_prompt_that_names_no_file_is_refused(prompt: str, tmp_path: Path) -> None:
    image = ExportedImage(
        key="k", encoded=b"", suffix=".png", metadata={"prompt": prompt, "row": 4, "prompt_id": prompt}
    )
    with pytest.raises(OutputError, match="row 4: expected a prompt without '/'"):
        to_t2i_compbench(iter([image]), tmp_path / "t2i")
    assert not list(tmp_path.rglob("*.png"))
    assert to_geneval(iter([image]), tmp_path / "geneval") == 1, "prompts name nothing there"
    assert (tmp_path / "geneval" / "00000" / "samples" / "00000.png").exists()


def test_other_formats_become_png_where_only_that_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, format="WEBP", lossless=True)
    image = ExportedImage(
        key="k", encoded=file.getvalue(), suffix=".webp", metadata={"prompt": "p", "row": 0, "prompt_id": "p"}
    )
    to_geneval(iter([image]), tmp_path / "geneval")
    to_folder(iter([image]), tmp_path / "folder")
    converted = Image.open(tmp_path / "geneval" / "00000" / "samples" / "00000.png")
    assert (converted.format, converted.getpixel((0, 0))) == ("PNG", (9, 9, 9))
    assert (tmp_path / "folder" / "images" / "00000" / "k.webp").read_bytes() == file.getvalue()


def test_a_folder_takes_one_export(layout: OutputLayout, tmp_path: Path) -> None:
    folder = tmp_path / "to"

    def claim(folder: Path, shard_size: int) -> None:
        with claimed(folder, layout, {"layout": "webdataset", "shard_size": shard_size}):
            pass

    claim(folder, 2)
    claim(folder, 2)
    with pytest.raises(OutputError, match="choose another folder"):
        claim(folder, 3)
    # A prompt that was given up has its images now: shards that are there lack them.
    layout.data_part(0).delete()
    write_chunk(layout, 0, rows=range(2), finished=[result(0), result(1)], failed=[], context=CONTEXT)
    with pytest.raises(OutputError, match="choose another folder"):
        claim(folder, 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="expected an empty folder"):
        claim(tmp_path / "full", 2)


def test_a_run_that_a_layout_cannot_hold_leaves_the_folder_to_another(
    layout: OutputLayout, tmp_path: Path
) -> None:
    folder = tmp_path / "to"
    with pytest.raises(OutputError), claimed(folder, layout, {"layout": "oneig"}):
        to_oneig(images(layout), folder)
    with claimed(folder, layout, {"layout": "folder"}):
        to_folder(images(layout), folder)


def test_a_column_that_is_called_as_the_name_of_the_file_hides_no_image(tmp_path: Path) -> None:
    told = {"row": 3, "file_name": "mine.jpg", "old_file_names": "a.jpg", "profile_name": "b"}
    image = ExportedImage(key="k", encoded=encoded(0).payload, suffix=".png", metadata=told)
    to_folder(iter([image]), tmp_path / "to")
    (row,) = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "to"), split="train")
    np.testing.assert_array_equal(np.asarray(row["image"]), pixels(0))
    assert (row["filename"], row["old_filenames"], row["profile_name"]) == ("mine.jpg", "a.jpg", "b")
