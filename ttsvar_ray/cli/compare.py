"""`ttsvar-ray compare`: variants of a job over one prompt set, in one table with paired differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from rich.console import Console

    from ttsvar_ray.config.job import JobConfig
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.evaluate.comparison import Line, Outcomes
    from ttsvar_ray.evaluate.scorers import ScorerSpec
    from ttsvar_ray.job.sweep import Sweep, Variant

_T = TypeVar("_T")

EXACT = "shapes-checker"
_EXACT_CLASS = "ttsvar_ray.shapes.checker:ExactChecker"
BENCHMARKS = ("geneval", "t2i-compbench", "t2i-compbench-clip", "t2i-compbench-objects")
"""Of `evaluate.benchmark_scorers`, whose networks are not imported where none of them judges."""


def compare(
    sweep: Annotated[Path, typer.Argument(help="Sweep file; see docs/paper.md.", metavar="SWEEP.yaml")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for the runs and the table.", metavar="DIR")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list variants, plans, costs, and what is not here.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="Of the evaluators: cpu, cuda or auto.")] = "auto",
    workers: options.Workers = None,
    address: options.Address = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Run variants of a job with the same prompts and random numbers, and print one table.

    Each variant is an ordinary job folder below DIR: the same command goes on after a stop. DIR gets
    table.md, table.csv, table.json, outcomes.parquet (per prompt), and frontier.svg, .png and .csv. Exit
    codes: 0 done; 2 a sweep that cannot be run; others as of `generate`.

    Example: ttsvar-ray compare jobs/shapes/main.yaml --output outputs/main
    """
    from rich.console import Console

    from ttsvar_ray.cli.generate import run

    with errors_for_people(debug=debug):
        from ttsvar_ray.errors import ConfigurationError
        from ttsvar_ray.job.sweep import read_sweep

        folder = output or Path("outputs") / sweep.stem
        asked, variants = read_sweep(sweep, folder, settings or ())
        costs = _costs(asked, variants)
        device = "cpu" if dry_run else options.named_device(device, workers, address)
        absent = _absent(asked, variants, device)
        if dry_run:
            told = [f"\nnot here: {problem}" for problem in absent]
            typer.echo("\n".join([*_plans(asked, variants, costs), *told]))
            return
        if absent:
            raise ConfigurationError(absent)
    console = Console(stderr=True)
    for number, variant in enumerate(variants, start=1):
        console.print(f"{number} of {len(variants)}: {variant.name}", markup=False, highlight=False)
        for config in variant.jobs:
            _run(run, config, console=console, debug=debug)
    with errors_for_people(debug=debug):
        found = [
            _outcomes(variant, asked, costs[variant.name], device=device, workers=workers, address=address)
            for variant in variants
        ]
        typer.echo(_write(folder, asked, found, variants))


def _absent(sweep: Sweep, variants: tuple[Variant, ...], device: str) -> list[str]:
    """Return what would end a comparison after hours: prompts, weights, evaluators, devices not here."""
    from ttsvar_ray.errors import InputError, StorageError, noting
    from ttsvar_ray.job.prepare import named_source, uses_this_machine
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.prompts.files import prompt_files

    def look(config: JobConfig) -> None:
        resolve(config, needs_parts=True, here=uses_this_machine(config, submitted=False))

    _, problems = _of_each(variants, look)
    with noting(problems, InputError, StorageError):  # all variants have the same
        prompt_files(named_source(variants[0].job))
    with noting(problems):
        _evaluators_of(variants[0].job, sweep.evaluators, device=device)
    return problems


def _of_each(
    variants: tuple[Variant, ...], look: Callable[[JobConfig], _T]
) -> tuple[dict[str, _T], list[str]]:
    """Return what is found of each variant's job, by name, and all problems; one that variants share once."""
    from ttsvar_ray.errors import CheckpointError, noting

    found: dict[str, _T] = {}
    names_of: dict[str, list[str]] = {}
    for variant in variants:
        own: list[str] = []
        with noting(own, CheckpointError):
            found[variant.name] = look(variant.job)
        for problem in own:
            names_of.setdefault(problem, []).append(repr(variant.name))
    return found, [
        f"{'every variant' if len(own) == len(variants) else 'variant ' + ', '.join(own)}: {problem}"
        for problem, own in names_of.items()
    ]


