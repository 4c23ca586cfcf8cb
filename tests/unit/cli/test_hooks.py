"""Commands of the user's: for each part, and for the end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.hooks import Hooks


def test_parts_are_told_of_in_order_and_the_end_after_them(tmp_path: Path) -> None:
    told = tmp_path / "told"
    hooks = Hooks(
        on_part=f'sleep 0.1; echo "$TTSVAR_OUTPUT $TTSVAR_PART" >> {told}',
        on_exit=f'echo "$TTSVAR_OUTPUT $TTSVAR_EXIT_CODE" >> {told}',
        output="before",
    )

    def run() -> None:
        with hooks.around():
            for name in ("a b", "$(c)"):
                hooks.part("out", name)
            raise typer.Exit(3)

    with pytest.raises(typer.Exit):
        run()
    assert told.read_text().splitlines() == ["out a b", "out $(c)", "out 3"]


def test_one_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks(on_part="echo no room >&2; exit 7", on_exit=None, output="out")
    with caplog.at_level(logging.WARNING), hooks.around():
        hooks.part("out", "part")
    assert "ended with 7: no room" in caplog.text


def test_a_run_calls_them(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a ring\na bar\na moon\n")
    told = tmp_path / "told"
    arguments = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out")]
    arguments += [
        "--strategy",
        "raw",
        "--set",
        "output.rows_per_part=2",
        "--set",
        "engine.threads=1",
        "--in-process",
    ]
    arguments += [
        "--on-part",
        f'basename "$TTSVAR_PART" >> {told}',
        "--on-exit",
        f'echo "$TTSVAR_EXIT_CODE" >> {told}',
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert told.read_text().splitlines() == ["part-00000.parquet", "part-00001.parquet", "0"]
    # Nothing is left to commit: only the end is told of.
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert told.read_text().splitlines()[3:] == ["0"]
    refused = CliRunner().invoke(app, [*arguments, "--seed", "5"])
    assert refused.exit_code == 2
    assert told.read_text().splitlines()[4:] == ["2"]
