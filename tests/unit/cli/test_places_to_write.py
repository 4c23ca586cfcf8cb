"""Where commands cannot write, and what nobody could read: told before the work, as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.options import file_to_write, folder_to_write
from ttsvar_ray.errors import ConfigurationError


def test_a_file_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    new, old = tmp_path / "new" / "sheet.PNG", tmp_path / "old.png"
    old.write_bytes(b"what was there")
    assert file_to_write(new, "--to", picture=True) == new
    assert new.parent.is_dir() and not new.exists()
    file_to_write(old, "--to")
    assert old.read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("sheet.txt", r"--to: expected a name that ends in \.png, \.jpg"),
        (".", "--to: expected a name that ends in"),
        ("file/sheet.png", r"--to: expected a file that can be written, got .*sheet\.png \("),
        ("folder.png", r"--to: expected a file that can be written, got .*folder\.png \(Is a directory\)"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigurationError, match=complaint):
        file_to_write(tmp_path / name, "--to", picture=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for name in ("file", "file/inside"):
        with pytest.raises(ConfigurationError, match="--to: expected a folder that can be written to, got"):
            folder_to_write(tmp_path / name, "--to")
    folder = folder_to_write(tmp_path / "a" / "b", "--to")
    assert folder.parent.is_dir() and not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "x" * 300], "cannot be looked at (File name too long)"),
        (["--output", "out", "--prompts", "absent"], "absent: no such prompt file"),
        (["--output", "out", "--log-file", "file/run.log"], "file: File exists"),
    ],
)
def test_what_the_system_refuses_is_not_unexpected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "p.txt").write_text("a red circle\n")
    command = ["generate", "--in-process", "--prompts", "p.txt", "--set", "model.device=cpu", *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert complaint in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--confirm", "absent.txt"], "absent.txt: no such prompt file"),
        (["--plan", "file/plan.yaml"], "--plan: expected a file that can be written"),
    ],
)
def test_calibrate_looks_at_what_comes_after_the_pool_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "p.txt").write_text("a red circle\n")
    done = CliRunner().invoke(app, ["calibrate", "--prompts", "p.txt", "--output", "pool", *arguments])
    assert done.exit_code == 2, done.output
    assert complaint in done.output
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        (
            ["a photo of a ring"] * 19,
            "expected at least 20 prompts with images to choose thresholds on, got 19;",
        ),
        (["a cat"] * 20 + ["a photo of a ring"] * 3, "got 3 (20 prompts are no captions"),
    ],
    ids=["few", "few-that-are-captions"],
)
def test_calibrate_refuses_too_few_prompts_before_the_pool_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    done = CliRunner().invoke(app, ["calibrate", "--prompts", "p.txt", "--output", "pool"])
    assert done.exit_code == 2, done.output
    assert complaint in done.output
    assert not (tmp_path / "pool").exists()
