"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

Job = Annotated[
    Path | None,
    typer.Argument(help="YAML job file; without one, the options and the defaults.", metavar="JOB.yaml"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help='"shapes" (built in), a published name such as "infinity-2b", or a model directory.',
        metavar="MODEL",
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option("--strategy", help="raw, best-of-n, resampling, tts-var or adaptive.", metavar="STRATEGY"),
]
N = Annotated[
    int | None,
    typer.Option(
        "--n",
        help="N: images of best-of-N; with TTS-VAR trajectories that are finished, of 8 N begun.",
        metavar="N",
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="Plan file, as `calibrate` writes it; its strategy takes the place of the job's.",
        metavar="FILE",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of all draws: the same seed, the same images.", metavar="SEED"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting, for example sampling.guidance=4; may be repeated.",
        metavar="SECTION.KEY=VALUE",
    ),
]
Output = Annotated[str, typer.Argument(help="Output of a run: a folder or URI.", metavar="OUTPUT")]
To = Annotated[Path, typer.Option("--to", help="Folder to write to.", metavar="DIR")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Share the parts among so many workers on Ray.", min=1, metavar="K"),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Of a Ray cluster; by default one on this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
ByReward = Annotated[bool, typer.Option("--by-reward", help="Ask the reward alone, not the exact checker.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and more of what goes on.")]


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of pictures that commands write."""


def overrides(flags: Mapping[str, object], settings: Sequence[str] | None) -> list[str]:
    """Return flags and `--set` entries as overrides; `--set` comes last and wins.

    Args:
        flags: dotted names of settings to what was given on the command line, None where nothing was.
        settings: `section.key=value` as typed.
    """
    given = [f"{name}={_as_yaml(value)}" for name, value in flags.items() if value is not None]
    return given + list(settings or ())


def named_device(device: str, workers: int | None, address: str | None) -> str:
    """Return the device of whoever looks at images: "auto" is a GPU where this machine has one.

    Args:
        workers: on Ray, which may have the GPU that is named though this machine has none.

    Raises:
        ConfigurationError: not a device name, a GPU that is not here, or an address without workers.
    """
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.models.registry import resolve_device

    if address is not None and workers is None:
        raise ConfigurationError("--address: add --workers, how many share the work")
    return device if workers is not None and device == "cuda" else str(resolve_device(device))


def file_to_write(file: Path, option: str, *, picture: bool = False) -> Path:
    """Return a file that a command will write at its end, whose folder is made if it is not there.

    Args:
        option: that it was given by.
        picture: whether its suffix says the format.

    Raises:
        ConfigurationError: it cannot be written, which is better known before the work than after it.
    """
    from ttsvar_ray.errors import ConfigurationError

    if picture and file.suffix.lower() not in PICTURES:
        raise ConfigurationError(f"{option}: expected a name that ends in {', '.join(PICTURES)}, got {file}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        file.open("ab").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"{option}: expected a file that can be written, got {file} ({error.strerror})"
        ) from None
    return file


def folder_to_write(folder: Path, option: str) -> Path:
    """Return a folder that a command can make or write to; only its parents are made.

    Raises:
        ConfigurationError: it cannot be made.
    """
    from ttsvar_ray.errors import ConfigurationError

    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if is_new:
            folder.rmdir()
    except OSError as error:
        raise ConfigurationError(
            f"{option}: expected a folder that can be written to, got {folder} ({error.strerror})"
        ) from None
    return folder


def _as_yaml(value: object) -> str:
    """Return a flag's value so that YAML reads it back as it is: a path such as `12` stays text."""
    if isinstance(value, str):
        escaped = value.replace("'", "''")
        return f"'{escaped}'"
    return str(value)
