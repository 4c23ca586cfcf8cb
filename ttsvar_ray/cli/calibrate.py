"""`ttsvar-ray calibrate`: thresholds of an adaptive search for a model, a reward and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ttsvar_ray.api.results import Result
    from ttsvar_ray.config import JobConfig
    from ttsvar_ray.job.resolved import ResolvedJob
    from ttsvar_ray.search.calibration import Calibrated, ImageCosts, Outcomes, Pool

FEWEST_PROMPTS = 20
"""Below this no half of the prompts says anything."""


def calibrate(
    job: options.Job = None,
    model: options.Model = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="Prompts like the job's, but not those of its evaluation.",
            metavar="FILE",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Folder for the pool of trajectories; the same command goes on, or tries another budget.",
            metavar="DIR",
        ),
    ] = None,
    plan: Annotated[Path, typer.Option("--plan", help="The plan file to write.", metavar="FILE")] = Path(
        "plan.yaml"
    ),
    budget: Annotated[
        float, typer.Option("--budget", help="Images a prompt may cost on average.", min=1.0)
    ] = 1.5,
    trajectories: Annotated[
        int, typer.Option("--trajectories", help="Of each prompt, and the most rounds.", min=2)
    ] = 8,
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales", help="Where a round may be abandoned, such as 5,6,7; by default the middle ones."
        ),
    ] = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Draw complete trajectories once, try adaptive searches on them, and write the best one as a plan file.

    `ttsvar-ray generate JOB.yaml --plan FILE` takes it.

    Example: ttsvar-ray calibrate jobs/shapes_demo.yaml --prompts other.txt --output outputs/pool --budget 1.3
    """
    from rich.console import Console

    from ttsvar_ray.cli.generate import run

    flags = {"model.name": model, "prompts.path": prompts, "output.path": output}
    with errors_for_people(debug=debug):
        from ttsvar_ray.config import load_config
        from ttsvar_ray.job.resolved import resolve

        given = load_config(job, options.overrides(flags, settings))
        config = pool_config(given, trajectories, scales)
        resolved = resolve(config, needs_parts=True)
    run(config, console=Console(stderr=True), debug=debug)
    with errors_for_people(debug=debug):
        from ttsvar_ray.api.saved import load
        from ttsvar_ray.search.calibration import calibrate as choose

        pool = read_pool(resolved, load(config.output.path))
        costs = costs_of(resolved)
        found = choose(pool, budget=budget, max_rounds=trajectories, image_costs=costs)
        lines = evidence(resolved, pool, found, budget=budget, image_costs=costs)
        typer.echo("\n".join(lines))
        if found is None:
            raise typer.Exit(1)
        plan.write_text(plan_text(found, lines), encoding="utf-8")
        typer.echo(f"\nplan file  {plan}\nnext       ttsvar-ray generate JOB.yaml --plan {plan}")


def pool_config(config: JobConfig, trajectories: int, scales: str | None) -> JobConfig:
    """Return the job that draws the pool: nothing is dropped, and some scales are scored.

    Raises:
        ConfigurationError: scales that are none.
    """
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.registry import describe_model

    last = describe_model(model_choice(config)).num_scales - 1
    if scales is None:
        scored = sorted({round(last * share) for share in (0.33, 0.42, 0.5, 0.58, 0.67)} - {0, last})
    else:
        try:
            scored = sorted({int(scale) for scale in scales.split(",")})
        except ValueError:
            raise ConfigurationError(f"--scales: expected numbers such as 5,6,7, got {scales!r}") from None
    changed: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    changed["strategy"] = {
        "name": "tts-var",
        "batch_schedule": [trajectories] * (last + 1),
        "selections": [{"scale": scale, "operator": "keep"} for scale in scored],
    }
    changed["output"]["keep"] = "all"
    return type(config).model_validate(changed)


