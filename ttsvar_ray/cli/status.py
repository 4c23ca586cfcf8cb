"""`ttsvar-ray status`: how far a run is, and whether it lives, from its output folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options

if TYPE_CHECKING:
    from ttsvar_ray.job.status import RunStatus


def status(
    output: Annotated[
        str, typer.Argument(help="Output folder of a run, a path or a URI (s3://...).", metavar="OUTPUT")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Say how far a run is: done, failed, rate, time left, last sign of life, where it stopped.

    Reads OUTPUT alone, so it answers on any machine that sees the folder. Shards are listed one by one.

    Example: ttsvar-ray status s3://bucket/captions
    """
    import dataclasses
    import json

    from ttsvar_ray.job.status import read_status

    found = read_status(output)
    if as_json:
        told = [{**dataclasses.asdict(one), "cost": one.cost and one.cost.to_json()} for one in found]
        typer.echo(json.dumps(told, indent=1))
        return
    for each in found:
        typer.echo("\n".join(_status_lines(each)))
    if len(found) > 1:
        done, total = sum(one.prompts_done for one in found), sum(one.prompts_total for one in found)
        typer.echo(f"together  {done:,} of {total:,} prompts ({_percent(done, total)})")


def _status_lines(status: RunStatus) -> list[str]:
    """Return the status of one run as lines."""
    from ttsvar_ray.cli.show import cost_facts, duration

    done, total = status.prompts_done, status.prompts_total
    failed = f", {status.failed:,} given up (failed/)" if status.failed else ""
    lines = [
        f"run       {status.root}",
        f"state     {_STATES[status.state]}",
        f"prompts   {done:,} of {total:,} ({_percent(done, total)}){failed}",
        f"parts     {status.parts:,} of {status.parts_total:,} committed",
    ]
    if status.images_per_second is not None:
        lines.append(f"rate      {status.images_per_second:.2f} images/s")
    if status.seconds_left is not None:
        lines.append(f"left      {duration(status.seconds_left)}")
    if status.silent_seconds is not None:
        lines.append(f"seen      {duration(status.silent_seconds)} ago ({status.where})")
    if status.cost is not None:
        lines += [f"{what:<9} {told}" for what, told in cost_facts(status.cost)]
    if status.strays:
        lines.append(f"strays    {status.strays}")
    if status.reason:
        lines.append(f"reason    {status.reason}")
    return lines


_STATES = {
    "running": "running",
    "done": "done",
    "stopped": "stopped; the same command goes on",
    "failed": "failed; see reason, and run.log",
    "silent": "no sign of life: killed, or its machine is gone; the same command goes on",
    "unknown": "no session wrote how far it came",
}


def _percent(done: int, total: int) -> str:
    return f"{100 * done // total if total else 100} %"