def _run(run: Any, config: JobConfig, *, console: Console, debug: bool) -> None:
    """Run one job, unless it is done; note how long its sessions took."""
    file = Path(config.output.path) / "seconds.json"
    summary = run(config, console=console, debug=debug)
    before = json.loads(file.read_text())["generating"] if file.is_file() else 0.0
    file.write_text(json.dumps({"generating": before + summary.generating_seconds}) + "\n")


def _costs(sweep: Sweep, variants: tuple[Variant, ...]) -> dict[str, float]:
    """Return what a prompt costs by variant, in raw images of the control's model."""
    from ttsvar_ray.config.sections import StrategyConfig
    from ttsvar_ray.errors import ConfigurationError

    control = next(variant.job for variant in variants if variant.name == sweep.control)
    one_image = _flops(control.model_copy(update={"strategy": StrategyConfig(name="raw")}))
    costs, problems = _of_each(variants, lambda config: _flops(config) / one_image)
    if problems:
        raise ConfigurationError(problems)
    return costs


def _flops(config: JobConfig) -> float:
    """Return the FLOPs of a prompt; NaN of an adaptive search, and where nobody counts them."""
    from ttsvar_ray.cli.plan_report import job_report
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.resolved import resolve

    resolved = resolve(config)
    if resolved.plan.rounds.stop_at is not None:
        return math.nan
    try:
        counted = job_report(resolved).counted
    except ConfigurationError:  # a reward of one's own, whose costs nobody has counted
        return math.nan
    return math.nan if counted is None else counted.cost.flops


def _plans(sweep: Sweep, variants: tuple[Variant, ...], costs: dict[str, float]) -> list[str]:
    from ttsvar_ray.cli.progress import fact_lines
    from ttsvar_ray.job.preflight import PlanFact
    from ttsvar_ray.job.resolved import plan_note, resolve

    judges = ", ".join(sweep.evaluators)
    lines = [f"{sweep.name}: {len(variants)} variants, {sweep.repetitions} repetitions, judged by {judges}"]
    for variant in variants:
        job, cost = resolve(variant.job), costs[variant.name]
        counted = (
            f"{cost:.2f} images a prompt" if math.isfinite(cost) else "its cost is known when it has run"
        )
        lines.append(f"\n{variant.name}{' (control)' if variant.name == sweep.control else ''}: {counted}")
        lines += [f"  {line}" for line in fact_lines(PlanFact(plan=job.plan, note=plan_note(job)))]
    return lines


def _evaluators_of(config: JobConfig, names: list[str], *, device: str) -> dict[str, ScorerSpec]:
    """Return what judges the images of a job, by the name of its column.

    Args:
        names: a reward as `score` takes it, "shapes-checker", or a benchmark with its files as
            "geneval=DETECTOR:CLIP" (`evaluate.benchmark_scorers`), which may be several columns.
    """
    from ttsvar_ray.cli.score import scorers_of
    from ttsvar_ray.errors import CheckpointError, ConfigurationError, InputError, nearest, noting
    from ttsvar_ray.own_code import is_own
    from ttsvar_ray.rewards.registry import REWARDS
    from ttsvar_ray.shapes.world import parse_caption

    specs: dict[str, ScorerSpec] = {}
    problems: list[str] = []
    for given in names:
        name = given.partition("=")[0]
        own: list[str] = []
        with noting(own, InputError, CheckpointError):
            if name in BENCHMARKS:
                from ttsvar_ray.evaluate.benchmark_scorers import benchmark_specs

                found = benchmark_specs(given, lambda: _texts(config), device=device)
            elif name not in (known := (EXACT, *BENCHMARKS, *REWARDS, "auto")) and not is_own(name):
                raise ConfigurationError(
                    f"expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
                )
            else:
                for text in sorted(_texts(config)) if name == EXACT else ():
                    parse_caption(text)
                (spec,) = scorers_of(config, [_EXACT_CLASS if name == EXACT else given], device=device)
                found = {name: spec}
            own += [f"{column!r} is given twice" for column in found if column in specs]
            specs |= found
        judges = f"{EXACT} reads captions of the built-in world alone: " if name == EXACT else ""
        problems += [f"evaluators: {judges}{problem}" for problem in own]
    if problems:
        raise ConfigurationError(problems)
    return specs


