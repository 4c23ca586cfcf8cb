"""`ttsvar-ray replay`: an image of a run at each of its scales."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode, errors_for_people


def replay(
    output: Annotated[str, typer.Argument(help="Output of a run with output.bits.", metavar="OUTPUT")],
    prompt_id: Annotated[str, typer.Argument(help="The prompt's id, or its text.", metavar="PROMPT_ID")],
    to: Annotated[
        Path,
        typer.Option("--to", help="Picture to write: the scales from left to right.", metavar="FILE.png"),
    ] = Path("replay.png"),
    rank: Annotated[int, typer.Option("--rank", help="Of the kept images; 0 is the best.", min=0)] = 0,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Rebuild an image from its bits, scale by scale, and compare the last with the image of the run.

    The model is that of the run; --set model.path=... says where it is now, --set model.device=... where it
    runs. Exit codes: 0 the same bytes; 1 other ones, as on a device that rounds otherwise; 2 no such image,
    or no bits.
    """
    with errors_for_people(debug=debug):
        from ttsvar_ray.api.replay import is_same_file
        from ttsvar_ray.api.replay import replay as pictures
        from ttsvar_ray.api.saved import load
        from ttsvar_ray.config import recorded_config
        from ttsvar_ray.errors import InputError
        from ttsvar_ray.job.resolved import resolve
        from ttsvar_ray.report.contact_sheet import contact_sheet

        run = load(output)
        found = run.find(prompt_id)
        if not found:
            raise InputError(
                f"{output}: expected a finished prompt with the id or text {prompt_id!r}, found none"
            )
        images = found[0].images
        if rank >= len(images):
            raise InputError(f"--rank: expected 0 to {len(images) - 1}, the images kept, got {rank}")
        if not images[rank].bits:
            raise InputError(f"{output}: expected the bits of its images, which only output.bits: true keeps")
        job = resolve(recorded_config(run.manifest.config, settings or ()))
        drawn = pictures(job, found[0].prompt, images[rank].bits)
        sheet = contact_sheet(
            drawn,
            [f"scale {scale}" for scale in range(len(drawn))],
            columns=len(drawn),
            title=found[0].prompt,
        )
        sheet.save(to)
        is_same = is_same_file(job, drawn[-1], images[rank].encoded)
    typer.echo(f"{to}: {len(drawn)} scales; the last is {'' if is_same else 'NOT '}the image of the run")
    if not is_same:
        raise typer.Exit(ExitCode.FAILED)
