"""Filters, and data sets selected by them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tests.support.scored_run import call, picture, rows, score, scored_run
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.evaluate.filters import parse_filter


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return scored_run(tmp_path, monkeypatch)


def test_a_selection_is_a_data_set_with_the_scores(output: Path, tmp_path: Path) -> None:
    score(output, "--reward", "mine_scores:Red", "--near-duplicates", "0")
    told = call("select", str(output), "--where", "Red >= 200 or row == 2", "--to", str(tmp_path / "some"))
    assert told == f"{tmp_path / 'some'}: 5 of 6 images, of 3 prompts\n"
    some = rows(tmp_path / "some" / "data")
    assert [(r["row"], r["image_rank"], r["Red"]) for r in some] == [
        (0, 0, 250.0),
        (0, 1, 250.0),
        (2, 0, 20.0),
        (2, 1, 20.0),
        (3, 0, 250.0),
    ]
    assert some[2]["image"]["bytes"] == picture(2, 0)
    assert str(output) not in (tmp_path / "some" / "selection.json").read_text(), "it may be published"
    card = (tmp_path / "some" / "README.md").read_text()
    assert "`Red >= 200 or row == 2`" in card
    assert "| seed |" in card
    assert "| versions |" in card
    import datasets

    opened = datasets.load_dataset(str(tmp_path / "some"), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened[0]["image"].size == (16, 16)
    best = ("select", str(output), "--best-per-prompt", "--by", "image_rank", "--to", str(tmp_path / "last"))
    assert "4 of 6 images, of 4 prompts" in call(*best)
    assert [r["image_rank"] for r in rows(tmp_path / "last" / "data")] == [1, 0, 1, 0]
    (tmp_path / "last" / "data" / "part-00001.parquet").unlink()
    assert "4 of 6 images, of 4 prompts" in call(*best), "the same command goes on"
    other = ("select", str(output), "--where", "row == 0", "--to", str(tmp_path / "last"))
    assert "holds another selection" in call(*other, code=2)
    shutil.copy(output / "manifest" / "part-00000.json", output / "manifest" / "part-00001.json")
    assert "holds another selection" in call(*best, code=2), "the run's images are others now"


def test_a_selection_goes_on_after_a_crash_at_any_of_its_writes(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text, crashes = Path.write_text, 0
    for last in range(10):
        left = iter(range(last))

        def write(file: Path, text: str, left: Iterator[int] = left, **options: str) -> int:
            if next(left, None) is None:
                raise RuntimeError("killed")
            return write_text(file, text, **options)

        folder = tmp_path / str(last)
        command = ("select", str(output), "--best-per-prompt", "--to", str(folder))
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", write)
            crashes += CliRunner().invoke(app, command).exit_code == 1
        assert "4 of 6 images, of 4 prompts" in call(*command), f"crash {last}"
        assert "## How it was made" in (folder / "README.md").read_text(), f"crash {last}"
    assert 3 <= crashes < 10, "each write, and nothing more"
    own = "no mark: this card is Ann's\n"
    (folder / "README.md").write_text(own)
    call(*command)
    assert (folder / "README.md").read_text() == own


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--where", "rewards > 1"], "did you mean 'reward'"),
        (["--where", "reward >"], "expected an expression such as"),
        (["--where", "reward > 'a'"], "cannot be asked of these columns"),
        (["--where", "prompt > 5"], "number(COLUMN) reads a column, such as those of a CSV file, as numbers"),
        (["--where", "number(reward_history) > 5"], "cannot be asked of these columns"),
        (["--where", "row in prompt"], "got 'prompt'"),
        (["--where", "row in [1, 'a']"], "cannot be asked of these columns"),
        (["--where", f"row in [1, {10**20}]"], "cannot be asked of these columns"),
        (["--where", f"row > -{10**20}"], "cannot be asked of these columns"),
        (["--best-per-prompt", "--by", "Rde"], "--by: expected one of the columns"),
        (
            ["--best-per-prompt", "--by", "prompt"],
            "--by: expected a column of numbers, got 'prompt'",
        ),
        (["--by", "row", "--where", "row > 0"], "--by: 'row' is read by --best-per-prompt alone"),
        ([], "expected --where or --best-per-prompt"),
        (["--where", "row > 10"], "expected some of the 6 images"),
    ],
)
def test_selections_that_mean_nothing_are_refused(
    output: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    assert complaint in call("select", str(output), *arguments, "--to", str(tmp_path / "to"), code=2)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "a.__class__ == 1",
        "a ** 99999999 > 1",
        "f'{a}' == 'x'",
        "contains(a, b)",
        "number('5') > 1",
        "number(a, b) > 1",
        "open('x', 'w')",
        "(a := 1)",
        "a == b if a else b",
    ],
)
def test_nothing_but_filters_is_taken(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--where: expected"):
        parse_filter(text, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a > 1 and not b == 'y'", [2, 3]),
        ("0 < a < 3", [0, 1]),
        ("a in [1, 3] or b == 'y'", [0, 1, 2]),
        ("a not in (1,)", [1, 2, 3]),
        ("c is None", [0, 3]),
        ("c is not None and c >= -1.5", [1]),
        ("contains(b, 'x')", [0, 2]),
        ("matches(b, '^[yz]')", [1, 3]),
        ("d", [0, 3]),
        ("number(e) > 1", [0, 3]),
        ("number(e) is None", [1, 2]),
        ("text(f) >= '2020-02-01' and contains(text(f), '03')", [2]),
        ("1 < number(a) <= number(e) or number(c) < -1.7", [2, 3]),
    ],
)
def test_filters_mean_what_they_say(text: str, places: list[int]) -> None:
    table = pa.table(
        {
            "a": [1, 2, 3, 4],
            "b": ["x", "y", "xx", "z"],
            "c": [None, -1.5, -2.0, None],
            "d": [True, False, False, True],
            "e": ["9223372036854775809", "", "1,5", " +4e0"],
            "f": [date(2020, month, 1) for month in (1, 2, 3, 4)],
        }
    ).append_column("place", pa.array(range(4)))
    assert table.filter(parse_filter(text, table.column_names))["place"].to_pylist() == places
