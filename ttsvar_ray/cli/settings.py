"""`ttsvar-ray settings` and `ttsvar-ray schema`: what a job file may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli.errors import ExitCode, errors_for_people

if TYPE_CHECKING:
    from ttsvar_ray.config.job import JobConfig


def settings(
    word: Annotated[
        str, typer.Argument(help="Show only settings that speak of it, such as memory.", metavar="WORD")
    ] = "",
) -> None:
    """List all settings of a job with their defaults, or those that speak of WORD.

    Each may stand in the job file (SECTION, then KEY) or be given as --set SECTION.KEY=VALUE.

    Example: ttsvar-ray settings memory
    """
    with errors_for_people(debug=False):
        from ttsvar_ray.config.job import JobConfig

        lines = [
            line
            for name, default, about in _known_settings(JobConfig())
            if word.lower() in f"{name} {about}".lower()
            for line in _lines(name, default, about)
        ]
    if not lines:
        typer.echo(f"ttsvar-ray: no setting speaks of {word!r}", err=True)
        raise typer.Exit(ExitCode.FAILED)
    typer.echo("\n".join(lines))


def schema() -> None:
    """Print the JSON schema of job files, for editors that complete and check YAML.

    Example: ttsvar-ray schema > job.schema.json; then the first line of a job file is
    # yaml-language-server: $schema=job.schema.json
    """
    import json

    from ttsvar_ray.config.job import JobConfig

    typer.echo(json.dumps(JobConfig.model_json_schema(by_alias=True), indent=1))


def _known_settings(config: JobConfig) -> list[tuple[str, str, str]]:
    """Return dotted name, default as a job file writes it, and description of every setting."""
    import json

    from pydantic import BaseModel

    from ttsvar_ray.config.job import flatten

    defaults = flatten(config.model_dump(mode="json", by_alias=True))
    found = []
    for name, field in type(config).model_fields.items():
        section = getattr(config, name)
        inner = type(section).model_fields if isinstance(section, BaseModel) else {"": field}
        for key, info in inner.items():
            full = f"{name}.{info.alias or key}" if key else name
            found.append((full, json.dumps(defaults.get(full)), info.description or ""))
    return found


def _lines(name: str, default: str, about: str) -> list[str]:
    import textwrap

    head = f"{name} = {default}"
    return [head, *textwrap.wrap(about, 80, initial_indent="    ", subsequent_indent="    ")]
