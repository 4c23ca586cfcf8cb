"""Prompt files of every format give the same prompts; bad lines are told apart from bad files."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.s3_server import S3Server
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts import (
    BadLine,
    PromptSource,
    bad_lines,
    prompt_id_of,
    read_prompts,
    scan_prompts,
    spool_standard_input,
)
from ttsvar_ray.prompts.lines import text_lines
from ttsvar_ray.prompts.source import PromptFormat, format_of
from ttsvar_ray.storage.location import locate
from ttsvar_ray.types import Prompt

TEXTS = ["a red circle", "two green squares", "ein blauer Würfel", "a red circle"]


def write(folder: Path, name: str, content: str | bytes) -> PromptSource:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return PromptSource(path=str(path))


def write_formats(folder: Path) -> list[PromptSource]:
    pq.write_table(pa.table({"prompt": TEXTS}), folder / "p.parquet")
    return [
        write(folder, "p.txt", "\n".join(TEXTS) + "\n"),
        write(folder, "windows.txt", b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode()),
        write(folder, "p.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS) + "\n\n"),
        write(folder, "p.csv", "prompt\n" + "".join(f'"{text}"\n' for text in TEXTS)),
        PromptSource(path=str(folder / "p.parquet")),
    ]


def read(source: PromptSource) -> tuple[list[Prompt], list[BadLine]]:
    bad: list[BadLine] = []
    return list(read_prompts(source, bad.append)), bad


def test_all_formats_give_the_same_prompts(tmp_path: Path) -> None:
    sources = write_formats(tmp_path)
    expected = [
        Prompt(row=row, prompt_id=prompt_id_of(text), ordinal=ordinal, text=text)
        for row, (text, ordinal) in enumerate(zip(TEXTS, [0, 0, 0, 1], strict=True))
    ]
    for source in sources:
        prompts, bad = read(source)
        assert [(p.row, p.prompt_id, p.ordinal, p.text, dict(p.columns)) for p in prompts] == [
            (p.row, p.prompt_id, p.ordinal, p.text, {}) for p in expected
        ], source.path
        assert bad == []
    assert len({scan_prompts(source).digest for source in sources}) == 1


def test_geneval_metadata_keeps_its_other_keys(tmp_path: Path) -> None:
    line = {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    }
    source = write(tmp_path, "evaluation_metadata.jsonl", json.dumps(line))
    (prompt,), bad = read(source)
    assert not bad
    assert prompt.text == "a photo of two clocks"
    assert dict(prompt.columns) == {key: line[key] for key in ("tag", "include", "exclude")}
    assert scan_prompts(source).column_types == {
        "tag": ColumnType.STRING,
        "include": ColumnType.JSON,
        "exclude": ColumnType.JSON,
    }


def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "p.jsonl",
        b"\n".join(
            [
                b'{"prompt": "one"}',
                b'{"prompt": "two"',
                b'{"caption": "three"}',
                b'{"prompt": ""}',
                b'{"prompt": 5}',
                b'{"prompt": null}',
                b"",
                b'["prompt"]',
                b'{"prompt": "caf\xe9"}',
                b'{"prompt": "half \\ud800 pair"}',
                b'{"prompt": "last"}',
            ]
        ),
    )
    prompts, bad = read(source)
    assert [(prompt.row, prompt.text) for prompt in prompts] == [(0, "one"), (1, "last")]
    assert [line.line for line in bad] == list(range(2, 11))
    reasons = {line.line: line.reason for line in bad}
    assert "invalid JSON" in reasons[2]
    assert reasons[3] == "no key 'prompt'; keys found: 'caption'"
    assert reasons[4] == "prompt: expected text, got a blank"
    assert reasons[5] == "prompt: expected text, got int"
    assert reasons[6] == "prompt: expected text, got null"
    assert "blank line" in reasons[7]
    assert "an array" in reasons[8]
    assert "0xe9" in reasons[9]
    assert "surrogate" in reasons[10]
    assert bad[7].excerpt == '{"prompt": "caf\\xe9"}'
    assert list(bad_lines(source)) == bad
    assert scan_prompts(source).bad_lines == len(bad)


def test_csv_rows_keep_quotes_newlines_and_line_numbers(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "p.csv",
        'id,prompt,note\n1,"a ""big"", red\ncircle",x\n2,too,many,fields\n3,short\n4,good,\n'
        '"5"x,bad,quote\n6,last,y\n',
    )
    prompts, bad = read(source)
    assert [prompt.text for prompt in prompts] == ['a "big", red\ncircle', "good", "last"]
    assert [dict(prompt.columns) for prompt in prompts][:2] == [
        {"id": "1", "note": "x"},
        {"id": "4", "note": ""},
    ]
    assert [(line.line, line.reason) for line in bad[:2]] == [
        (4, "expected 3 fields as in the header, got 4"),
        (5, "expected 3 fields as in the header, got 2"),
    ]
    assert bad[2].line == 7


def test_an_open_quote_that_swallows_lines_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path, "p.csv", 'prompt\ngood\n"open\nnext\nnext\n')
    with pytest.raises(InputError, match="from line 3 on"):
        scan_prompts(source)


def test_an_overlong_line_is_bad_and_the_next_is_read(tmp_path: Path) -> None:
    source = write(tmp_path, "p.txt", b"first\n" + b"x" * (3 << 20) + b"\nlast\n")
    prompts, bad = read(source)
    assert [prompt.text for prompt in prompts] == ["first", "last"]
    assert [line.line for line in bad] == [2]
    assert len(bad[0].excerpt) < 300


def test_the_callers_ids_are_used_and_repeats_get_ordinals(tmp_path: Path) -> None:
    lines = [{"id": 7, "prompt": "a"}, {"id": "x", "prompt": "b"}, {"id": 7, "prompt": "c"}, {"prompt": "d"}]
    path = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines))).path
    prompts, bad = read(PromptSource(path=path, id_column="id"))
    assert [(p.prompt_id, p.ordinal, p.key) for p in prompts] == [
        ("7", 0, "7#0"),
        ("x", 0, "x#0"),
        ("7", 1, "7#1"),
    ]
    assert bad[0].reason == "id: expected an id (text or a whole number), got nothing"


def test_prompt_ids_ignore_composition_and_white_space_only() -> None:
    assert prompt_id_of("caf\u00e9  noir") == prompt_id_of("cafe\u0301 noir")
    assert len({prompt_id_of(text) for text in ("a cat", "A cat", "a cats")}) == 3


def test_limit_counts_usable_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", '{"prompt": "a"}\nbad\n{"prompt": "b"}\n{"prompt": "c"}').path
    assert [p.text for p in read_prompts(PromptSource(path=path, limit=2))] == ["a", "b"]
    assert scan_prompts(PromptSource(path=path, limit=2)).count == 2


def test_column_types_cover_the_whole_file(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "n": 1, "flag": True, "mix": 1, "none": None, "big": 1 << 70},
        {"prompt": "b", "n": 2.5, "flag": False, "mix": "x", "none": None, "late": "l"},
    ]
    source = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)))
    assert scan_prompts(source).column_types == {
        "n": ColumnType.FLOAT64,
        "flag": ColumnType.BOOL,
        "mix": ColumnType.JSON,
        "none": ColumnType.STRING,
        "big": ColumnType.JSON,
        "late": ColumnType.STRING,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "is empty"),
        ("p.txt", b"\n  \n\n", "holds no prompt"),
        ("p.txt", "a cat\na dog\n".encode("utf-16"), "got UTF-16"),
        ("p.txt", "a cat\na dog\n".encode("utf-16-le"), "NUL byte"),
        ("p.txt", "Würfel\nKäse\n".encode("latin-1"), "2 of its first 2 lines cannot be decoded"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "binary data"),
        ("p.jsonl", b"\x1f\x8b\x08\x00", "a gzip file"),
        ("p.jsonl", b'{"caption": "a"}\n{"caption": "b"}\n', "no key 'prompt'; keys found: 'caption'"),
        ("p.jsonl", b"a cat\na dog\n", "none of its 2 lines holds a usable prompt"),
        ("p.csv", b"caption,id\nx,1\n", "no column 'prompt'; columns found: 'caption', 'id'; set prompts"),
        ("p.csv", b"prompt;id\nx;1\n", "columns found: 'prompt;id'; separate cells by commas"),
        ("p.csv", b"prompt\tid\nx\t1\n", "separate cells by commas"),
        ("p.csv", b"text; English,id\nx,1\n", "columns found: 'text; English', 'id'; set prompts.column"),
        ("p.csv", b"prompt,prompt\nx,1\n", "occurs twice"),
        ("p.csv", b"prompt\n", "holds no prompt"),
        ("p.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("p.json", b"[]", "holds no prompt"),
        ("p.json", b'[{"prompt": "a"}, {"prompt"', "after element 1"),
        ("p.json", b'[{"prompt": "a"},\n]', "Expecting value after element 1"),
        ("p.json", b'[{"prompt": "a"} {"prompt": "b"}]', "expected ',', got '{' after element 1"),
        ("p.json", b'[{"prompt": "a"}', "the file ends after element 1"),
        ("p.gz", b"x", "got suffix '.gz'"),
        ("p.parquet.gz", b"x", "got suffix '.parquet.gz'"),
        ("p.txt.gz", b"plain text", "cannot be read"),
        ("p.txt.zst", b"plain text", "cannot be read"),
        ("p", b"x", "got no suffix"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        scan_prompts(write(tmp_path, name, content))
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_millions_of_blank_lines_take_no_memory(tmp_path: Path) -> None:
    source = write(tmp_path, "p.txt", "a\n" + "\n" * 300_000 + " \nb\n")
    tracemalloc.start()
    found: list[BadLine] = []
    numbers = [number for number, text in text_lines(locate(source.path), found.append) if text == " "]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == [300_002]
    assert peak < 2_000_000
    assert scan_prompts(source).bad_lines == 300_001


def test_columns_without_end_are_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "a", f"key{row}": row}) for row in range(1001)]
    assert scan_prompts(write(tmp_path, "p.jsonl", "\n".join(lines[:1000]))).count == 1000
    with pytest.raises(InputError, match=r"at most 1000 columns .* by prompt 1001 \('key0', 'key1', "):
        scan_prompts(write(tmp_path, "p.jsonl", "\n".join(lines)))


def test_the_signature_of_a_url_is_no_suffix_and_not_shown() -> None:
    with pytest.raises(InputError, match=r"expected a prompt file of .* got suffix '\.xyz'") as caught:
        format_of(locate("http://localhost/p.xyz?X-Amz-Signature=deadbeef01"))
    assert "deadbeef" not in str(caught.value)
    assert format_of(locate("http://localhost/p.csv?X-Amz-Signature=deadbeef01")) is PromptFormat.CSV


def test_missing_files_folders_and_columns_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such prompt file"):
        scan_prompts(PromptSource(path=str(tmp_path / "absent.txt")))
    with pytest.raises(InputError, match="no such prompt file, or its server does not answer"):
        scan_prompts(PromptSource(path="http://127.0.0.1:9/absent.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="expected prompt files, found none"):
        scan_prompts(PromptSource(path=str(tmp_path / "folder.txt")))
    pq.write_table(pa.table({"prompt": [1, 2], "x": ["a", "b"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column 'prompt': expected text, got int64"):
        scan_prompts(PromptSource(path=str(tmp_path / "p.parquet")))
    with pytest.raises(InputError, match="columns found: 'prompt', 'x'"):
        scan_prompts(PromptSource(path=str(tmp_path / "p.parquet"), column="text"))
    with pytest.raises(InputError, match=r"a \.txt file has no columns"):
        scan_prompts(PromptSource(path=write(tmp_path, "p.txt", "a").path, id_column="id"))


@pytest.mark.parametrize(
    ("content", "texts"),
    [(b'\n{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]), (b"a\nb\n", ["a", "b"])],
)
def test_standard_input_is_json_lines_or_text(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    source = spool_standard_input(PromptSource(path="-"), io.BytesIO(content), tmp_path)
    assert [prompt.text for prompt in read_prompts(source)] == texts


def test_empty_standard_input_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="standard input"):
        spool_standard_input(PromptSource(path="-"), io.BytesIO(b""), tmp_path)
    assert list(tmp_path.iterdir()) == []


def numbered(count: int, **changed: str) -> str:
    return "".join(changed.get(f"at_{line}", f"number {line}\n") for line in range(count))


@pytest.mark.parametrize(
    ("content", "told", "good"),
    [
        (numbered(10, at_5="another\n"), "prompts 5 to 8 .* in or around lines 5 to 8", 4),
        (numbered(10, at_5=""), "prompts 5 to 8 .* in or around lines 5 to 8", 4),
        (numbered(10, at_9="another\n"), "prompts 9 to 10 .* in or around lines 9 to 10", 8),
        (numbered(9), "prompts 9 to 10 .*it ends after prompt 9", 8),
    ],
)
def test_no_prompt_of_a_changed_chunk_is_handed_out(
    tmp_path: Path, content: str, told: str, good: int
) -> None:
    source = write(tmp_path, "p.txt", numbered(10))
    scan = scan_prompts(source, rows_per_chunk=4)
    write(tmp_path, "p.txt", content)
    handed_out: list[str] = []
    with pytest.raises(InputError, match=told):
        handed_out.extend(prompt.text for prompt in read_prompts(source, scan=scan))
    assert handed_out == [f"number {row}" for row in range(good)]


def test_a_file_that_is_edited_in_the_middle_of_a_run_and_put_back_leaves_no_other_text(
    tmp_path: Path,
) -> None:
    source = write(tmp_path, "p.txt", numbered(40_000))
    scan = scan_prompts(source)
    drawn = dict[int, str]()
    prompts = read_prompts(source, scan=scan)
    drawn.update((prompt.row, prompt.text) for prompt in itertools.islice(prompts, 256))
    # In place, as an editor or an object store does it to those who read.
    with Path(source.path).open("r+") as file:
        file.write(numbered(40_000).replace("number", "answer"))
    with pytest.raises(InputError, match="was changed"):
        drawn.update((prompt.row, prompt.text) for prompt in prompts)
    write(tmp_path, "p.txt", numbered(40_000))
    assert 256 <= len(drawn) < 40_000
    expected = {prompt.row: prompt.text for prompt in read_prompts(source, scan=scan)}
    assert drawn.items() <= expected.items()


def test_lines_that_are_added_while_a_run_reads_are_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path, "p.txt", numbered(10))
    scan = scan_prompts(source, rows_per_chunk=4)
    write(tmp_path, "p.txt", numbered(12))
    assert len(list(read_prompts(source, scan=scan))) == 10
    assert "it has the first 10 alone" in caplog.text


def test_prompts_are_read_from_object_stores(tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.new_bucket()
    for source in write_formats(tmp_path):
        name = Path(source.path).name
        for uri in (f"s3://{bucket}/set/{name}", f"memory:/{tmp_path}/{name}", f"file://{source.path}"):
            if not uri.startswith("file:"):
                with locate(uri).replacing() as copy:
                    copy.write_bytes(Path(source.path).read_bytes())
            remote = PromptSource(path=uri)
            assert read(remote) == read(source), uri
            assert scan_prompts(remote).digest == scan_prompts(source).digest
    with pytest.raises(InputError, match=f"s3://{bucket}/set/absent.txt: no such prompt file$"):
        scan_prompts(PromptSource(path=f"s3://{bucket}/set/absent.txt"))
    with pytest.raises(InputError, match=f"s3://{bucket}/set/p.xyz: no such prompt file"):
        scan_prompts(PromptSource(path=f"s3://K:topsecret@{bucket}/set/p.xyz?region=us-east-1"))
