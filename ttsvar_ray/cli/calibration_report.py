"""What a pool of trajectories says, for people: consistency by scale, and policies replayed on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ttsvar_ray.job.resolved import ResolvedJob
    from ttsvar_ray.search.calibration import Calibrated, ImageCosts, Outcomes, Pool
    from ttsvar_ray.search.plan import Plan
    from ttsvar_ray.types import Int64Array


def evidence(
    job: ResolvedJob, pool: Pool, found: Calibrated | None, *, budget: float, image_costs: ImageCosts
) -> list[str]:
    """Return what was tried and what it comes to."""
    from ttsvar_ray.search.calibration import replay
    from ttsvar_ray.search.plan import Rounds

    prompts, trajectories = pool.final.shape
    said = f"{prompts} prompts, {pool.texts.max() + 1} texts"
    judged = bool((pool.quality != pool.final).any())
    reward = ", ".join(part.name for part in job.rewards)
    aim = "accuracy by the exact checker" if judged else "final reward"
    lines = [
        f"model {job.description.name}, reward {reward}: {said}, {trajectories} trajectories each",
        f"chosen for {aim} within {budget:g} images a prompt; +- is one standard error over texts",
        *_consistency(pool, judged),
        "",
    ]
    fixed = [("raw", 1), *((f"best-of-{n}", n) for n in (2, 4, 8, 16) if n <= trajectories)]
    for name, rounds in fixed:
        lines.append(line(name, replay(pool, Rounds(growth=(1,) * rounds), image_costs), pool.texts, judged))
    lines += _plans(job, pool, judged)
    if found is None:
        return [*lines, "no policy that was tried is that cheap: raise --budget"]
    lines.append(line("held out", found.held_out, pool.texts, judged))
    lines.append(line("chosen on", found.chosen_on, pool.texts, judged))
    return [
        *lines,
        "held out: chosen on one half of the texts, measured on the other, and once more: what to expect",
        "chosen on: the plan itself, on the prompts that it was chosen on: too good",
    ]


def line(name: str, outcomes: Outcomes, texts: Int64Array, judged: bool, note: str = "") -> str:
    """Return a policy as a line; prompts of one of `texts` enter its standard errors together."""
    from ttsvar_ray.evaluate.comparison import grouped_mean

    def text(values: Any) -> str:
        return f"{values.mean():.3f} +- {grouped_mean(values, texts=texts).standard_error:.3f}"

    quality = f"   accuracy {text(outcomes.quality)}" if judged else ""
    return f"{name:<16} cost {text(outcomes.cost)} images{quality}   reward {text(outcomes.reward)}{note}"


def _consistency(pool: Pool, judged: bool) -> Iterator[str]:
    """Yield, by scale, how the reward there agrees with the end."""
    import numpy as np

    from ttsvar_ray.evaluate.comparison import interval
    from ttsvar_ray.rng import stream
    from ttsvar_ray.search.calibration import consistency

    def text(values: Any) -> str:
        known = ~np.isnan(values)
        if not known.any():
            return "-"
        random = stream(0, "bootstrap", -1, -1, "calibration")
        found = interval(values[known], random=random, texts=pool.texts[known])
        return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"

    yield ""
    picked = "accuracy of the best there" if judged else "final reward of the best there"
    yield f"scale  rank correlation with the end   same best             {picked}"
    for one in consistency(pool):
        yield (f"{one.scale:>5}  {text(one.correlation):<30}  {text(one.same_best):<20}  {text(one.picked)}")
    yield "in brackets: 95 % intervals over texts"


def _plans(job: ResolvedJob, pool: Pool, judged: bool) -> Iterator[str]:
    """Yield plans of one population, replayed: one cut at each scale; resampling, approximately."""
    from ttsvar_ray.search.strategy import SelectionSetting, compile_plan

    trajectories, last = pool.final.shape[1], job.plan.num_scales - 1
    schedule = job.description.scale_schedule
    for scale in pool.scales[:-1]:
        cut = compile_plan(
            scale_schedule=schedule,
            batch_schedule=[trajectories] * scale + [1] * (last + 1 - scale),
            selections=[SelectionSetting(scale=scale, operator="top-k")],
        )
        yield _plan_line(job, pool, f"one cut at {scale}", cut, judged)
    resampled = compile_plan(
        scale_schedule=schedule,
        strategy="resampling",
        n=trajectories,
        resample_scales=list(pool.scales[:-1])[-2:],
    )
    yield _plan_line(job, pool, "resampling", resampled, judged)


def _plan_line(job: ResolvedJob, pool: Pool, name: str, plan: Plan, judged: bool) -> str:
    import numpy as np

    from ttsvar_ray.costs.plan_cost import image_costs
    from ttsvar_ray.job.footprint import job_networks
    from ttsvar_ray.search.calibration import Outcomes
    from ttsvar_ray.search.replay import Trajectories, replay_plan

    networks = job_networks(job.config, job.description, plan, on_gpu=False)
    text, *each = image_costs(plan, networks, selector_decode=job.config.engine.selector_decode)
    found = [
        replay_plan(
            plan,
            Trajectories(scales=pool.scales, rewards=rewards),
            prompt_key=str(number),
            order=range(len(rewards)),
        )
        for number, rewards in enumerate(pool.rewards)
    ]
    prompts, best = np.arange(len(found)), np.array([one.best for one in found])
    outcomes = Outcomes(
        cost=text + np.array([one.trajectories for one in found]) @ np.array(each),
        quality=pool.quality[prompts, best],
        reward=pool.final[prompts, best],
    )
    repeats = float(np.mean([one.repeats > 0 for one in found]))
    note = "   exact" if not repeats else f"   approximate: {repeats:.0%} kept one twice"
    return line(name, outcomes, pool.texts, judged, note)
