"""What the README says can be typed: its commands, options, files and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Every other piece between fences is code; its first line names the language.
CODE = [line for block in README.split("```")[1::2] for line in block.splitlines()[1:]]
COMMAND_LINES = [line.split("#")[0].strip() for line in CODE]


def words_after(program: str) -> list[list[str]]:
    found = [re.search(rf"(?:^|/|-m ){re.escape(program)} (.+)$", line) for line in COMMAND_LINES]
    return [match.group(1).split() for match in found if match]


def test_every_make_target_exists() -> None:
    targets = {words[0] for words in words_after("make")} | set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test"} <= targets
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets <= rules


@pytest.mark.parametrize("words", words_after("ttsvar-ray") + words_after("ttsvar_ray"), ids=" ".join)
def test_every_command_and_option_exists(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    plain = words[: next((i for i, word in enumerate(words) if word.startswith("--")), len(words))]
    commands = plain[:2] if plain[0] == "verify" else plain[:1]
    done = subprocess.run(
        [sys.executable, "-m", "ttsvar_ray", *commands, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"COLUMNS": "200", "PATH": "", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options), done.stdout
    for word in plain[len(commands) :]:
        if word.startswith("outputs/"):  # of a run before
            continue
        assert (ROOT / word).exists(), f"{word} is not in the repository"


def test_every_link_and_picture_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
