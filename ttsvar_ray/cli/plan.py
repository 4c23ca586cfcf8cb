"""`ttsvar-ray plan`: what a job would do to each prompt, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people

if TYPE_CHECKING:
    from ttsvar_ray.config import JobConfig
    from ttsvar_ray.costs import PlanCost
    from ttsvar_ray.search.schedule import Plan


def plan(
    job: options.Job = None,
    model: options.Model = None,
    strategy: options.Strategy = None,
    n: options.N = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Print the compiled plan: per scale population, selection, tokens, share of FLOPs and KV bytes.

    Reads the model's config.json only: no weights, no GPU, no prompts.
    """
    with errors_for_people(debug=debug):
        from ttsvar_ray.config import load_config
        from ttsvar_ray.engine.build import build_plan

        flags = {"model.name": model, "strategy.name": strategy, "strategy.n": n}
        config = load_config(job, options.overrides(flags, settings), needs_files=False)
        compiled = build_plan(config)
        typer.echo("\n".join(plan_lines(config, compiled, transformer_cost(config, compiled))))


def transformer_cost(config: JobConfig, compiled: Plan) -> PlanCost:
    """Count what one prompt costs in the job's transformer; decoders and selectors are left at 0."""
    from ttsvar_ray.costs import ComponentFlops, TransformerShape, plan_cost
    from ttsvar_ray.engine.build import describe
    from ttsvar_ray.models.infinity.config import TransformerConfig
    from ttsvar_ray.models.registry import resolve_device
    from ttsvar_ray.models.sampling import per_scale

    description = describe(config)
    sizes = TransformerConfig.from_json(description.transformer)
    own = description.sampling.guidance
    given = config.sampling.guidance
    guidance = own if given is None else per_scale("guidance", given, description.num_scales)
    device, dtype = config.model.device, config.model.dtype
    # A job for GPUs can be planned on a machine without one.
    on_gpu = device.startswith("cuda") or (device == "auto" and resolve_device(device).type == "cuda")
    shape = TransformerShape(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        ffn_dim=sizes.ffn_dim,
        bits_per_token=sizes.bits_per_token,
        text_length=min(32, sizes.text_max_length),
        guidance=any(value != 1 for value in guidance),
        kv_element_bytes=2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4,
    )
    return plan_cost(compiled, shape, ComponentFlops())


_HEADER = (
    "scale",
    "grid",
    "tokens",
    "population",
    "selection",
    "survivors",
    "decoded",
    "scored",
    "FLOPs",
    "KV cache",
)


def plan_lines(config: JobConfig, compiled: Plan, cost: PlanCost) -> list[str]:
    """Return a plan as a table and a few sentences."""
    from ttsvar_ray.search.describe import history_demand, selector_demand

    table = [_HEADER]
    for scale, share in zip(cost.scales, cost.shares, strict=True):
        row = scale.row
        table.append(
            (
                str(row.scale_index),
                f"{row.height}x{row.width}",
                str(row.tokens),
                str(row.population),
                row.selection.value if row.selection is not None else "-",
                str(row.survivors),
                str(row.decodes or "-"),
                str(row.population) if row.scored else "-",
                f"{share:.1%}",
                _bytes(scale.kv_bytes),
            )
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    demand, history = selector_demand(compiled), history_demand(compiled)
    head = (
        f"model {config.model.name}, strategy {compiled.strategy}, n {config.strategy.n}, "
        f"plan {config.strategy.plan}"
    )
    if any(selection.kind.value == "resample" for selection in compiled.selections):
        head += (
            f", potential {compiled.potential.value}, lambda {compiled.lambda_:g}, "
            f"{compiled.scheme.value} resampling"
        )
    per_prompt = (
        f"per prompt: {_flops(cost.transformer_flops)} in the transformer; {demand.decodes} images decoded, "
        f"{demand.embeddings} embedded, {demand.scores} scored; {compiled.survivors_after[-1]} finished"
    )
    lines = [
        head,
        "",
        *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table),
        "",
        per_prompt,
        f"KV cache of one prompt at its peak: {_bytes(cost.peak_kv_bytes)}",
    ]
    if history.scores:
        lines.append(
            f"potential {compiled.potential.value} needs rewards at every scale: {history.decodes} of the "
            f"decoded and {history.scores} of the scored images are for it alone"
        )
    return lines


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _flops(count: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TFLOP"
