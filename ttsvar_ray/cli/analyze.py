"""`ttsvar-ray analyze`: what a pool of complete trajectories says of a model and its reward, in figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options

if TYPE_CHECKING:
    import numpy as np

    from ttsvar_ray.api.saved import SavedRun
    from ttsvar_ray.job.resolved import ResolvedJob
    from ttsvar_ray.search.calibration import Pool
    from ttsvar_ray.types import PotentialKind

_MAP_PIXELS = 144


def analyze(
    pool: Annotated[
        str, typer.Argument(help="Folder of a pool, as `calibrate --output` leaves it.", metavar="POOL")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder for the figures; by default POOL/analysis.", metavar="DIR"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Of the strip of scales: an id or a text; by default the first."),
    ] = None,
    by_reward: options.ByReward = False,
    settings: options.Settings = None,
) -> None:
    """Say how early the reward knows the end, by scale and potential, and what each scale costs, in figures.

    consistency, correlation: of each scale with the end, under VALUE, MAX, SUM and DIFF of the scales that
    the pool scored (the paper's Figures 5b and 6). accuracy: of the pick there, where the model's world has a
    judge. cost, memory: by scale, of best-of-8 and of the published plan (Figure 2). strip: an image at each
    of its scales, with the map that clustering sees (Figure 7), where the pool keeps bits. Charts are .svg,
    .png and .csv. Exit codes: 0 done; 2 no pool.

    Example: ttsvar-ray analyze outputs/pool --to figures
    """
    from ttsvar_ray.api.saved import load
    from ttsvar_ray.cli.calibrate import judge_of, read_pool
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.storage.uris import is_uri

    if to is None and is_uri(pool):
        raise ConfigurationError(f"--to: expected where the figures go, {pool} being a URI; add --to DIR")
    run = load(pool, settings=settings)
    job = run.job
    if len(job.plan.scored_scales) < 2 or len(set(job.plan.survivors_after)) > 1:
        raise ConfigurationError(
            f"{pool}: expected a pool, in which no trajectory is dropped and several scales are scored; "
            "`ttsvar-ray calibrate JOB.yaml --output DIR` draws one"
        )
    folder = to or Path(pool) / "analysis"
    seen = read_pool(job, run, by_reward=by_reward)
    folder.mkdir(parents=True, exist_ok=True)
    lines = _consistency(seen, folder, judged=judge_of(job, by_reward=by_reward) is not None)
    lines += _costs(job, folder)
    lines += _strip(run, folder, prompt)
    typer.echo("\n".join(lines))


def potentials(rewards: np.ndarray, kind: PotentialKind) -> np.ndarray:
    """Return the potential at each scored scale, before lambda.

    Args:
        rewards: float64 [prompts, trajectories, scales].
        kind: of the scales given; DIFF is taken to the scored scale before.
    """
    import numpy as np

    from ttsvar_ray.search.potentials import log_potentials

    return np.stack(
        [
            np.stack([log_potentials(one[:, : scale + 1], kind, 1.0) for one in rewards])
            for scale in range(rewards.shape[2])
        ],
        axis=2,
    )


def _consistency(pool: Pool, folder: Path, *, judged: bool) -> list[str]:
    """Draw how well each scale foretells the end; return the numbers of VALUE."""
    import dataclasses

    import numpy as np

    from ttsvar_ray.evaluate.comparison import grouped_mean
    from ttsvar_ray.report.plot import Chart, Series
    from ttsvar_ray.search.calibration import consistency
    from ttsvar_ray.types import PotentialKind

    def estimated(values: Any) -> Any:
        known = np.isfinite(values)
        return grouped_mean(values[known], texts=pool.texts[known])

    early = list(pool.scales[:-1])
    charts: dict[str, list[Any]] = {"consistency": [], "correlation": [], "accuracy": []}
    prompts, trajectories, _ = pool.rewards.shape
    right = "   accuracy of pick" if judged else ""
    lines = [
        f"{prompts} prompts, {trajectories} trajectories each; +- is one standard error over texts",
        f"scale   rank correlation          same best{right}",
    ]
    for kind in PotentialKind:
        values = potentials(pool.rewards[:, :, :-1], kind)
        found = consistency(
            dataclasses.replace(pool, rewards=np.concatenate([values, pool.rewards[:, :, -1:]], axis=2))
        )
        measures = {
            "consistency": [one.same_best for one in found[:-1]],
            "correlation": [one.correlation for one in found[:-1]],
            "accuracy": [one.picked for one in found[:-1]],
        }
        for name, per_scale in measures.items():
            charts[name].append(
                Series(
                    name=kind.value.upper(),
                    x=early,
                    y=[estimated(each).mean for each in per_scale],
                    error=[estimated(each).standard_error for each in per_scale],
                )
            )
        if kind is not PotentialKind.VALUE:
            continue
        for place, scale in enumerate([*early, pool.scales[-1]]):
            one = found[place]
            each = map(estimated, [one.correlation, one.same_best, *([one.picked] if judged else [])])
            cells = "  ".join(f"{found.mean:>8.3f} +- {found.standard_error:.3f}" for found in each)
            lines.append(f"{scale:>5} {cells}")
    labels = {
        "consistency": "share of prompts whose best there is the best at the end",
        "correlation": "rank correlation with the final reward, within a prompt",
        "accuracy": "share of picks that are right",
    }
    for name, series in charts.items():
        if name == "accuracy" and not judged:
            continue
        title = f"{name} by scale and potential"
        Chart(title=title, x_label="scale", y_label=labels[name], series=series).write(folder / name)
    return lines


def _costs(job: ResolvedJob, folder: Path) -> list[str]:
    """Draw FLOPs and KV bytes by scale of best-of-8 and of the published plan, N=1."""
    from ttsvar_ray.cli.plan_report import job_report
    from ttsvar_ray.config.sections import StrategyConfig
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.report.plot import Chart, Series

    strategies = {
        "best-of-8": StrategyConfig(name="best-of-n", n=8),
        "TTS-VAR, published plan, N=1": StrategyConfig(name="tts-var", plan="published", n=1),
    }
    flops, memory = [], []
    for name, strategy in strategies.items():
        try:
            counted = job_report(resolve(job.config.model_copy(update={"strategy": strategy}))).counted
        except ConfigurationError:  # a model with other scales, or a reward whose costs nobody has counted
            counted = None
        if counted is None:
            return ["cost and memory: not counted of this model, reward or number of scales"]
        scales = [scale.row.scale_index for scale in counted.cost.scales]
        flops.append(Series(name=name, x=scales, y=[scale.flops / 1e9 for scale in counted.cost.scales]))
        memory.append(Series(name=name, x=scales, y=[scale.kv_bytes / 1e6 for scale in counted.cost.scales]))
    for file, label, series in (
        ("cost", "GFLOP of the transformer, one prompt", flops),
        ("memory", "MB of KV cache, one prompt", memory),
    ):
        Chart(title=f"{file} by scale", x_label="scale", y_label=label, series=series).write(folder / file)
    totals = ", ".join(f"{one.name} {sum(one.y):.3g} GFLOP" for one in flops)
    return [f"transformer: {totals}"]


def _strip(run: SavedRun, folder: Path, prompt: str | None) -> list[str]:
    """Draw one image at each of its scales, over the map of patches that clustering compares."""
    import numpy as np
    from PIL import Image

    from ttsvar_ray.errors import ConfigurationError, InputError
    from ttsvar_ray.features.registry import build_extractor
    from ttsvar_ray.job.parts import resolve_extractor
    from ttsvar_ray.report.contact_sheet import contact_sheet

    found = [run[0]] if prompt is None else run.find(prompt)
    if not found:
        raise InputError(f"--prompt: expected a prompt of the pool, by id or text, got {prompt!r}")
    result = found[0]
    records = [record for record in result.trace if record.bits]
    best = result.best
    if best.bits:
        bits = best.bits
    elif records:
        bits = records[-1].bits[best.lineage[len(records) - 1]]
    else:
        return ["strip: the pool keeps no bits; draw it with --set output.bits=true to have one"]
    pictures = run.replayer.scales(result.prompt, bits)
    captions = [f"scale {scale}" for scale in range(len(pictures))]
    told = f"strip: {len(pictures)} scales of {result.prompt!r}"
    try:
        own = run.job.config.features
        part = resolve_extractor(own, run.job.description)
        extractor = build_extractor(part.name, backbone=part.path, options=own.options)
    except ConfigurationError:
        extractor = None
    if extractor is not None:
        features = np.asarray(extractor.extract(np.stack(pictures)))
        side = math.isqrt(features.shape[1])
        if features.ndim == 2 and side * side == features.shape[1]:
            for scale, values in enumerate(features):
                grey = (values - values.min()) / max(float(np.ptp(values)), 1e-12) * 255
                small = Image.fromarray(grey.reshape(side, side).astype(np.uint8)).convert("RGB")
                larger = small.resize((_MAP_PIXELS, _MAP_PIXELS), Image.Resampling.NEAREST)
                pictures.append(np.asarray(larger))
                captions.append(f"{part.name}, scale {scale}")
            told += f", and the maps of {part.name}"
    contact_sheet(pictures, captions, columns=len(bits), title=result.prompt).save(folder / "strip.png")
    return [told]
