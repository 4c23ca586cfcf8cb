"""`ttsvar-ray plan`: what a job would do to each prompt, what that costs, and what it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from ttsvar_ray.cli import options


def plan(
    job: options.Job = None,
    model: options.Model = None,
    strategy: options.Strategy = None,
    n: options.N = None,
    resolution: Annotated[
        str | None,
        typer.Option("--resolution", help="0.06M, 0.25M, 0.60M or 1M (published models).", metavar="PIXELS"),
    ] = None,
    aspect: Annotated[
        str | None,
        typer.Option("--aspect", help="Width to height, such as 16:9 (published models).", metavar="W:H"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, float32 or bfloat16.", metavar="DTYPE")
    ] = None,
    selector_decode: Annotated[
        str | None,
        typer.Option("--selector-decode", help="Size of intermediate images: full or selector."),
    ] = None,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", help="Tokens of a typical text, for FLOPs.", min=1)
    ] = 32,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Also estimate seconds on this device: h200, a100-80g, ..., or a file."
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", help="Also say gigabytes and hours of so many prompts.", min=1),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="Devices that share them.", min=1)] = 1,
    as_json: options.AsJson = False,
    settings: options.Settings = None,
) -> None:
    """Print the compiled plan: per scale what happens and what it costs; FLOPs, memory, what fits.

    Reads settings and config.json only: no weights, no GPU, no prompts.

    Example: ttsvar-ray plan jobs/infinity_2b.yaml --prompts 200000 --gpus 8 --profile h200
    """
    import dataclasses
    import json

    from ttsvar_ray.cli.plan_report import job_report
    from ttsvar_ray.cli.progress import fact_lines
    from ttsvar_ray.cli.show import wrapped
    from ttsvar_ray.config.load import load_config
    from ttsvar_ray.job.preflight import planned_run
    from ttsvar_ray.job.resolved import resolve

    flags = {
        "model.name": model,
        "strategy.name": strategy,
        "strategy.n": n,
        "model.resolution": resolution,
        "model.aspect_ratio": aspect,
        "model.dtype": dtype,
        "engine.selector_decode": selector_decode,
    }
    config = load_config(job, options.overrides(flags, settings), needs_files=False)
    resolved = resolve(config)
    report = job_report(resolved, text_tokens=text_tokens, profile=profile)
    run = [] if prompts is None else planned_run(resolved, prompts=prompts, gpus=gpus, profile=profile)
    if as_json:
        facts = [dataclasses.asdict(fact) for fact in run]
        typer.echo(json.dumps({**report.to_json(), **({"run": facts} if run else {})}, indent=1))
        return
    lines = [line for fact in run for line in fact_lines(fact)]
    typer.echo("\n".join([*report.lines(), *([""] if lines else []), *wrapped(lines)]))
