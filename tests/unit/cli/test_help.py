"""What `--help` says of every command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app


def commands(group: Any, *above: str) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *above, name) if hasattr(command, "commands") else [(*above, name)]


@pytest.mark.parametrize("words", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_every_command_shows_an_example_that_can_be_typed(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"]).output
    match = re.search(r"Example: (.+?)(;|\n *\n)", shown, re.DOTALL)
    assert match is not None, shown
    typed = shlex.split(match[1])
    if ">" in typed:  # the shell's business
        typed = typed[: typed.index(">")]
    assert typed[: 1 + len(words)] == ["ttsvar-ray", *words]
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    # Reads the options as typed, and does nothing.
    command.make_context(words[-1], typed[1 + len(words) :])
