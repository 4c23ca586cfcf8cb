"""`check` finds whatever is wrong with an output folder, and says where; a good one passes."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.support.manifests import manifest
from tests.support.tiny_jobs import job, write_prompts
from tests.support.tiny_model import TINY_SCHEDULE
from ttsvar_ray.cli.app import app
from ttsvar_ray.cluster import job as job_module
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.prompts import prompt_id_of
from ttsvar_ray.results import (
    FinalImage,
    JobSummary,
    PromptFailure,
    PromptResult,
    ResultImage,
    SelectionRecord,
)
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Prompt

CONTEXT = RowContext(model="shapes", strategy="raw", seed=0, reward_name="none")
TEXTS = ("a ring", "a circle", "a ring", "a cross", "a ring")
ORDINALS = (0, 0, 1, 0, 2)


def prompt(row: int) -> Prompt:
    return Prompt(row=row, prompt_id=prompt_id_of(TEXTS[row]), ordinal=ORDINALS[row], text=TEXTS[row])


def done(row: int, content: bytes | None = None) -> PromptResult:
    file = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    image = FinalImage.of_bytes(content or file.getvalue(), width=8, height=6, image_format="png")
    kept = ResultImage(rank=0, image=image, reward=0.5, reward_history=(), lineage=(0,), bits=())
    trace = (SelectionRecord(prompt_key="k", scale_index=2, kind="cluster", ancestor_index=(0,)),)
    return PromptResult(prompt=prompt(row), images=(kept,), trace=trace, attempts=1, seconds=0.1)


def lost(row: int) -> PromptFailure:
    return PromptFailure(prompt=prompt(row), attempts=1, errors=("no",))


def write(layout: OutputLayout, *, chunks: tuple[int, ...] = (0, 1, 2), shard: str | None = None) -> None:
    """Write five prompts in parts of two; the fourth was given up."""
    shards = [f"cluster.shard={shard}"] if shard else []
    open_output(layout, manifest(*shards, prompt_count=len(TEXTS), rows_per_chunk=2))
    for index in chunks:
        rows = range(2 * index, min(2 * index + 2, len(TEXTS)))
        write_chunk(
            layout,
            index,
            rows=rows,
            finished=[done(row) for row in rows if row != 3],
            failed=[lost(row) for row in rows if row == 3],
            context=CONTEXT,
        )


def check(output: str | Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["check", str(output), *more])


def test_a_whole_output_passes(tmp_path: Path) -> None:
    write(OutputLayout(tmp_path))
    result = check(tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output == f"{tmp_path}: 3 parts, 4 prompts, 4 images, 1 dead letters; all whole\n"
    assert json.loads(check(tmp_path, "--json").output) == {
        "output": str(tmp_path),
        "ok": True,
        "parts": 3,
        "prompts": 4,
        "images": 4,
        "failed": 1,
        "problems": [],
    }


def test_a_relative_folder_that_looks_like_a_uri_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(OutputLayout("model:v1"))
    assert check("model:v1").output == "model:v1: 3 parts, 4 prompts, 4 images, 1 dead letters; all whole\n"
    command = ["select", "model:v1", "--where", "reward > 0", "--to", "file:best"]
    assert CliRunner().invoke(app, command).output == "file:best: 4 of 4 images, of 4 prompts\n"
    assert len(pq.read_table(tmp_path / "file:best" / "data")) == 4


def test_outputs_in_object_stores_are_checked(tmp_path: Path) -> None:
    layout = OutputLayout(f"memory:/{tmp_path}/out")
    write(layout)
    result = check(f"memory:/{tmp_path}/out")
    assert result.exit_code == 0, result.output


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))


def flip_pixels(root: Path) -> None:
    part = root / "data/part-00001.parquet"
    flip(part, part.read_bytes().index(b"IDAT") + 20)


def swap_rows(root: Path) -> None:
    part = root / "data/part-00000.parquet"
    pq.write_table(pq.read_table(part).take([1, 0]), part)


def rename_prompt(root: Path) -> None:
    part = root / "data/part-00000.parquet"
    table = pq.read_table(part)
    position = table.schema.get_field_index("prompt")
    table = table.set_column(position, table.schema.field(position), pa.array(["a ring", "a square"]))
    pq.write_table(table, part)


def renumber(root: Path) -> None:
    part = root / "data/part-00002.parquet"
    table = pq.read_table(part)
    position = table.schema.get_field_index("ordinal")
    table = table.set_column(position, table.schema.field(position), pa.array([1], pa.int32()))
    pq.write_table(table, part)


def lengthen_letters(root: Path) -> None:
    file = root / "failed/part-00001.jsonl"
    file.write_text(file.read_text() + file.read_text().replace('"row": 3', '"row": 2'))


@pytest.mark.parametrize(
    ("damage", "file", "told"),
    [
        (flip_pixels, "data/part-00001.parquet", "its manifest says"),
        (flip_pixels, "data/part-00001.parquet", "CRC"),
        (lambda root: flip(root / "data/part-00000.parquet", -200), "data/part-00000.parquet", "sha256"),
        (lambda root: flip(root / "trace/part-00000.parquet", 30), "trace/part-00000.parquet", "sha256"),
        (
            lambda root: (root / "data/part-00002.parquet").write_bytes(b"PAR1PAR1"),
            "data/part-00002.parquet",
            "cannot be read as Parquet",
        ),
        (lambda root: (root / "data/part-00001.parquet").unlink(), "data", "1 of 3 parts are not there"),
        (
            lambda root: (root / "trace/part-00001.parquet").unlink(),
            "trace/part-00001.parquet",
            "no such file",
        ),
        (
            lambda root: (root / "manifest/part-00001.json").unlink(),
            "manifest/part-00001.json",
            "there is none",
        ),
        (
            lambda root: (root / "manifest/part-00001.json").write_text("{}"),
            "manifest/part-00001.json",
            "not the manifest of a part",
        ),
        (
            lambda root: (root / "failed/part-00001.jsonl").unlink(),
            "data/part-00001.parquet",
            "neither images nor a dead letter for 1 rows: 3",
        ),
        (lengthen_letters, "failed/part-00001.jsonl", "one dead letter too many for row 2"),
        (
            lambda root: (root / "failed/part-00001.jsonl").write_text("x\n"),
            "failed/part-00001.jsonl",
            "line 1 is no dead letter",
        ),
        (
            lambda root: (root / "data/part-00007.parquet").write_bytes(b""),
            "data/part-00007.parquet",
            "expected no such part",
        ),
        *(
            (lambda root, name=name: (root / "data" / name).write_bytes(b""), f"data/{name}", "remove it")
            for name in ("part-00000 (copy).parquet", "part-000001.parquet", "other.parquet")
        ),
        (swap_rows, "data/part-00000.parquet", "expected rows of prompts 0 to 1 in order"),
        (rename_prompt, "data/part-00000.parquet", "row 1: its id is not that of its prompt"),
        (renumber, "data/part-00002.parquet", "row 4: expected ordinal 2, .* got 1"),
        (
            lambda root: (root / "failed/bad_lines.jsonl").write_text("{}\n"),
            "failed/bad_lines.jsonl",
            "expected 0 bad lines, found 1",
        ),
    ],
)
def test_damage_is_found_and_named(
    tmp_path: Path, damage: Callable[[Path], Any], file: str, told: str
) -> None:
    write(OutputLayout(tmp_path))
    damage(tmp_path)
    result = check(tmp_path)
    assert result.exit_code == 1, result.output
    report = json.loads(check(tmp_path, "--json").output)
    assert not report["ok"]
    assert any(
        each["file"] == str(tmp_path / file) and re.search(told, each["problem"])
        for each in report["problems"]
    ), report["problems"]
    assert f"{tmp_path / file}: " in result.output
    assert result.output.splitlines()[-1].endswith(
        f"{len(report['problems'])} problem{'s' * (len(report['problems']) != 1)}"
    )


def test_images_that_do_not_decode_are_found(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write(layout, chunks=(0, 1))
    write_chunk(layout, 2, rows=range(4, 5), finished=[done(4, b"\x89PNG\r\n")], failed=[], context=CONTEXT)
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "part-00002.parquet: image 0 of row 4: does not decode (UnidentifiedImageError" in result.output


def test_of_a_shard_its_own_parts_are_expected_and_of_shards_together_all(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write(layout, chunks=(1,), shard="1/2")
    assert check(tmp_path).exit_code == 0
    write(layout, chunks=(0,), shard="1/2")
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "1 of 3 parts are not there (part-00002.parquet)" in result.output


@pytest.mark.parametrize("content", [None, "{", '{"format_version": 99}'])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    result = check(tmp_path)
    assert result.exit_code == 2
    assert "run.json" in result.output


def test_generate_verifies_what_it_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(OutputLayout(tmp_path))
    summary = JobSummary(
        output=str(tmp_path),
        uri=str(tmp_path),
        prompts=5,
        images=5,
        failed=0,
        bad_lines=0,
        mean_reward=0.5,
        cut=0,
        prompts_resumed=5,
        workers=0,
        seconds=1.0,
        images_per_second=1.0,
    )
    monkeypatch.setattr(job_module, "run_job", lambda config, **_: summary)
    command = ["generate", "--prompts", "p.txt", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--verify"])
    assert result.exit_code == 0, result.output
    assert result.output.endswith("1 dead letters; all whole\n")
    flip_pixels(tmp_path)
    assert CliRunner().invoke(app, command).exit_code == 0
    result = CliRunner().invoke(app, [*command, "--verify"])
    assert result.exit_code == 1
    assert "data/part-00001.parquet: sha256" in result.output


@pytest.mark.parametrize("strategy", ["raw", "adaptive"])
def test_columns_of_the_caller_and_of_rounds_belong_to_the_run(tmp_path: Path, strategy: str) -> None:
    types = {
        "tag": ColumnType.STRING,
        "weight": ColumnType.FLOAT64,
        "include": ColumnType.JSON,
        "list": ColumnType(pa.list_(pa.int32())),
        "when": ColumnType(pa.timestamp("us")),
        "reward": ColumnType.INT64,  # has another name in the output
    }
    given = [f"strategy.name={strategy}", "output.bits=true"]
    layout = OutputLayout(tmp_path / "out")
    columns = {name: str(kind) for name, kind in types.items()}
    open_output(layout, manifest(*given, column_types=columns, rows_per_chunk=1))
    context = dataclasses.replace(
        CONTEXT, carried=carried_columns(types), bits=True, rounds=strategy == "adaptive"
    )
    write_chunk(layout, 0, rows=range(1), finished=[done(0)], failed=[], context=context)
    assert check(layout.root.path).exit_code == 0, check(layout.root.path).output
    part = layout.data_part(0).path
    pq.write_table(pq.read_table(part).drop_columns(["list"]), part)
    assert "its columns are not those of this run" in check(layout.root.path).output


def test_a_run_of_an_own_plan_is_whole_whatever_the_settings_name(tmp_path: Path) -> None:
    """From Python a plan may be given beside settings, which name no adaptive strategy then."""
    plan = compile_plan(
        scale_schedule=TINY_SCHEDULE, strategy="adaptive", reject_below={4: -1.5}, stop_at=-0.3, max_rounds=3
    )
    output = tmp_path / "out"
    job(write_prompts(tmp_path / "p.jsonl", 6), output, cluster={"workers": 1, "in_process": True}, plan=plan)
    assert json.loads((output / "run.json").read_text())["config"]["strategy"]["name"] == "tts-var"
    told = CliRunner().invoke(app, ["check", str(output)])
    assert told.exit_code == 0, told.output
