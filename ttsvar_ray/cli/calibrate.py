"""`ttsvar-ray calibrate`: thresholds of an adaptive search for a model, a reward and a budget."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ttsvar_ray.api.results import Result
    from ttsvar_ray.config.job import JobConfig
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.resolved import ResolvedJob
    from ttsvar_ray.results import JobSummary
    from ttsvar_ray.search.calibration import Calibrated, ImageCosts, Pool
    from ttsvar_ray.search.calibration_file import Calibration

logger = logging.getLogger(__name__)

FEWEST_PROMPTS = 20
"""Below this no half of the prompts says anything."""

_UNREAD = "prompts are no captions, which the exact checker could judge; --by-reward asks none"

BUDGETS = (1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
"""Whose best thresholds the calibration file has, beside those of the budget that was asked for."""


def calibrate(
    job: options.Job = None,
    model: options.Model = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", help="Prompts like the job's, but not those of its evaluation.", metavar="FILE"
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
    ] = 16,
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales", help="Where a round may be abandoned, such as 5,6,7; by default the middle ones."
        ),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            help="Other prompts: run the chosen plan on them, and print what was expected and what came.",
            metavar="FILE",
        ),
    ] = None,
    by_reward: options.ByReward = False,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Draw complete trajectories once, try adaptive searches on them, and write the best one as a plan file.

    `ttsvar-ray generate JOB.yaml --plan FILE` takes it. The calibration file beside it is for
    `strategy.calibration`: thresholds as quantiles, or by another budget.

    Example: ttsvar-ray calibrate jobs/shapes_demo.yaml --prompts other.txt --output outputs/pool --budget 1.3
    """
    from rich.console import Console

    from ttsvar_ray.cli.generate import run

    flags = {"model.name": model, "prompts.path": prompts, "output.path": output}
    with errors_for_people(debug=debug):
        from ttsvar_ray.config.load import load_config
        from ttsvar_ray.job.resolved import resolve

        given = load_config(job, options.overrides(flags, settings))
        # What comes after the pool, which may take hours, is looked at before it.
        options.file_to_write(plan, "--plan")
        config = pool_config(given, trajectories, scales)
        resolved = resolve(config, needs_parts=True)
        check_prompts(resolved, by_reward=by_reward, confirm=confirm)
    run(config, console=Console(stderr=True), debug=debug)
    with errors_for_people(debug=debug):
        from ttsvar_ray.api.saved import load
        from ttsvar_ray.cli.calibration_report import evidence
        from ttsvar_ray.search.calibration import calibrate as choose

        pool = read_pool(resolved, load(config.output.path), by_reward=by_reward)
        costs = costs_of(resolved)
        budgets = sorted({*BUDGETS, budget})
        each = choose(pool, budgets=budgets, max_rounds=trajectories, image_costs=costs)
        found = each.get(budget)
        lines = evidence(resolved, pool, found, budget=budget, image_costs=costs)
        typer.echo("\n".join(lines))
        if found is None:
            raise typer.Exit(1)
        plan.write_text(plan_text(found, lines), encoding="utf-8")
        known = plan.with_suffix(".calibration.json")
        known.write_text(calibration_of(given, pool, each).to_json(), encoding="utf-8")
        typer.echo(
            f"\nplan file    {plan}\ncalibration  {known}\n"
            f"next         ttsvar-ray generate JOB.yaml --plan {plan}"
        )
    if confirm is not None:
        with errors_for_people(debug=debug):
            where = {"prompts.path": confirm, "output.path": f"{config.output.path}-confirm"}
            again = load_config(job, options.overrides({"model.name": model, **where}, settings), plan=plan)
        summary = run(again, console=Console(stderr=True), debug=debug)
        with errors_for_people(debug=debug):
            typer.echo("\n".join(confirmed(resolve(again), pool, found, summary, by_reward=by_reward)))