def _texts(config: JobConfig) -> set[str]:
    """Return what the prompts of a job say, before any is rewritten."""
    from ttsvar_ray.job.prepare import named_source
    from ttsvar_ray.prompts import read_prompts

    return {prompt.text for prompt in read_prompts(replace(named_source(config), rewrite=None))}


def _outcomes(
    variant: Variant, sweep: Sweep, cost: float, *, device: str, workers: int | None, address: str | None
) -> tuple[Outcomes, list[dict[str, Any]]]:
    """Score the images of a variant; return its numbers by prompt, and a row per prompt and repetition."""
    import numpy as np
    import pyarrow.compute as pc

    from ttsvar_ray.cli.score import run_scorers
    from ttsvar_ray.dataset.contents import read_columns
    from ttsvar_ray.dataset.manifest import read_run
    from ttsvar_ray.evaluate.comparison import Outcomes, by_prompt
    from ttsvar_ray.evaluate.score_table import read_scores

    rows: list[dict[str, Any]] = []
    seconds, device_seconds, prompts = 0.0, 0.0, 0
    for repetition, config in enumerate(variant.jobs):
        layout, manifest = read_run(config.output.path)
        prompts = manifest.prompt_count
        specs = _evaluators_of(config, sweep.evaluators, device=device)
        run_scorers(layout, list(specs.values()), workers=workers, address=address)
        generating = json.loads((layout.root / "seconds.json").read_text())["generating"]
        seconds += generating
        device_seconds += _device_seconds(config, layout, generating)
        wanted = ["row", "prompt_id", "ordinal", "prompt", "image_rank", "reward"]
        adaptive = ["cost_images"] if config.strategy.name == "adaptive" else []
        best = read_columns(layout, [*wanted, *adaptive])
        chosen = pc.equal(best["image_rank"], 0)
        own = best.filter(chosen).drop_columns(["image_rank"]).to_pylist()
        for name, spec in specs.items():
            found = [
                one
                for chunk in layout.data_parts()
                for one in read_scores(layout, spec.table, chunk).to_pylist()
                if one["image_rank"] == 0
            ]
            for row, one in zip(own, found, strict=True):
                row[name] = one[spec.table]
                if f"{spec.table}_tag" in one:
                    row[f"{name}_tag"] = one[f"{spec.table}_tag"]
        rows += [{"variant": variant.name, "repetition": repetition, **row} for row in own]
    paid = [row["cost_images"] for row in rows if row.get("cost_images") is not None]
    outcomes = Outcomes(
        name=variant.name,
        scores={name: by_prompt(rows, name, prompts, repetitions=len(variant.jobs)) for name in specs},
        reward=by_prompt(rows, "reward", prompts),
        images=float(np.mean(paid)) if paid else cost,
        seconds=seconds,
        device_seconds=device_seconds,
        failed=prompts - len({row["row"] for row in rows}),
    )
    return outcomes, rows


def _device_seconds(config: JobConfig, layout: OutputLayout, generating: float) -> float:
    """Return how long a job's workers were up and its verifiers there, times the devices that each has."""
    from ttsvar_ray.dataset.sessions import read_sessions

    verifiers, each = config.verifiers, config.verifiers.gpus_per_replica
    workers = sum(session.device_seconds for session in read_sessions(layout))
    held = verifiers.replicas * (1.0 if each is None else each)
    return workers * (config.cluster.gpus_per_worker or 1.0) + generating * held


