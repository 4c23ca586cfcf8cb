"""`ttsvar-ray replay`: an image of a run, or a trajectory that was dropped, at each of its scales."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode

if TYPE_CHECKING:
    from ttsvar_ray.api.results import Result
    from ttsvar_ray.results import PackedBits, SelectionRecord


def replay(
    output: Annotated[
        str, typer.Argument(help="Output of a run with output.bits or output.trace: bits.", metavar="OUTPUT")
    ],
    prompt_id: Annotated[str, typer.Argument(help="Of the prompt, or its text.", metavar="PROMPT_ID")],
    to: Annotated[
        Path,
        typer.Option("--to", help="Picture to write: the scales from left to right.", metavar="FILE.png"),
    ] = Path("replay.png"),
    rank: Annotated[int, typer.Option("--rank", help="Of the kept images; 0 is the best.", min=0)] = 0,
    scale: Annotated[
        int | None,
        typer.Option("--scale", help="A trajectory of the population selected from at this scale.", min=0),
    ] = None,
    slot: Annotated[
        int | None, typer.Option("--slot", help="Which one of it; by default all, at that scale.", min=0)
    ] = None,
    round_index: Annotated[
        int | None,
        typer.Option("--round", help="Of an adaptive search; by default that of the image.", min=0),
    ] = None,
    settings: options.Settings = None,
) -> None:
    """Draw an image, or any trajectory of its search, from its bits, scale by scale.

    Without --scale: the image, whose last picture is compared with the image of the run; where the run keeps
    no output.bits, its ancestors up to the last selection and the image itself. The model is that of the run;
    --set model.path=... says where it is now, --set model.device=... where it runs. Exit codes: 0 the same
    bytes; 1 other ones, as on a device that rounds otherwise; 2 no such trajectory, or no bits.

    Example: ttsvar-ray replay outputs/mine PROMPT_ID --to scales.png
    """
    is_same = True
    from ttsvar_ray.api.replay import is_same_file
    from ttsvar_ray.api.saved import load
    from ttsvar_ray.errors import InputError
    from ttsvar_ray.report.contact_sheet import contact_sheet

    run = load(output, settings=settings)
    found = run.find(prompt_id)
    if not found:
        raise InputError(
            f"{output}: expected a finished prompt with the id or text {prompt_id!r}, found none"
        )
    options.file_to_write(to, "--to", picture=True)
    result = found[0]
    if rank >= len(result.images):
        raise InputError(f"--rank: expected 0 to {len(result.images) - 1}, the images kept, got {rank}")
    image = result.images[rank]
    if slot is not None and scale is None:
        raise InputError(f"--slot: {slot} of which population? Say it by --scale")
    marks: list[bool | None] | None = None
    if scale is not None:
        at = image.round_index if round_index is None else round_index
        record = _selection(output, result, scale, at)
        if slot is None:
            drawn = run.replayer.latest(result.prompt_used, record.bits)
            kept = set(record.ancestor_index)
            captions = [f"trajectory {one}" for one in range(len(drawn))]
            marks = [one in kept for one in range(len(drawn))]
            told = f"scale {scale}, {len(drawn)} trajectories, of which {len(kept)} were kept (green)"
        else:
            bits = _bits(record, slot)
            drawn = run.replayer.scales(result.prompt_used, bits)
            captions = [f"scale {one}" for one in range(len(drawn))]
            fate = "kept" if slot in record.ancestor_index else "dropped"
            told = f"{len(drawn)} scales of trajectory {slot}, which was {fate} at scale {scale}"
    elif image.bits:
        drawn = run.replayer.scales(result.prompt_used, image.bits)
        captions = [f"scale {one}" for one in range(len(drawn))]
        is_same = is_same_file(run.job, drawn[-1], image.encoded)
        told = f"{len(drawn)} scales; the last is {'' if is_same else 'NOT '}the image of the run"
    else:
        record = _last_selection(output, result, image.round_index)
        place = image.lineage[-2]
        drawn = [*run.replayer.scales(result.prompt_used, _bits(record, place)), image.pixels]
        captions = [*(f"scale {one}" for one in range(len(drawn) - 1)), "the image"]
        told = (
            f"its ancestors up to scale {record.scale_index}, and the image itself; the bits of its "
            "other scales are kept by output.bits"
        )
    columns = min(len(drawn), 13)
    contact_sheet(drawn, captions, columns=columns, marks=marks, title=result.prompt).save(to)
    typer.echo(f"{to}: {told}")
    if not is_same:
        raise typer.Exit(ExitCode.FAILED)


def _selection(output: str, result: Result, scale: int, round_index: int) -> SelectionRecord:
    from ttsvar_ray.errors import InputError

    there = [record for record in result.trace if record.round_index == round_index]
    found = [record for record in there if record.scale_index == scale]
    if not found:
        scales = ", ".join(str(record.scale_index) for record in there) or "none"
        raise InputError(
            f"--scale: expected one of the selections of round {round_index} (scales {scales}), got {scale}"
        )
    if not found[0].bits:
        raise _no_bits(output)
    return found[0]


def _last_selection(output: str, result: Result, round_index: int) -> SelectionRecord:
    there = [record for record in result.trace if record.round_index == round_index]
    if not there or not there[-1].bits:
        raise _no_bits(output)
    return there[-1]


def _bits(record: SelectionRecord, slot: int) -> PackedBits:
    from ttsvar_ray.errors import InputError

    if slot >= len(record.bits):
        raise InputError(
            f"--slot: expected 0 to {len(record.bits) - 1} of the population at scale {record.scale_index}, "
            f"got {slot}"
        )
    return record.bits[slot]


def _no_bits(output: str) -> Exception:
    from ttsvar_ray.errors import InputError

    return InputError(
        f"{output}: expected bits, which output.bits: true keeps of its images and output.trace: bits of "
        "every trajectory that was selected from"
    )