def pool_config(config: JobConfig, trajectories: int, scales: str | None) -> JobConfig:
    """Return the job that draws the pool: nothing is dropped, and some scales are scored.

    Raises:
        ConfigurationError: scales that are none.
    """
    from ttsvar_ray.config.load import recorded_config
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
    return recorded_config(changed)


def check_prompts(job: ResolvedJob, *, by_reward: bool = False, confirm: str | None = None) -> None:
    """Refuse a prompt file that is too short; standard input can be read only once, so its pool is drawn.

    Raises:
        ConfigurationError: fewer prompts than can be chosen on and measured, or none in the file `confirm`.
        InputError: prompts that cannot be used.
    """
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.prepare import named_source
    from ttsvar_ray.prompts.read import read_prompts
    from ttsvar_ray.prompts.source import STANDARD_INPUT

    source, judge = named_source(job.config), judge_of(job, by_reward=by_reward)
    if confirm is not None and confirm != STANDARD_INPUT:
        others = read_prompts(replace(source, path=confirm))
        if not any(judge is None or _is_caption(prompt.text) for prompt in others):
            told = "expected a prompt, got none" if judge is None else f"all {_UNREAD}"
            raise ConfigurationError(f"--confirm: {confirm}: {told}")
    if source.path == STANDARD_INPUT:
        return
    usable = unread = 0
    for prompt in read_prompts(source):
        is_usable = judge is None or _is_caption(prompt.text)
        usable, unread = usable + is_usable, unread + (not is_usable)
        if usable >= FEWEST_PROMPTS:
            return
    raise _too_few(usable, unread)


def _too_few(usable: int, unread: int) -> ConfigurationError:
    from ttsvar_ray.errors import ConfigurationError

    others = f" ({unread} {_UNREAD})" if unread else ""
    return ConfigurationError(
        f"prompts.path: expected at least {FEWEST_PROMPTS} prompts with images to choose thresholds on, "
        f"got {usable}{others}; 100 or more make a choice that holds"
    )


def read_pool(job: ResolvedJob, results: Iterable[Result], *, by_reward: bool = False) -> Pool:
    """Return the rewards of a pool's trajectories, and a judge's verdict where the model has one.

    Raises:
        ConfigurationError: fewer prompts than can be chosen on and measured.
    """
    import numpy as np

    from ttsvar_ray.evaluate.comparison import text_numbers
    from ttsvar_ray.search.calibration import Pool

    judge = judge_of(job, by_reward=by_reward)
    rewards, quality, said, unread = [], [], list[str](), 0
    for result in results:
        if not result.images:
            continue
        if judge is not None and not _is_caption(result.prompt):
            unread += 1
            continue
        said.append(result.prompt)
        images = sorted(result.images, key=lambda image: image.lineage[-1])
        rewards.append([image.reward_history for image in images])
        quality.append(
            [
                image.reward if judge is None else judge(np.asarray(image.image), result.prompt)
                for image in images
            ]
        )
    if len(rewards) < FEWEST_PROMPTS:
        raise _too_few(len(rewards), unread)
    if unread:
        logger.warning("%d %s: they are left out", unread, _UNREAD)
    texts = text_numbers(said)
    if texts.max() + 1 < FEWEST_PROMPTS:
        logger.warning(
            "%d prompts, %d texts: what is held out rests on these few", len(said), texts.max() + 1
        )
    return Pool(
        scales=job.plan.scored_scales,
        rewards=np.array(rewards, dtype=np.float64),
        quality=np.array(quality, dtype=np.float64),
        texts=texts,
    )


def judge_of(job: ResolvedJob, *, by_reward: bool = False) -> Callable[[Any, str], float] | None:
    """Return what says of an image and a text how right it is, 0 to 1, where the model's world has such.

    Args:
        by_reward: whether nothing but the reward is asked.
    """
    from ttsvar_ray.shapes.checker import check

    if by_reward or job.description.name != "shapes":
        return None
    return lambda image, text: float(check(image, text).correct)


