"""`ttsvar-ray generate`: prompts in, a folder of Parquet parts out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.check import check_output_at
from ttsvar_ray.cli.errors import ExitCode, errors_for_people
from ttsvar_ray.cli.hooks import Hooks
from ttsvar_ray.cluster.session import ended_by_signals

if TYPE_CHECKING:
    from rich.console import Console

    from ttsvar_ray.config.job import JobConfig
    from ttsvar_ray.results import JobSummary


def generate(
    job: options.Job = None,
    model: options.Model = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help='.txt, .jsonl, .json, .csv, .tsv or .parquet: a path, URI, pattern or folder; "-" for '
            "standard input.",
            metavar="FILE",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Output folder, or URI (s3://...); one of the same job is continued.",
            metavar="DIR",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run again the prompts that were given up before.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend",
            help="If DIR holds a run of the first of these prompts, make the others and add them to it.",
        ),
    ] = False,
    force_new: Annotated[
        bool,
        typer.Option(
            "--force-new", help="If DIR holds another run, write to DIR-2 (or -3, ...); nothing is deleted."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="When all is done, read the whole output as `ttsvar-ray check` does; 1 if it is damaged.",
        ),
    ] = False,
    plan: options.Plan = None,
    strategy: options.Strategy = None,
    n: options.N = None,
    seed: options.Seed = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Workers; by default one per GPU, or per CPU.", metavar="W"),
    ] = None,
    spread: Annotated[
        str | None,
        typer.Option("--spread", help='Workers that share one prompt, or "auto".', metavar="K"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="Make only shard i of n (0/8 to 7/8) of the data set, in DIR/shard-i-of-n: for several runs "
            "that share one prompt set.",
            metavar="i/n",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster; by default this machine or RAY_ADDRESS.", metavar="A"),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run here on one device, without Ray; small runs do anyway.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Look at everything, say hours and gigabytes, and stop there."),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", help="Write the log here and not to DIR/run.log.", metavar="FILE"),
    ] = None,
    on_part: Annotated[
        str | None,
        typer.Option(
            "--on-part",
            help="Command for each part that is committed; $TTSVAR_PART is its file.",
            metavar="CMD",
        ),
    ] = None,
    on_exit: Annotated[
        str | None,
        typer.Option(
            "--on-exit", help="Command for the end of the run; $TTSVAR_EXIT_CODE says how.", metavar="CMD"
        ),
    ] = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Generate images for a prompt set. Typing the same command again continues a stopped run.

    Example: ttsvar-ray generate jobs/shapes_demo.yaml --prompts mine.txt --output outputs/mine --n 2

    Exit codes: 0 done; 1 failed, or rows are missing or (--verify) damaged in the end; 2 bad settings or
    input, nothing was started; 3 done, but more prompts have no image than max_failed allows; 75 stopped
    early, the same command continues; 130 Ctrl-C before anything was started.
    """
    flags = {
        "model.name": model,
        "prompts.path": prompts,
        "output.path": output,
        "strategy.name": strategy,
        "strategy.n": n,
        "seed": seed,
        "cluster.workers": workers,
        "cluster.spread": int(spread) if spread is not None and spread.isdecimal() else spread,
        "cluster.shard": shard,
        "cluster.address": address,
        "cluster.in_process": True if in_process else None,
    }
    from rich.console import Console

    console = Console(stderr=True)
    with errors_for_people(debug=debug):
        from ttsvar_ray.config.load import load_config

        config = load_config(job, options.overrides(flags, settings), plan=plan)
    if dry_run:
        with errors_for_people(debug=debug):
            from ttsvar_ray.cli.progress import teller
            from ttsvar_ray.cluster.job import check_job

            check_job(config, tell=teller(Console(highlight=False)), force_new=force_new, extend=extend)
        return
    hooks = Hooks(on_part=on_part, on_exit=on_exit, output=config.output.path)
    with errors_for_people(debug=debug, has_started=lambda: True), ended_by_signals(), hooks.around():
        summary = run(
            config,
            console=console,
            debug=debug,
            retry_failed=retry_failed,
            force_new=force_new,
            extend=extend,
            log_file=log_file,
            on_part=hooks.part,
        )
        typer.echo("\n".join(summary_lines(config, summary)))
        if verify:
            report = check_output_at(summary.uri)
            if not report.is_whole:
                raise typer.Exit(ExitCode.FAILED)
        if not is_within_budget(config, summary):
            raise typer.Exit(ExitCode.TOO_MANY_FAILED)