def _groups(rows: list[dict[str, Any]], name: str, prompts: int) -> Any:
    """Return the group of each prompt: by the evaluator's tags, else all in one; -1 where it judges none."""
    import numpy as np

    groups = np.zeros(prompts, dtype=np.int64)
    tags = sorted({row[f"{name}_tag"] for row in rows if f"{name}_tag" in row})
    for row in rows:
        if row[name] is None:
            groups[row["row"]] = -1
        elif tags:
            groups[row["row"]] = tags.index(row[f"{name}_tag"])
    return groups


def _write(
    folder: Path,
    sweep: Sweep,
    found: list[tuple[Outcomes, list[dict[str, Any]]]],
    variants: tuple[Variant, ...],
) -> str:
    """Write table, outcomes and frontier; return the table with what is to be known of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ttsvar_ray.evaluate.comparison import as_csv, markdown, table, text_numbers
    from ttsvar_ray.evaluate.comparison import compare as compared
    from ttsvar_ray.job.resolved import resolve

    outcomes = [one for one, _ in found]
    rows = [row for _, own in found for row in own]
    names = list(outcomes[0].scores)
    prompts = len(outcomes[0].reward)
    said = {row["row"]: row["prompt"] for row in rows}
    texts = text_numbers(said.get(row, row) for row in range(prompts))
    different = int(texts.max()) + 1
    lines = compared(
        outcomes,
        control=sweep.control,
        groups={name: _groups(rows, name, prompts) for name in names},
        published=sweep.published,
        texts=texts,
    )
    told = (
        f"{sweep.name}\n{prompts} prompts, {different} texts, {sweep.repetitions} repetitions with seeds of "
        "their own; ± is one standard error over texts, [ ] a 95 % bootstrap interval of the difference.\n"
    )
    for name in names:
        if odd := sum(row[name] is not None and not math.isfinite(row[name]) for row in rows):
            told += (
                f"{name}: {odd} of {len(rows)} scores are NaN or infinite, and so are the means over them.\n"
            )
    own, _ = _of_each(variants, lambda config: resolve(config).unpriced)
    for code in sorted({*own.values()} - {""}):
        named = ", ".join(name for name, one in own.items() if one == code)
        told += f"{named}: the cost in images is without {code}, which nobody counts; the seconds have it.\n"
    told += f"\n{markdown(*table(lines, control=sweep.control))}"
    text = told + (f"\n{notes}\n" if (notes := sweep.notes.strip()) else "")
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "table.csv").write_text(as_csv(lines), encoding="utf-8")
    content = {
        "name": sweep.name,
        "control": sweep.control,
        "prompts": prompts,
        "texts": different,
        "repetitions": sweep.repetitions,
        "not counted": {name: code for name, code in own.items() if code},
        "rows": [line.to_json() for line in lines],
    }
    (folder / "table.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder.absolute() / "outcomes.parquet", compression="zstd")
    _frontier(folder, sweep, lines, names[0])
    return text


def _frontier(folder: Path, sweep: Sweep, lines: list[Line], evaluator: str) -> None:
    """Draw the quality of each variant against its cost, and against its seconds."""
    from ttsvar_ray.report.plot import Chart, Series

    axes = (
        ("frontier", "images", "cost of a prompt in raw images"),
        ("frontier_seconds", "seconds", "seconds of generating, all prompts"),
    )
    for file, field, label in axes:
        points = [
            line
            for line in lines
            if 0 < getattr(line, field) < math.inf and math.isfinite(line.scores[evaluator].mean)
        ]
        if not points:
            continue
        series = Series(
            name="",
            x=[getattr(line, field) for line in points],
            y=[line.scores[evaluator].mean for line in points],
            error=[line.scores[evaluator].standard_error for line in points],
            labels=[line.name for line in points],
            joined=False,
        )
        chart = Chart(
            title=sweep.name, x_label=label, y_label=evaluator, series=[series], logarithmic=field == "images"
        )
        chart.write(folder / file)