def _is_caption(text: str) -> bool:
    """Whether the built-in world's checker can read a text."""
    from ttsvar_ray.errors import InputError
    from ttsvar_ray.shapes.world import parse_caption

    try:
        parse_caption(text)
    except InputError:
        return False
    return True


def costs_of(job: ResolvedJob) -> ImageCosts:
    """Return what adaptive plans of a job cost, by the scales where they may be abandoned.

    Raises:
        ConfigurationError: a model or a reward whose costs are not counted.
    """
    import functools

    from ttsvar_ray.costs.plan_cost import image_costs
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


def calibration_of(config: JobConfig, pool: Pool, each: Mapping[float, Calibrated]) -> Calibration:
    """Return what the calibration file says: quantiles, and the thresholds of each budget, once each."""
    from ttsvar_ray.search.calibration import shares
    from ttsvar_ray.search.calibration_file import Calibration, Policy, quantiles

    policies = []
    for one in {found.rounds: found for found in each.values()}.values():
        abandoned, satisfied = shares(pool, one.rounds)
        policies.append(
            Policy(
                max_rounds=one.rounds.most,
                reject_below={str(scale): round(least, 6) for scale, least in one.rounds.reject_below},
                stop_at=round(float(one.rounds.stop_at or 0.0), 6),
                cost=round(float(one.chosen_on.cost.mean()), 4),
                quality=round(float(one.chosen_on.quality.mean()), 4),
                held_out=round(float(one.held_out.quality.mean()), 4),
                abandoned={str(scale): round(share, 4) for scale, share in abandoned.items()},
                satisfied=round(satisfied, 4),
            )
        )
    return Calibration(
        model=config.model.name,
        reward=config.reward.name,
        reward_options=config.reward.options,
        prompts=len(pool.rewards),
        trajectories=pool.rewards.shape[1],
        quantiles={str(scale): quantiles(pool.rewards[:, :, at]) for at, scale in enumerate(pool.scales)},
        policies=tuple(sorted(policies, key=lambda policy: policy.cost)),
    )


def confirmed(
    job: ResolvedJob, pool: Pool, found: Calibrated, summary: JobSummary, *, by_reward: bool = False
) -> list[str]:
    """Return what a plan was expected to come to, and what it came to on fresh prompts."""
    import numpy as np

    from ttsvar_ray.api.saved import load
    from ttsvar_ray.cli.calibration_report import line
    from ttsvar_ray.evaluate.comparison import text_numbers
    from ttsvar_ray.search.calibration import Outcomes

    judge = judge_of(job, by_reward=by_reward)
    there = (one for one in load(summary.uri) if one.images)
    if not (results := [one for one in there if judge is None or _is_caption(one.prompt)]):
        return ["", "confirmed on no prompt: none has an image"]
    quality = [one.reward if judge is None else judge(np.asarray(one.image), one.prompt) for one in results]
    measured = Outcomes(
        cost=np.array([one.cost_images for one in results], dtype=np.float64),
        reward=np.array([one.reward for one in results]),
        quality=np.array(quality),
    )
    judged = judge is not None
    texts = text_numbers(one.prompt for one in results)
    return [
        "",
        f"confirmed on {len(results)} other prompts:",
        line("expected", found.held_out, pool.texts, judged),
        line("measured", measured, texts, judged),
    ]


def plan_text(found: Calibrated, lines: Iterable[str]) -> str:
    """Return the plan file: the strategy, and why it is that one in comments."""
    rounds = found.rounds
    rejects = ", ".join(f"{scale}: {least:.6g}" for scale, least in rounds.reject_below)
    return "\n".join(
        [
            "# Adaptive search, chosen by `ttsvar-ray calibrate`; for `ttsvar-ray generate JOB.yaml --plan`.",
            *(f"# {line}".rstrip() for line in lines),
            "strategy:",
            "  name: adaptive",
            f"  max_rounds: {rounds.most}",
            *([f"  reject_below: {{{rejects}}}"] if rejects else []),
            f"  stop_at: {rounds.stop_at:.6g}",
            "",
        ]
    )
