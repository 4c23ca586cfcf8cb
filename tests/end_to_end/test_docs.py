"""README and docs hold: commands, options, files and links exist; the tutorial runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def command_lines(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, continued lines joined, comments dropped."""
    for language, block in FENCED.findall(text):
        if language in ("", "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                yield line.split(" #")[0].strip()


def words_after(text: str, program: str) -> list[list[str]]:
    found = [re.search(rf"(?:^|/|-m ){re.escape(program)} (.+)$", line) for line in command_lines(text)]
    return [shlex.split(match.group(1).replace("'", "")) for match in found if match]


def ttsvar_ray_commands() -> list[tuple[str, tuple[str, ...]]]:
    found = [
        (page, tuple(words))
        for page, text in PAGES.items()
        for program in ("ttsvar-ray", "ttsvar_ray")
        for words in words_after(text, program)
    ]
    return sorted(set(found))


@pytest.mark.parametrize(
    ("page", "words"),
    ttsvar_ray_commands(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_command_and_option_exists(page: str, words: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"{page}: {name} is no command of {command.name}"
        command = command.commands[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = [word.split("=")[0] for word in rest if word.startswith("--")]
    assert [option for option in named if option not in options | {"--help"}] == []
    for word in rest:
        if re.fullmatch(r"(jobs|tests|docs|cluster_configs)/\S+", word):
            assert (ROOT / word).exists(), f"{page}: {word} is not in the repository"


def test_the_pages_show_commands() -> None:
    assert len(ttsvar_ray_commands()) > 40


def test_every_make_target_exists() -> None:
    named = {
        target
        for text in PAGES.values()
        for target in (
            {words[0] for words in words_after(text, "make")} | set(re.findall(r"`make ([a-z-]+)`", text))
        )
    }
    assert {"demo", "test", "docs"} <= named
    rules = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert named <= rules


def test_every_module_that_is_run_exists_with_its_options() -> None:
    commands = [
        (page, line)
        for page, text in PAGES.items()
        for line in (*command_lines(text), *re.findall(r"(?<!`)`([^`\n]*python -m [^`]+)`", text))
        for _ in re.findall(r"python -m (?:benchmarks|tests|tools|recipes)\b", line)
    ]
    assert len(commands) > 10
    for page, line in commands:
        match = re.search(r"python -m ([\w.]+)((?: .*)?)$", " ".join(line.split()))
        assert match, f"{page}: {line}"
        module = ROOT / match[1].replace(".", "/")
        source = module.with_suffix(".py") if module.with_suffix(".py").exists() else module / "__main__.py"
        assert source.exists(), f"{page}: {match[1]} is not in the repository"
        text = source.read_text(encoding="utf-8")
        assert [option for option in re.findall(r"--[a-z-]+", match[2]) if f'"{option}"' not in text] == [], (
            f"{page}: {line}"
        )


def test_every_link_and_picture_of_the_readme_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", PAGES["README.md"]) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("model", ["infinity-2b", "infinity-8b"])
def test_the_memory_that_the_questions_name_is_the_plans(model: str) -> None:
    cells = re.search(rf"^\| `{model}` \|(.*)\|$", PAGES["faq.md"], re.MULTILINE)
    assert cells is not None
    named = dict(
        zip(("raw", "1", "2", "4", "8"), (cell.strip() for cell in cells[1].split("|")), strict=True)
    )
    never = ("--set", "engine.cuda_graphs=never")
    for n in ("1", "2"):
        shown = CliRunner().invoke(app, ["plan", "--model", model, "--n", n, *never]).stdout
        assert f"{named[n]} in such of one" in " ".join(shown.split()), n


def test_the_site_is_built_and_all_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is of the extra dev")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    program = tmp_path / "bin" / "ttsvar-ray"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ttsvar_ray "$@"\n')
    program.chmod(0o755)
    scripts = [block for language, block in FENCED.findall(PAGES["tutorial.md"]) if language == "bash"]
    assert len(scripts) == 9
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(scripts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "5 prompts, 5 images, 0 dead letters; all whole" in done.stdout
    for made in (
        "outputs/first/report.html",
        "scales.png",
        "both.png",
        "outputs/shards/00000.tar",
        "outputs/chosen/data/part-00000.parquet",
    ):
        assert (tmp_path / made).stat().st_size > 1000, made
