"""A job, ready to start: its prompts counted, its weights found, its output looked at; nothing is written.

    settings -> prompts -> plan, parts -> weights -> output -> space, memory, time

Whatever is wrong is raised here, and every fact is told as soon as it is known, so that a run says what it
will do before anything heavy begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ttsvar_ray.config.job import JobConfig, content_digest
from ttsvar_ray.config.values import ColumnChoice, Shard
from ttsvar_ray.costs.plan_cost import image_costs, plan_record
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.dataset.accounting import PlanRecord
from ttsvar_ray.dataset.contents import committed_chunks, rows_added
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.dataset.output import check_output, fresh_output
from ttsvar_ray.errors import ConfigurationError, OutputError
from ttsvar_ray.job.preflight import (
    Device,
    Fact,
    JobFact,
    OutputFact,
    PlanFact,
    PromptsFact,
    TimeFact,
    WeightsFact,
    check_space,
    check_staging,
    devices_here,
    free_bytes,
    images_kept,
    time_fact,
    with_trace,
)
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.job.runnable import JobParts, job_parts
from ttsvar_ray.job.sizing import sized
from ttsvar_ray.job.weights import resolve_output
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.prompts.files import prompt_files, readable_twice
from ttsvar_ray.prompts.read import PromptScan, read_prompts, scan_prompts
from ttsvar_ray.prompts.source import STANDARD_INPUT, PromptFormat, PromptSource
from ttsvar_ray.search.operators.registry import own_sources
from ttsvar_ray.search.plan import Plan

SMALL_JOB_IMAGES = 100
"""Finished images below which starting Ray takes longer than all of them on one device."""

RAY_ADDRESS = "RAY_ADDRESS"
"""Ray's variable that names a running cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """What is known of a job before it starts.

    Attributes:
        source, scan: the prompts.
        manifest: what `run.json` of a new run says.
        shard: of the prompt set that this run makes.
        output: what is there, and what this session adds.
        device: the devices of this machine that the job would use; None where a cluster has them.
        in_process: whether it runs in this process, on one of them.
    """

    config: JobConfig
    parts: JobParts
    source: PromptSource
    scan: PromptScan
    manifest: RunManifest
    layout: OutputLayout
    shard: Shard
    output: OutputFact
    device: Device | None
    in_process: bool

    def time_on(self, device: Device) -> TimeFact:
        """Return how long the prompts that are left take on such devices.

        Raises:
            ConfigurationError: the job does not fit one of them.
        """
        if device.memory_bytes is not None:
            self.parts.check_memory(device.known)
        rows = self.parts.rows(device.known)
        prompts, workload = self.output.prompts_left, self.parts.expect(device.known)
        return time_fact(self.parts.plan, device, workload, rows=rows, prompts=prompts)

    def plan_record(self, present: RunManifest | None) -> PlanRecord:
        """Return the plan with its costs, as the run that is continued has them, or else counted now."""
        if present is not None and present.config_digest == self.manifest.config_digest and present.plan:
            return present.plan
        size = self.config.engine.selector_decode
        return plan_record(self.parts.plan, self.parts.networks(), selector_decode=size)

    def image_costs(self) -> tuple[float, ...]:
        """Return `costs.plan_cost.image_costs` of an adaptive plan; empty of others, or if nobody counted."""
        networks = None if self.parts.plan.rounds.stop_at is None else self.parts.networks()
        if networks is None:
            return ()
        return image_costs(self.parts.plan, networks, selector_decode=self.config.engine.selector_decode)

    def ledger(
        self,
        committed: frozenset[int],
        rows_to_run: Mapping[int, Collection[int]],
        kept: Mapping[int, Collection[int]],
    ) -> LeaseLedger:
        """Return the ledger of the prompts that are left; arguments are its own."""
        return LeaseLedger(
            read_prompts(self.source, scan=self.scan),
            prompt_count=self.scan.count,
            rows_per_chunk=self.config.output.rows_per_part,
            committed=committed,
            rows_to_run=rows_to_run,
            kept=kept,
            shard=(self.shard.index, self.shard.count),
        )


def uses_this_machine(config: JobConfig, *, submitted: bool) -> bool:
    """Whether a job's workers are on this machine, not on a cluster that somebody started."""
    address = config.cluster.address or os.environ.get(RAY_ADDRESS)
    return address in (None, "", "local") and not submitted