def read_pool(job: ResolvedJob, results: Iterable[Result]) -> Pool:
    """Return the rewards of a pool's trajectories, and a judge's verdict where the model has one.

    Raises:
        ConfigurationError: fewer prompts than can be chosen on and measured.
    """
    import numpy as np

    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.search.calibration import Pool
    from ttsvar_ray.shapes.checker import check

    judge = check if job.description.name == "shapes" else None
    rewards, quality = [], []
    for result in results:
        if not result.images:
            continue
        images = sorted(result.images, key=lambda image: image.lineage[-1])
        rewards.append([image.reward_history for image in images])
        quality.append(
            [
                image.reward
                if judge is None
                else float(judge(np.asarray(image.image), result.prompt).correct)
                for image in images
            ]
        )
    if len(rewards) < FEWEST_PROMPTS:
        raise ConfigurationError(
            f"prompts.path: expected at least {FEWEST_PROMPTS} prompts with images to choose thresholds on, "
            f"got {len(rewards)}; 100 or more make a choice that holds"
        )
    return Pool(
        scales=job.plan.scored_scales,
        rewards=np.array(rewards, dtype=np.float64),
        quality=np.array(quality, dtype=np.float64),
    )


def costs_of(job: ResolvedJob) -> ImageCosts:
    """Return what adaptive plans of a job cost, by the scales where they may be abandoned.

    Raises:
        ConfigurationError: a model or a reward whose costs are not counted.
    """
    import functools

    from ttsvar_ray.costs import image_costs
    from ttsvar_ray.job.footprint import job_networks
    from ttsvar_ray.search.strategy import compile_plan

    networks = job_networks(job.config, job.description, job.plan, on_gpu=False)
    size = job.config.engine.selector_decode

    @functools.cache
    def costs(scales: tuple[int, ...]) -> tuple[float, ...]:
        plan = compile_plan(
            scale_schedule=job.description.scale_schedule,
            strategy="adaptive",
            stop_at=0.0,
            reject_below=dict.fromkeys(scales, 0.0),
        )
        return image_costs(plan, networks, selector_decode=size)

    return costs


def evidence(
    job: ResolvedJob, pool: Pool, found: Calibrated | None, *, budget: float, image_costs: ImageCosts
) -> list[str]:
    """Return what was tried and what it comes to, for people."""
    from ttsvar_ray.search.calibration import replay
    from ttsvar_ray.search.plan import Rounds

    prompts, trajectories = pool.final.shape
    judged = bool((pool.quality != pool.final).any())
    reward = ", ".join(part.name for part in job.rewards)
    aim = "accuracy by the exact checker" if judged else "final reward"
    lines = [
        f"model {job.description.name}, reward {reward}: {prompts} prompts, {trajectories} trajectories each",
        f"chosen for {aim} within {budget:g} images a prompt; +- is one standard error over prompts",
    ]
    fixed = [("raw", 1), *((f"best-of-{n}", n) for n in (2, 4, 8, 16) if n <= trajectories)]
    for name, rounds in fixed:
        lines.append(_line(name, replay(pool, Rounds(growth=(1,) * rounds), image_costs), judged))
    if found is None:
        return [*lines, "no policy that was tried is that cheap: raise --budget"]
    lines.append(_line("held out", found.held_out, judged))
    lines.append(_line("chosen on", found.chosen_on, judged))
    return [
        *lines,
        "held out: chosen on one half of the prompts, measured on the other, and once more: what to expect",
        "chosen on: the plan itself, on the prompts that it was chosen on: too good",
    ]


def _line(name: str, outcomes: Outcomes, judged: bool) -> str:
    from ttsvar_ray.search.calibration import standard_error

    def text(values: Any) -> str:
        return f"{values.mean():.3f} +- {standard_error(values):.3f}"

    quality = f"   accuracy {text(outcomes.quality)}" if judged else ""
    return f"{name:<10} cost {text(outcomes.cost)} images{quality}   reward {text(outcomes.reward)}"


def plan_text(found: Calibrated, lines: Iterable[str]) -> str:
    """Return the plan file: the strategy, and why it is that one in comments."""
    rounds = found.rounds
    rejects = ", ".join(f"{scale}: {least:.6g}" for scale, least in rounds.reject_below)
    return "\n".join(
        [
            "# Adaptive search, chosen by `ttsvar-ray calibrate`; for `ttsvar-ray generate JOB.yaml --plan`.",
            *(f"# {line}" for line in lines),
            "strategy:",
            "  name: adaptive",
            f"  max_rounds: {rounds.most}",
            *([f"  reject_below: {{{rejects}}}"] if rejects else []),
            f"  stop_at: {rounds.stop_at:.6g}",
            "",
        ]
    )