def run(
    config: JobConfig,
    *,
    console: Console,
    debug: bool,
    retry_failed: bool = False,
    force_new: bool = False,
    extend: bool = False,
    log_file: Path | None = None,
    on_part: Callable[[str, str], None] = lambda root, file: None,
) -> JobSummary:
    """Run a job with its progress on `console`; errors end the command."""
    from ttsvar_ray.cli.progress import ProgressReporter, set_up_logging, teller

    set_up_logging(console, debug=debug)
    reporter = ProgressReporter(console)
    with errors_for_people(debug=debug, has_started=lambda: reporter.has_started), reporter:
        from ttsvar_ray.cluster.job import run_job

        return run_job(
            config,
            progress=reporter,
            tell=teller(console),
            retry_failed=retry_failed,
            force_new=force_new,
            extend=extend,
            log_file=log_file,
            on_part=on_part,
        )


def is_within_budget(config: JobConfig, summary: JobSummary) -> bool:
    """Whether no more prompts have no image than `max_failed` allows."""
    missing = summary.failed + summary.bad_lines
    return config.max_failed.allows(missing, of=summary.prompts + missing)


def summary_lines(config: JobConfig, summary: JobSummary) -> list[str]:
    """Return how a job ended, for people: what was made, where it is, what to do next."""
    from ttsvar_ray.cli.show import cost_facts, duration

    resumed = f" ({summary.prompts_resumed} of them before)" if summary.prompts_resumed else ""
    reward = "none" if math.isnan(summary.mean_reward) else f"{summary.mean_reward:.4f}"
    cost = () if summary.cost is None else cost_facts(summary.cost, budget=config.strategy.budget)
    lines = [
        "",
        f"prompts      {summary.prompts}{resumed}",
        f"images       {summary.images}",
        f"mean reward  {reward}",
        *(f"{what:<12} {told}" for what, told in cost),
        f"time         {duration(summary.seconds)}{_rate(summary)}",
        f"failures     {_failures(config, summary)}",
        f"output       {summary.output}",
    ]
    if summary.cut:
        lines.append(
            f"cut          {summary.cut} prompts, longer than the model reads (column text_truncated)"
        )
    if summary.notices:
        lines.append(f"notices      {len(summary.notices)} (above)")
    lines += ["", "next", f"  {_loading(summary.output)}"]
    if summary.images:
        lines.append(f"  ttsvar-ray sheet {shlex.quote(summary.output)}")
    if summary.failed or summary.bad_lines:
        lines.append(f"  see why: {summary.output}/failed")
    if summary.failed:
        lines.append("  try those again: the same command with --retry-failed")
    return lines


def _failures(config: JobConfig, summary: JobSummary) -> str:
    counts = f"{summary.failed} prompts given up, {summary.bad_lines} bad lines"
    if not summary.failed and not summary.bad_lines:
        return counts
    how_many = "within" if is_within_budget(config, summary) else "more than"
    return f"{counts} ({how_many} max_failed, {config.max_failed})"


def _rate(summary: JobSummary) -> str:
    """Return how the time divides: of one clock, so that images, rate and seconds agree."""
    from ttsvar_ray.cli.show import duration

    if math.isnan(summary.images_per_second):
        return ""
    rate = f"{summary.images_per_second:.2f} images/s"
    rate += "" if math.isnan(first := summary.first_image_seconds) else f", the first after {duration(first)}"
    return f", {duration(summary.generating_seconds)} of it generating at {rate}"


def _loading(output: str) -> str:
    """Return the line of Python that opens the images of a run."""
    if "://" in output:
        return f'datasets.load_dataset("parquet", data_files="{output}/data/*.parquet", split="train")'
    return f'datasets.load_dataset("{output}", split="train")'
