"""What `ttsvar-ray plan` prints: the plan, its costs and its memory, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ttsvar_ray.cli.show import bytes_text, flops_unit, table_lines, wrapped
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.costs.plan_cost import PlanCost, image_costs, plan_cost
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.errors import amount
from ttsvar_ray.job.footprint import TYPICAL_TEXT_TOKENS, has_counted_costs, job_networks
from ttsvar_ray.job.memory_plan import MemoryPlan
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.preflight import likely_device
from ttsvar_ray.job.resolved import ResolvedJob, plan_note
from ttsvar_ray.job.sizing import sized, sized_memory
from ttsvar_ray.job.workload import workload_of
from ttsvar_ray.search.describe import ScaleRow, history_demand, selector_demand
from ttsvar_ray.search.describe import describe as describe_plan
from ttsvar_ray.search.operators.protocol import Operator
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.vision.published import FLOAT32_BYTES

DEVICE_SIZES_GB = (24, 40, 80, 141)
"""Memory of common GPUs in decimal GB, as on their data sheets; drivers show a little more."""


_FITS_HEADER = ("device", "free for trajectories", "prompts under way", "side by side", "rows")
_PLAN_HEADER = ("scale", "grid", "tokens", "before", "selection", "after", "decode", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class _CountedCosts:
    """What is counted of a job.

    Attributes:
        cost: FLOPs and KV bytes.
        memory: of one prompt on one device.
        sizes: the same, with the rows that are chosen there, on a GPU of each of `DEVICE_SIZES_GB`.
        workload: seconds by segment, where a device was named.
    """

    networks: JobNetworks
    cost: PlanCost
    memory: MemoryPlan
    sizes: Mapping[int, tuple[MemoryPlan, tuple[int, ...]]]
    workload: Workload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobReport:
    """A job's plan, and its costs where they are counted."""

    job: ResolvedJob
    counted: _CountedCosts | None

    @property
    def plan(self) -> Plan:
        """What is done to each prompt."""
        return self.job.plan

    def lines(self) -> list[str]:
        """Return the report for people."""
        note = plan_note(self.job)
        head = [_headline(self.job), *([f"note: {note}"] if note else [])]
        lines = [*head, "", *_table(self), "", *_operator_lines(self.plan), _demand_line(self)]
        history = history_demand(self.plan)
        if history.scores:
            lines.append(
                f"selections need rewards of other scales than their own: {history.decodes} of the decoded "
                f"and {history.scores} of the scored images are for those alone"
            )
        if self.counted is None:
            family = self.job.description.family
            unknown = f"not counted: FLOPs, memory and seconds, because the family {family} has no `on_meta`"
            return wrapped([*lines, f"{unknown}; a run is placed by engine.micro_batch_rows alone"])
        lines += [
            *_cost_lines(self.counted),
            *_rounds_lines(self),
            "",
            *_memory_lines(
                self.counted,
                rows_of(self.job.config, self.plan),
                selector_decode=self.job.config.engine.selector_decode,
            ),
            *self._verifier_lines(self.counted),
        ]
        return wrapped([*lines, *self._seconds_lines()])

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs; bytes and FLOPs are plain numbers."""
        rows = describe_plan(self.plan)
        report: dict[str, Any] = {
            "model": self.job.config.model.name,
            "strategy": self.plan.strategy,
            "n": self.job.config.strategy.n,
            "scales": [row.to_json() for row in rows],
        }
        if self.counted is None:
            return report
        counted = self.counted
        for entry, scale, share in zip(
            report["scales"], counted.cost.scales, counted.cost.shares, strict=True
        ):
            entry |= {
                "flops": scale.flops,
                "share": share,
                "kv_bytes_per_trajectory": scale.cost.kv_bytes,
                "kv_bytes": scale.kv_bytes,
            }
        return report | {
            "parameters": counted.networks.parameters,
            "flops": {
                "transformer": counted.cost.transformer_flops,
                "decode": counted.cost.decode_flops,
                "selectors": counted.cost.selector_flops,
                "text": counted.cost.encode_text_flops,
                "total": counted.cost.flops,
            },
            "memory": {
                "weights": dict(counted.memory.weights),
                "stages": [asdict(stage) for stage in counted.memory.stages],
                "micro_batch_rows": list(rows_of(self.job.config, self.plan)),
                "peak": counted.memory.peak_bytes,
                "least": counted.memory.least_bytes,
                "peak_kv": counted.cost.peak_kv_bytes,
                "fits": [
                    {
                        "device_gb": size,
                        "micro_batch_rows": list(rows),
                        "prompts_under_way": memory.prompts_under_way(size * 1e9),
                        "prompts_side_by_side": memory.prompts_side_by_side(size * 1e9),
                    }
                    for size, (memory, rows) in counted.sizes.items()
                ],
            },
            "seconds": counted.workload
            and {"source": counted.workload.source, "segments": self._segment_seconds(counted.workload)},
        }

    def _segment_seconds(self, workload: Workload) -> list[float]:
        return [workload.seconds(segment.index, segment.population) for segment in self.plan.segments]

    def _seconds_lines(self) -> list[str]:
        if self.counted is None or self.counted.workload is None:
            return []
        seconds = self._segment_seconds(self.counted.workload)
        parts = " + ".join(f"{value:.2f}" for value in seconds)
        line = (
            f"one prompt alone, estimated ({self.counted.workload.source}): {sum(seconds):.2f} s "
            f"(by segment {parts}); an estimate, not a measurement"
        )
        return ["", line]

    def _verifier_lines(self, counted: _CountedCosts) -> list[str]:
        """Return what a reward in actors of its own takes, which may be what is slow."""
        verifiers, reward = self.job.config.verifiers, counted.networks.reward
        if not verifiers.replicas:
            return []
        gpus = verifiers.gpus_per_replica
        each = "" if gpus is None else f" of {gpus:g} GPUs"
        weights = bytes_text(counted.networks.reward_precision.element_bytes * reward.parameters)
        scores = selector_demand(self.plan).scores
        lines = [
            (
                f"reward in {verifiers.replicas} verifiers{each}, {weights} of weights in each and none in "
                f"the workers: {scores} scores a prompt, {amount(scores * reward.image_flops, 'FLOP')}"
            )
        ]
        if counted.workload is not None and (seconds := counted.workload.verifier_seconds):
            lines.append(
                f"the verifiers together score {60 / seconds:.3g} prompts a minute "
                f"({counted.workload.source}), whatever the number of workers"
            )
        return ["", *lines]


def job_report(
    job: ResolvedJob, *, text_tokens: int = TYPICAL_TEXT_TOKENS, profile: str | None = None
) -> _JobReport:
    """Return what there is to say about a job.

    Args:
        text_tokens: real tokens of a typical text.
        profile: a device to estimate seconds for, None for none.

    Raises:
        ConfigurationError: an unknown profile, or a reward whose costs are not known.
    """
    device = None if profile is None else load_profile(profile)
    if not has_counted_costs(job.description):
        return _JobReport(job=job, counted=None)
    shown = likely_device(job) if device is None else device
    given, job, on_gpu = job, sized(job, shown), shown.is_gpu
    networks = job_networks(job.config, job.description, job.plan, on_gpu=on_gpu, text_tokens=text_tokens)
    each = {size: replace(shown, memory_bytes=size * 1e9) for size in DEVICE_SIZES_GB}
    jobs = {size: sized(given, one) for size, one in each.items()}
    counted = _CountedCosts(
        networks=networks,
        cost=plan_cost(job.plan, networks, selector_decode=job.config.engine.selector_decode),
        memory=sized_memory(job, networks, on_gpu=on_gpu),
        sizes={
            size: (sized_memory(one, networks, on_gpu=on_gpu), rows_of(one.config, one.plan))
            for size, one in jobs.items()
        },
        workload=None if device is None else workload_of(job, networks, device),
    )
    return _JobReport(job=job, counted=counted)


def _headline(job: ResolvedJob) -> str:
    config, compiled = job.config, job.plan
    head = (
        f"model {config.model.name}, strategy {compiled.strategy}, n {config.strategy.n}, "
        f"plan {config.strategy.plan}"
    )
    rows = job.pass_rows
    if rows is not None:
        head += f"; deterministic, passes of {', '.join(map(str, rows))} rows by segment, counted as full"
    return head


def _operator_lines(compiled: Plan) -> list[str]:
    """Return a line for each operator that stands at some scale, with its options."""
    scales: dict[Operator, list[int]] = {}
    for selection in compiled.selections:
        scales.setdefault(selection.operator, []).append(selection.scale_index)
    return [
        f"{operator.name} at {' and '.join(map(str, where))}"
        + (f": {operator.describe()}" if operator.describe() else "")
        for operator, where in scales.items()
    ]


def _table(report: _JobReport) -> list[str]:
    rows = []
    costs = report.counted.cost if report.counted else None
    unit, size = flops_unit(max(scale.flops for scale in costs.scales)) if costs else ("", 1.0)
    for index, row in enumerate(describe_plan(report.plan)):
        cells: tuple[str, ...] = (
            str(row.scale_index),
            f"{row.height}x{row.width}",
            str(row.tokens),
            str(row.population),
            row.selection or "-",
            str(row.survivors),
            str(row.decodes or "-"),
            _scored(row),
        )
        if costs is not None:
            scale = costs.scales[index]
            cells += (f"{scale.flops / size:.3g}", f"{costs.shares[index]:.1%}", bytes_text(scale.kv_bytes))
        rows.append(cells)
    costly = (unit, "share", "KV cache") if costs else ()
    return table_lines(_PLAN_HEADER + costly, rows, texts=0, tight=True)


def _scored(row: ScaleRow) -> str:
    """Return how many trajectories are scored after a scale, and by what, where not by a decode."""
    if not row.scored:
        return "-"
    if row.look is None:
        return str(row.population)
    return f"{row.population} map" if row.on_map else f"{row.population} at {row.look.ahead_to}"


def _demand_line(report: _JobReport) -> str:
    demand = selector_demand(report.plan)
    return (
        f"per prompt: {demand.decodes} images decoded, {demand.embeddings} embedded, {demand.scores} scored"
        f"{f', {demand.maps} feature maps scored' if demand.maps else ''}; "
        f"{report.plan.survivors_after[-1]} finished"
    )


def _cost_lines(counted: _CountedCosts) -> list[str]:
    cost, networks = counted.cost, counted.networks
    image, padded = networks.model.decodes["full"], networks.model.text_tokens
    names = ", ".join(f"{name} {_count(count)}" for name, count in networks.parameters.items() if count)
    flops = (
        f"FLOPs per prompt: {amount(cost.flops, 'FLOP')} = "
        f"transformer {amount(cost.transformer_flops, 'FLOP')} + decoder {amount(cost.decode_flops, 'FLOP')} "
        f"+ selectors {amount(cost.selector_flops, 'FLOP')} + text {amount(cost.encode_text_flops, 'FLOP')}"
    )
    if padded:
        flops += f" (texts of {networks.text_tokens} tokens; memory and seconds count {padded}, the most)"
    return [
        flops,
        f"one decoded image: {image.width} x {image.height} pixels, {amount(image.flops, 'FLOP')}",
        f"parameters: {names}",
        f"KV cache of one prompt at its peak: {bytes_text(cost.peak_kv_bytes)}",
    ]


def _rounds_lines(report: _JobReport) -> list[str]:
    """Return what the rounds of an adaptive search may cost; what they do on average no plan can know."""
    plan = report.plan
    if plan.rounds.stop_at is None or report.counted is None:
        return []
    size = report.job.config.engine.selector_decode
    text, *each = image_costs(plan, report.counted.networks, selector_decode=size)
    rounds = [
        [segment.population * cost for segment, cost in zip(plan.of_round(index).segments, each, strict=True)]
        for index in range(plan.rounds.most)
    ]
    rejecting = dict(plan.rounds.reject_below)
    abandoned = [
        f"{sum(rounds[0][: segment.index + 1]):.2f} where it is abandoned at scale {segment.last_scale}"
        for segment in plan.segments
        if segment.last_scale in rejecting
    ]
    costs = ", ".join([f"{sum(rounds[0]):.2f} raw images", *abandoned])
    return [
        f"up to {plan.rounds.most} rounds; all above is of the first one, which costs {costs}",
        (
            f"a prompt costs {text + sum(rounds[0]):.2f} to {text + sum(map(sum, rounds)):.2f} raw images; "
            "`ttsvar-ray calibrate` says how many on average"
        ),
    ]


def _rows_text(rows: Sequence[int]) -> str:
    """Return rows by segment, or one number where all have it."""
    return str(rows[0]) if len(set(rows)) == 1 else " ".join(map(str, rows))


def _memory_lines(counted: _CountedCosts, rows: Sequence[int], *, selector_decode: str) -> list[str]:
    memory = counted.memory
    precision = "bfloat16" if counted.networks.model.element_bytes == 2 else "float32"
    weights = ", ".join(f"{name} {bytes_text(size)}" for name, size in memory.weights.items() if size)
    stages = [
        (stage.name, bytes_text(stage.taken), bytes_text(stage.least), bytes_text(stage.kept))
        for stage in memory.stages
    ]
    fits = []
    misfits = []
    for size, (there, chosen) in counted.sizes.items():
        misfit = there.misfit(size * 1e9)
        if misfit is not None:
            misfits.append(f"{size} GB: does not fit: {misfit}")
            continue
        fits.append(
            (
                f"{size} GB",
                bytes_text(there.room(size * 1e9)),
                str(there.prompts_under_way(size * 1e9)),
                # One after the other, in smaller micro-batches, is no misfit.
                str(there.prompts_side_by_side(size * 1e9) or "less than 1"),
                _rows_text(chosen),
            )
        )
    if misfits:
        recorded = any(one.recorded for size, (one, _) in counted.sizes.items() if one.misfit(size * 1e9))
        wide = counted.networks.reward_precision.element_bytes == FLOAT32_BYTES
        helpful = {
            "a smaller --resolution or --n": True,
            "engine.selector_decode=selector": selector_decode != "selector",
            "--dtype bfloat16": precision != "bfloat16",
            "engine.cuda_graphs=never": recorded,
            "reward.dtype=float16": wide,
        }
        misfits.append(f"  what helps: {', '.join(what for what, is_left in helpful.items() if is_left)}")
    peak = (
        f"peak of one prompt, weights included: {bytes_text(memory.peak_bytes)} in micro-batches of "
        f"{_rows_text(rows)} rows, {bytes_text(memory.least_bytes)} in such of one"
    )
    return [
        f"weights ({precision} blocks): {bytes_text(memory.weight_bytes)} = {weights}",
        "",
        *table_lines(("memory beside the weights", "as it runs", "one at a time", "kept"), stages, texts=0),
        *(
            [f"and for recorded passes (engine.cuda_graphs) {bytes_text(memory.recorded)}, whatever runs"]
            if memory.recorded
            else []
        ),
        "",
        peak,
        "",
        *(table_lines(_FITS_HEADER, fits, texts=0) if fits else ()),
        *misfits,
    ]


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e9 else f"{number / 1e6:.3g} M"