@contextlib.contextmanager
def prepared(
    config: JobConfig,
    *,
    tell: Callable[[Fact], None] = lambda fact: None,
    parts: JobParts | None = None,
    force_new: bool = False,
    extend: bool = False,
    submitted: bool = False,
    connected: bool = False,
) -> Iterator[PreparedJob]:
    """Look at a job; standard input is copied to a file for the time of the block.

    Args:
        tell: is told each fact as soon as it is known.
        parts: another plan and engine than the settings name.
        force_new: if the output folder holds something else, use a numbered one beside it.
        extend: if the output folder holds a run of the first of these prompts, add the others to it.
        submitted: whether this is the entry point of `ray job submit`.
        connected: whether this process is connected to a cluster.

    Raises:
        ConfigurationError, CheckpointError: settings that cannot be run.
        InputError: prompts that cannot be used.
        OutputError: an output folder that cannot be continued, or that has no room.
        StorageError: a path or URI that cannot be opened, a storage that fails.
    """
    by_hand = {} if parts is None else parts.by_hand()
    told, n, to = {**config.content(), **by_hand}, config.strategy.n, config.output.path
    model, strategy = told["model.name"], told["strategy.name"]
    tell(JobFact(model=model, strategy=strategy, n=n, seed=config.seed, output=to))
    is_local = uses_this_machine(config, submitted=submitted) and not connected
    here = is_local or bool(config.cluster.in_process)
    named = named_source(config)
    if named.path != STANDARD_INPUT:
        # A name that is mistyped is told at once.
        prompt_files(named)
    with readable_twice(named, sys.stdin.buffer) as source:
        scan = scan_prompts(source, rows_per_chunk=config.output.rows_per_part)
        tell(PromptsFact(path=named.name, scan=scan, max_failed=config.max_failed))
        resolved = None
        if parts is None:
            resolved = resolve(config, needs_parts=True, here=here)
            config = with_trace(config, resolved.description, resolved.plan)
            resolved = dataclasses.replace(resolved, config=config)
            parts = job_parts(resolved)
        else:
            config = with_trace(config, None, parts.plan)
        tell(PlanFact(plan=parts.plan, note=parts.note))
        prints = parts.fingerprints()
        tell(WeightsFact(parts=tuple(prints)))
        prints |= by_hand
        manifest = _manifest(config, named, parts, scan, prints)
        layout = OutputLayout(
            resolve_output(config.output.path, submitted=submitted, shard=config.cluster.shard)
        )
        if resolved is not None and config.engine.deterministic and config.engine.micro_batch_rows == "auto":
            config = _with_fixed_rows(resolved, read_manifest(layout), manifest, here=here)
            resolved = dataclasses.replace(resolved, config=config)
            parts = job_parts(resolved)
            manifest = _manifest(config, named, parts, scan, prints)
        if extend:
            manifest = _extended(layout, manifest, source)
        if force_new:
            layout = fresh_output(layout, manifest)
        present = check_output(layout, manifest)
        shard = config.cluster.shard or Shard(index=0, count=1)
        # Of a run that is extended now, the one that is there lacks the prompts that are added.
        begun = manifest if manifest.extended else present or manifest
        output = _output_fact(config, parts, layout, begun, shard)
        tell(output)
        check_space(output)
        check_staging(layout.root, config.output.rows_per_part, parts.image_bytes)
        # From here on torch is imported, which takes seconds.
        from ttsvar_ray.models.row_stability import cpu_kernels

        manifest = dataclasses.replace(manifest, cpu_kernels=cpu_kernels())
        device = _device(config) if here else None
        if device is not None and resolved is not None:
            # Elsewhere every worker chooses by its own GPU, and rows are no part of what is generated.
            config = sized(resolved, device.known).config
            manifest = dataclasses.replace(manifest, config=config.resolved())
        in_process = device is not None and _runs_in_process(config, parts.plan, output, device)
        if device is not None and in_process:
            device = dataclasses.replace(device, count=1)
        job = PreparedJob(
            config=config,
            parts=parts,
            source=source,
            scan=scan,
            manifest=manifest,
            layout=layout,
            shard=shard,
            output=output,
            device=device,
            in_process=in_process,
        )
        if device is not None and output.prompts_left:
            tell(job.time_on(device))
        yield job


def _manifest(
    config: JobConfig, named: PromptSource, parts: JobParts, scan: PromptScan, prints: dict[str, str]
) -> RunManifest:
    operators = [selection.operator for selection in parts.plan.selections]
    content = {**config.content(), **prints, **own_sources(operators)}
    return RunManifest(
        config=config.resolved(),
        content=content,
        config_digest=content_digest(content),
        prompts_path=named.name,
        prompts_digest=scan.digest,
        prompt_count=scan.count,
        bad_lines=scan.bad_lines,
        rows_per_chunk=scan.rows_per_chunk,
        chunk_digests=scan.chunk_digests,
        column_types={name: str(kind) for name, kind in scan.column_types.items()},
        seed=config.seed,
    )


