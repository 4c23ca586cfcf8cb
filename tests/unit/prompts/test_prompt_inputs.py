"""Inputs as people have them: what is wrong in one record costs that record, and never another one's text."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ttsvar_ray.columns import ColumnType
from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts import (
    BadLine,
    PromptFormat,
    PromptSource,
    read_prompts,
    scan_prompts,
    spool_standard_input,
)
from ttsvar_ray.storage.location import locate


def write(folder: Path, name: str, content: str | bytes, **more: Any) -> PromptSource:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return PromptSource(path=str(path), **more)


def table(folder: Path, columns: dict[str, Any], name: str = "p.parquet", **more: Any) -> PromptSource:
    pq.write_table(pa.table(columns), folder / name)
    return PromptSource(path=str(folder / name), **more)


def read(source: PromptSource) -> tuple[list[str], list[BadLine]]:
    bad: list[BadLine] = []
    return [prompt.text for prompt in read_prompts(source, bad.append)], bad


@pytest.mark.parametrize(
    ("content", "texts", "line"),
    [
        (b'id,prompt\n1,"a red circle\nby \xe9\nday"\n2,a blue square\n', ["a blue square"], 2),
        (b'id,prompt\n1,x\n2,"caf\xe9\nat night"\n3,y\n', ["x", "y"], 3),
        (b'id,prompt\n1,x\n2,"at night\ncaf\xe9"\n3,y\n', ["x", "y"], 3),
        (b'id,prompt\n1,x\n2,"at \n' + b"n" * (3 << 20) + b'\nnight"\n3,"y"\n', ["x", "y"], 3),
        (b"id,prompt\n1,x\n2," + b"n" * (1 << 20) + b',"\n\n"\n3,"y"\n', ["x", "y"], 3),
    ],
)
def test_bytes_that_cannot_be_read_cost_their_csv_record_alone(
    tmp_path: Path, content: bytes, texts: list[str], line: int
) -> None:
    found, bad = read(write(tmp_path, "p.csv", content))
    assert found == texts
    assert [each.line for each in bad] == [line]
    assert "expected UTF-8, got byte 0xe9" in bad[0].reason or "in a line, got more" in bad[0].reason
    assert bad[0].excerpt


def test_bad_csv_lines_have_their_numbers_and_show_what_is_there(tmp_path: Path) -> None:
    found, bad = read(write(tmp_path, "p.csv", 'id,prompt\n1,ok\n2,"a"b\n\n3,too,many\n4,5" nail\n'))
    assert found == ["ok", '5" nail']
    assert [(each.line, each.excerpt) for each in bad] == [(3, '2,"a"b'), (4, ""), (5, "3,too,many")]


def test_a_parquet_row_that_is_no_text_costs_that_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"caf\xe9", b"b", b"c"]).view(pa.string())
    notes = pa.array([b"x", b"y", b"\xff", b"z"]).view(pa.string())
    found, bad = read(table(tmp_path, {"prompt": texts, "note": notes}))
    assert found == ["a", "c"]
    assert [each.line for each in bad] == [2, 3]
    assert bad[0].reason.startswith("expected UTF-8, got byte 0xe9 at position 3")


def test_times_that_python_does_not_have_are_carried(tmp_path: Path) -> None:
    when = pa.array([10**14, None], type=pa.timestamp("ms"))
    source = table(tmp_path, {"prompt": ["a", "b"], "when": when})
    assert scan_prompts(source).column_types == {"when": ColumnType(pa.timestamp("ms"))}
    assert [prompt.columns["when"] for prompt in read_prompts(source)] == [10**14, None]


def test_the_digest_is_the_same_whatever_is_installed(tmp_path: Path) -> None:
    when = pa.array([1_700_000_000_123_456_789], type=pa.timestamp("ns"))
    source = table(tmp_path, {"prompt": ["a"], "when": when})
    program = (
        "import sys; {} from ttsvar_ray.prompts import PromptSource, scan_prompts;"
        f"print(scan_prompts(PromptSource(path={source.path!r})).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program.format(first)], capture_output=True, text=True, check=True
        ).stdout
        for first in ("", "sys.modules['pandas'] = None;")
    }
    assert digests == {scan_prompts(source).digest + "\n"}


def test_other_column_types_are_another_prompt_set(tmp_path: Path) -> None:
    plain = write(tmp_path, "p.jsonl", '{"prompt": "a", "n": 1}\n')
    digests = [
        scan_prompts(table(tmp_path, {"prompt": ["a"], "n": pa.array([1], type=kind)})).digest
        for kind in (pa.int64(), pa.int32(), pa.timestamp("s"))
    ]
    assert digests[0] == scan_prompts(plain).digest
    assert len(set(digests)) == 3


def test_column_names_must_differ_and_have_no_nul(tmp_path: Path) -> None:
    doubled = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(doubled, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column names must differ; 'prompt' occurs twice"):
        scan_prompts(PromptSource(path=str(tmp_path / "p.parquet")))
    nul = json.dumps({"prompt": "a", "x\0y": 1})
    with pytest.raises(InputError, match="expected a name without NUL"):
        scan_prompts(write(tmp_path, "p.jsonl", nul))
    assert scan_prompts(write(tmp_path, "p.jsonl", nul, drop=("x\0y",))).column_types == {}


def test_whole_numbers_that_no_float_holds_stay_what_they_are(tmp_path: Path) -> None:
    lines = '{"prompt": "a", "id": 9007199254740993}\n{"prompt": "b", "id": NaN}\n'
    reverse = "".join(reversed(lines.splitlines(keepends=True)))
    for content in (lines, reverse):
        source = write(tmp_path, "p.jsonl", content)
        assert scan_prompts(source).column_types == {"id": ColumnType.JSON}
    source = write(tmp_path, "p.jsonl", lines.replace("9007199254740993", "7"))
    assert scan_prompts(source).column_types == {"id": ColumnType.FLOAT64}


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_carriage_returns_alone_end_lines(tmp_path: Path, name: str) -> None:
    lines = ["a red circle", "a blue square", "x" * 100_000, "a ring"]
    if name == "p.csv":
        lines = ["prompt", *lines]
    if name == "p.jsonl":
        lines = [json.dumps({"prompt": line}) for line in lines]
    found, bad = read(write(tmp_path, name, "\r".join(lines) + "\r"))
    assert (len(found), bad) == (4, [])
    assert (found[0], found[3]) == ("a red circle", "a ring")


def test_marks_inside_files_are_dropped_and_what_nobody_sees_is_blank(tmp_path: Path) -> None:
    content = "\ufeffa red circle\n\ufeffa blue square\n\u200b\na ring\n\u200b\u2060 \n"
    found, bad = read(write(tmp_path, "p.txt", content))
    assert found == ["a red circle", "a blue square", "a ring"]
    assert [(each.line, each.reason) for each in bad] == [(3, "prompt: expected text, got a blank")]
    lines = '{"prompt": "\\ufeffa ring"}\n{"prompt": "\\u200b"}\n{"prompt": " \\u0000\\u0007"}\n'
    found, bad = read(write(tmp_path, "p.jsonl", lines))
    assert (found, [each.line for each in bad]) == (["a ring"], [2, 3])


def test_a_named_pipe_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"got a pipe or device, .* use - and standard input"):
        scan_prompts(PromptSource(path=str(tmp_path / "p.txt")))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("content", "suffix", "texts"),
    [
        (b'id,prompt\n7,a red circle\n8,"a, b"\n', ".csv", ["a red circle", "a, b"]),
        (b"prompt\tid\na, red circle\t7\n", ".tsv", ["a, red circle"]),
        (b' [ {"prompt": "a"}, {"prompt": "b"} ]', ".json", ["a", "b"]),
        (b"[a portrait], oil\nanother\n", ".txt", ["[a portrait], oil", "another"]),
        (gzip.compress(b'{"prompt": "a"}\n', mtime=0), ".jsonl.gz", ["a"]),
    ],
)
def test_standard_input_is_what_it_looks_like(
    tmp_path: Path, content: bytes, suffix: str, texts: list[str]
) -> None:
    source = spool_standard_input(PromptSource(path="-"), io.BytesIO(content), tmp_path)
    assert str(source.path).endswith(suffix)
    assert read(source) == (texts, [])


def test_standard_input_may_be_parquet_or_what_the_settings_say(tmp_path: Path) -> None:
    content = (tmp_path / "p.parquet", table(tmp_path, {"prompt": ["a", "b"]}))[0].read_bytes()
    spooled = spool_standard_input(PromptSource(path="-"), io.BytesIO(content), tmp_path)
    assert read(spooled) == (["a", "b"], [])
    lines = b"id,prompt\n1,a\n"
    as_text = PromptSource(path="-", format=PromptFormat.TXT)
    assert read(spool_standard_input(as_text, io.BytesIO(lines), tmp_path))[0] == ["id,prompt", "1,a"]
    with pytest.raises(InputError, match=r"standard input: expected columns, .* whose header names"):
        spool_standard_input(PromptSource(path="-", id_column="id"), io.BytesIO(b"a\nb\n"), tmp_path)


ROWS = [{"prompt": "a", "id": 1}, {"prompt": "b, c", "id": 2}, {"prompt": "ü", "id": 3}]


def test_all_formats_and_their_compressed_files_are_one_prompt_set(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    contents = {
        "p.jsonl": lines,
        "p.ndjson": lines,
        "lines.json": lines,
        "p.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
        "flat.json": "\ufeff" + json.dumps(ROWS),
    }
    digests = {name: scan_prompts(write(tmp_path, name, text)).digest for name, text in contents.items()}
    digests["p.parquet"] = scan_prompts(
        table(tmp_path, {"prompt": ["a", "b, c", "ü"], "id": [1, 2, 3]})
    ).digest
    for name in ("p.jsonl", "p.json"):
        for suffix, codec in (("gz", "gzip"), ("zst", "zstd")):
            with pa.CompressedOutputStream(str(tmp_path / f"{name}.{suffix}"), codec) as file:
                file.write(contents[name].encode())
            digests[suffix + name] = scan_prompts(
                PromptSource(path=str(tmp_path / f"{name}.{suffix}"))
            ).digest
    assert len(set(digests.values())) == 1, digests
    rows = "".join(f"{row['prompt']}\t{row['id']}\n" for row in ROWS)
    found, bad = read(write(tmp_path, "p.tsv", "prompt\tid\n" + rows))
    assert (found, bad) == (["a", "b, c", "ü"], [])


def test_a_damaged_compressed_file_is_told(tmp_path: Path) -> None:
    lines = "".join(f"prompt {os.urandom(9).hex()}\n" for _ in range(20_000)).encode()
    whole = gzip.compress(lines)
    with pytest.raises(InputError, match=r"p\.txt\.gz: damaged after line \d+"):
        read(write(tmp_path, "p.txt.gz", whole[: len(whole) // 2]))
    two_members = write(tmp_path, "two.txt.gz", gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    assert read(two_members)[0] == ["a", "b"]


def test_elements_of_a_json_array_may_be_long_and_bad_ones_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"number {row}", "note": "n" * (row * 997)} for row in range(300)]
    rows[7], rows[8] = 12, {"prompt": ""}
    found, bad = read(write(tmp_path, "p.json", json.dumps(rows)))
    assert found == [row["prompt"] for row in rows if isinstance(row, dict) and row["prompt"]]
    assert [(each.line, each.reason) for each in bad] == [
        (8, "expected a JSON object, got a number"),
        (9, "prompt: expected text, got a blank"),
    ]
    content = b'[{"prompt": "caf\xe9"}, {"prompt": "a"}]'
    found, bad = read(write(tmp_path, "p.json", content))
    assert (found, [each.reason for each in bad]) == (["a"], ["expected UTF-8, got other bytes"])
    assert bad[0].excerpt == '{"prompt": "caf\\xe9"}'


def test_several_files_patterns_and_folders_are_one_prompt_set(tmp_path: Path) -> None:
    folder = tmp_path / "set [1]"
    (folder / "deep").mkdir(parents=True)
    for name, content in (("b.txt", "three\n"), ("a.txt", "one\n \ntwo\n"), ("deep/c.txt", "four\n")):
        (folder / name).write_text(content)
    (folder / "README.md").write_text("not a prompt")
    (folder / "_SUCCESS").write_text("")
    in_order = ["one", "two", "three"]
    assert read(PromptSource(path=str(folder)))[0] == in_order
    found, bad = read(PromptSource(path=(str(folder / "b.txt"), str(folder / "a.txt"))))
    assert found == ["three", "one", "two"]
    assert [(each.line, each.file) for each in bad] == [(2, str(folder / "a.txt"))]
    flat = tmp_path / "set"
    folder.rename(flat)
    assert read(PromptSource(path=str(flat / "?.txt")))[0] == in_order
    assert read(PromptSource(path=str(flat / "**" / "*.txt")))[0] == [*in_order, "four"]
    with pytest.raises(InputError, match=r"\*\.csv: expected prompt files, found none"):
        scan_prompts(PromptSource(path=str(flat / "*.csv")))
    (flat / "d.jsonl").write_text('{"prompt": "five"}\n')
    with pytest.raises(InputError, match=r"files of one format, got \.jsonl, \.txt"):
        scan_prompts(PromptSource(path=str(flat)))
    for path in flat.rglob("*.txt"):
        with locate(f"memory://many/{path.relative_to(flat)}").replacing() as copy:
            copy.write_bytes(path.read_bytes())
    assert read(PromptSource(path="memory://many/*.txt"))[0] == in_order
    assert read(PromptSource(path="memory://many/**/*.txt"))[0] == [*in_order, "four"]
    assert read(PromptSource(path="memory://many/deep"))[0] == ["four"]


def test_a_file_without_a_suffix_is_what_the_settings_say(tmp_path: Path) -> None:
    source = write(tmp_path, "captions", "prompt\na\n", format=PromptFormat.CSV)
    assert read(source)[0] == ["a"]


def test_columns_are_kept_or_dropped_by_name(tmp_path: Path) -> None:
    columns = {"prompt": ["a"], "id": ["x"], "big": [b"x" * 9], "tag": [1]}
    for more in ({"keep": ("tag",)}, {"drop": ("big",)}):
        source = table(tmp_path, columns, id_column="id", **more)
        assert scan_prompts(source).column_types == {"tag": ColumnType.INT64}
        assert [dict(prompt.columns) for prompt in read_prompts(source)] == [{"tag": 1}]
    with pytest.raises(InputError, match=r"no column 'tga'; columns found: .*; set prompts.columns"):
        scan_prompts(table(tmp_path, columns, drop=("tga",)))
    with pytest.raises(InputError, match=r"prompts.columns: no column 'tga'"):
        scan_prompts(write(tmp_path, "p.jsonl", '{"prompt": "a", "tag": 1}', keep=("tga",)))


def test_parts_of_a_table_must_agree_on_types(tmp_path: Path) -> None:
    for name, kind in (("a.parquet", pa.int32()), ("b.parquet", pa.int32()), ("c.parquet", pa.null())):
        values = pa.array([1 if kind != pa.null() else None], type=kind)
        table(tmp_path, {"prompt": [name], "n": values}, name)
    assert scan_prompts(PromptSource(path=str(tmp_path))).column_types == {"n": ColumnType(pa.int32())}
    table(tmp_path, {"prompt": ["d"], "n": ["text"]}, "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: column 'n': expected int32 as in the files before"):
        scan_prompts(PromptSource(path=str(tmp_path)))


def test_pictures_beside_prompts_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    images = [os.urandom(300_000) for _ in range(200)]
    given = pa.table({"prompt": [f"number {row}" for row in range(200)], "image": images})
    pq.write_table(given, tmp_path / "p.parquet", use_dictionary=False, write_batch_size=8)
    del images, given
    pool = pa.default_memory_pool()
    for drop, most in (((), 30e6), (("image",), 2e6)):
        source = PromptSource(path=str(tmp_path / "p.parquet"), drop=drop)
        scan = scan_prompts(source, rows_per_chunk=8)
        before = pool.bytes_allocated()
        tracemalloc.start()
        peak = 0
        for prompt in read_prompts(source, scan=scan):
            peak = max(peak, pool.bytes_allocated() - before)
            assert ("image" in prompt.columns) == (not drop)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak + python < most, (peak, python)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_json_that_python_would_change_in_silence_costs_its_row(tmp_path: Path, name: str) -> None:
    rows = [
        '{"prompt": "a", "n": 1.5, "inside": {"x": 1}}',
        '{"prompt": "b", "prompt": "c"}',
        '{"prompt": "d", "inside": {"x": 1, "x": 2}}',
        '{"prompt": "e", "n": 1e400}',
        '{"prompt": "f", "inside": {"x": [-1E999]}}',
        '{"prompt": "g\\u0000h"}',
        '{"prompt": "i", "n": -' + "9" * 5000 + "}",
        '{"prompt": "j", "n": ' + "9" * 4000 + "}",
        '{"prompt": "last", "n": NaN}',
    ]
    content = "[" + ",".join(rows) + "]" if name == "p.json" else "\n".join(rows)
    found, bad = read(write(tmp_path, name, content))
    assert found == ["a", "j", "last"]
    assert [each.line for each in bad] == [2, 3, 4, 5, 6, 7]
    assert bad[0].reason == "expected each key once in a JSON object, got 'prompt' twice"
    assert "'x' twice" in bad[1].reason
    assert "got 1e400" in bad[2].reason
    assert "got -1E999" in bad[3].reason
    assert bad[4].reason == "prompt: expected text, got a NUL character"
    assert bad[5].reason.startswith("expected numbers that fit 64 bits, got -999")


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
@pytest.mark.parametrize("good", [2, 20_000])
def test_a_nul_byte_costs_its_line_wherever_it_is(tmp_path: Path, name: str, good: int) -> None:
    head = "prompt\n" if name == "p.csv" else ""
    found, bad = read(write(tmp_path, name, head + "a red ring\n" * good + "a \0 ring\nlast\n\0\0\0\n"))
    assert found == ["a red ring"] * good + ["last"]
    begin = good + bool(head) + 1
    assert [each.line for each in bad] == [begin, begin + 2]
    assert bad[0].reason == "expected UTF-8, got byte 0x00 at position 2"
