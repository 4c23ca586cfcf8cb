"""What other people's files and other code say reaches terminals and logs as text: no command, no secret."""

from __future__ import annotations

import ast
import io
import logging
from pathlib import Path

import pytest
import typer
from rich.console import Console

from ttsvar_ray.cli.errors import errors_for_people
from ttsvar_ray.cli.progress import set_up_logging
from ttsvar_ray.cli.show import table_lines
from ttsvar_ray.dataset.dead_letters import read_letters, write_letters
from ttsvar_ray.errors import InputError
from ttsvar_ray.job.record import RunRecord
from ttsvar_ray.storage.location import locate

PACKAGE = Path(__file__).parents[2] / "ttsvar_ray"
EVIL = "red\x1b]0;owned\x07 \x9b31m \u202eabc\rover"
HARMLESS = r"red\u001b]0;owned\u0007 \u009b31m \u202eabc\u000dover"
URI = "s3://AKIA:topsecret@bucket/x?sig=topsecret"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_logs(is_terminal: bool) -> None:
    file = io.StringIO()
    set_up_logging(Console(file=file, force_terminal=is_terminal, width=300, color_system=None), debug=False)
    try:
        logging.getLogger("ttsvar_ray.x").warning("prompt %s is given up: %s", EVIL, URI)
    finally:
        logging.getLogger("ttsvar_ray").handlers.clear()
        logging.getLogger("ttsvar_ray").propagate = True
    assert f"prompt {HARMLESS} is given up: s3://bucket/x?sig=***" in file.getvalue()
    assert not set("\x1b\x07\x9b\u202e\r") & set(file.getvalue())


def test_the_log_of_a_run(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    logging.getLogger("ttsvar_ray").setLevel(logging.INFO)
    with RunRecord(log_file=log):
        logging.getLogger("ttsvar_ray.x").warning("prompt %s is given up: %s", EVIL, URI)
    assert f"prompt {HARMLESS} is given up: s3://bucket/x?sig=***" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [InputError(f"{EVIL} {URI}"), RuntimeError(f"{EVIL} {URI}")])
def test_errors_of_commands(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), errors_for_people(debug=False):
        raise error
    shown = capsys.readouterr().err
    assert HARMLESS in shown and "topsecret" not in shown
    assert not set("\x1b\x07\x9b\u202e\r") & set(shown)


def test_tables() -> None:
    assert HARMLESS in "\n".join(table_lines(["prompt"], [[EVIL]]))


def test_dead_letters_can_be_read_in_a_terminal_and_back(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    write_letters(locate(file), [{"row": 1, "prompt": EVIL}])
    assert not set("\x1b\x07\x9b\u202e\r") & set(file.read_text(encoding="utf-8"))
    assert read_letters(locate(file)) == [{"row": 1, "prompt": EVIL}]


def test_no_model_folder_ever_has_its_code_run() -> None:
    calls = [
        (path.name, call.lineno, {word.arg: word.value for word in call.keywords})
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config", "pipeline")
    ]
    assert calls
    for name, line, words in calls:
        said = words.get("trust_remote_code")
        assert isinstance(said, ast.Constant) and said.value is False, f"{name}:{line}"