def _with_fixed_rows(
    job: ResolvedJob, present: RunManifest | None, manifest: RunManifest, *, here: bool
) -> JobConfig:
    """Return the settings of a deterministic job with rows in numbers, which are part of what it generates.

    Args:
        job: whose rows are "auto".
        present: of the output folder: a run of the same job goes on with its numbers, wherever it goes on.
        manifest: of the job as it is.
        here: whether it runs on this machine, whose device chooses them otherwise.
    """
    config, setting = job.config, "engine.micro_batch_rows"
    begun = {} if present is None else present.content
    kept = begun.get(setting, "auto")
    if kept != "auto" and {**begun, setting: None} == {**manifest.content, setting: None}:
        rows = kept if isinstance(kept, int) else tuple(kept)
        engine = config.engine.model_copy(update={"micro_batch_rows": rows})
        return config.model_copy(update={"engine": engine})
    if here or config.model.device == "cpu":
        return sized(job, _device(config).known).config
    raise ConfigurationError(
        f"{setting}: expected numbers with engine.deterministic on a cluster, got 'auto': they are part of "
        "what is generated, and its GPUs are not known before; `ttsvar-ray plan JOB.yaml --profile h200 "
        "--set engine.deterministic=true` chooses some"
    )


def _extended(layout: OutputLayout, manifest: RunManifest, source: PromptSource) -> RunManifest:
    """Return the manifest of a run of the first of these prompts, with the others; any other as it is."""
    present = read_manifest(layout)
    if present is None or present.prompts_digest == manifest.prompts_digest:
        return manifest
    count = present.prompt_count
    if manifest.prompt_count <= count or (
        scan_prompts(dataclasses.replace(source, limit=count)).digest != present.prompts_digest
    ):
        raise OutputError(
            f"{layout.root}: --extend adds prompts at the end of the {count} of this run, and they are no "
            f"longer the first of the {manifest.prompt_count} in {manifest.prompts_path}; put them back as "
            "they were, or choose another --output folder"
        )
    if dict(present.column_types) != dict(manifest.column_types):
        raise OutputError(
            f"{layout.root}: --extend: expected the columns of this run, {_columns(present)}, got "
            f"{_columns(manifest)}; leave others out by prompts.columns"
        )
    return dataclasses.replace(manifest, created=present.created, extended=(*present.extended, count))


def _columns(manifest: RunManifest) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in manifest.column_types.items()) or "none"


def _output_fact(
    config: JobConfig, parts: JobParts, layout: OutputLayout, begun: RunManifest, shard: Shard
) -> OutputFact:
    each, count = begun.rows_per_chunk, begun.prompt_count
    chunks = range(shard.index, -(-count // each), shard.count)
    committed = committed_chunks(layout)
    left = sum(min(each, count - chunk * each) for chunk in chunks if chunk not in committed)
    left += sum(map(len, rows_added(layout, begun, committed).values()))
    images = left * images_kept(config, parts.plan)
    return OutputFact(
        root=str(layout.root),
        parts_there=len(committed.intersection(chunks)),
        parts=len(chunks),
        prompts_left=left,
        images=images,
        image_bytes=None if parts.image_bytes is None else images * parts.image_bytes,
        free_bytes=free_bytes(layout.root),
    )


def _device(config: JobConfig) -> Device:
    """Return the devices of this machine, as many of them as the job has workers; a CPU with its rates."""
    cluster = config.cluster
    device = devices_here(config)
    if device.profile == "cpu":
        from ttsvar_ray.costs.profile import measured_cpu

        rates = measured_cpu(load_profile("cpu"), threads=config.engine.threads)
        device = dataclasses.replace(device, rates=rates)
    if cluster.workers is not None:
        return dataclasses.replace(device, count=cluster.workers)
    each = config.verifiers.gpus_per_replica
    taken = config.verifiers.replicas * (1.0 if each is None else each)
    left = device.count if device.memory_bytes is None else int(device.count - taken)
    return dataclasses.replace(device, count=max(1, left))


def _runs_in_process(config: JobConfig, plan: Plan, output: OutputFact, device: Device) -> bool:
    """Whether that is asked for, or is quickest."""
    cluster = config.cluster
    if config.verifiers.replicas:
        return False
    if cluster.in_process is not None:
        return cluster.in_process
    is_small = output.prompts_left * plan.survivors_after[-1] < SMALL_JOB_IMAGES
    is_alone = cluster.workers in (None, 1) and cluster.spread in ("auto", 1)
    has_gpus = device.memory_bytes is not None and device.count > 1
    return is_small and is_alone and not has_gpus


def named_source(config: JobConfig) -> PromptSource:
    """Return where the settings say that the prompts are."""
    prompts = config.prompts
    columns = prompts.columns or ColumnChoice()
    return PromptSource(
        path=prompts.path,
        column=prompts.column,
        id_column=prompts.id_column,
        limit=prompts.limit,
        format=None if prompts.format is None else PromptFormat(f".{prompts.format}"),
        split=prompts.split,
        subset=prompts.subset,
        keep=columns.keep,
        drop=columns.drop,
        rewrite=prompts.rewrite,
    )
