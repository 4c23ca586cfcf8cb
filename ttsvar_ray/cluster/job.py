"""The driver: one job from settings to a folder of parts.

    prompts --LeaseLedger--> cell ==> workers          (leases out, outcomes and references back)
                  |  whole chunks
                  '--------> sink --> data/part-*.parquet

The driver knows which prompts are out and which chunks are whole; it never touches an image or a device.
What is done is what is on disk: a killed job run again goes on after its last whole part.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.cluster.session import is_submitted_job
from ttsvar_ray.config import ColumnChoice, JobConfig, Shard, content_digest
from ttsvar_ray.dataset import (
    OutputLayout,
    OutputLock,
    RowContext,
    RunManifest,
    SessionLog,
    carried_columns,
    check_output,
    committed_chunks,
    failed_rows,
    fresh_output,
    open_output,
    write_bad_lines,
)
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.prompts.files import prompt_files
from ttsvar_ray.prompts.read import bad_lines, read_prompts, scan_prompts
from ttsvar_ray.prompts.source import STANDARD_INPUT, PromptFormat, PromptSource
from ttsvar_ray.prompts.standard_input import spool_standard_input
from ttsvar_ray.results import JobProgress, JobSummary
from ttsvar_ray.search.operators.registry import own_sources
from ttsvar_ray.storage import is_uri

if TYPE_CHECKING:
    from ttsvar_ray.job.runnable import JobParts

__all__ = ["JobProgress", "JobSummary", "run_job"]

logger = logging.getLogger(__name__)


def run_job(
    config: JobConfig,
    *,
    progress: Callable[[JobProgress], None] = lambda state: None,
    parts: JobParts | None = None,
    retry_failed: bool = False,
    force_new: bool = False,
) -> JobSummary:
    """Run a job, or go on with it.

    Everything that can be wrong with settings, prompts and output folder is found before Ray starts.

    Args:
        config: the job.
        progress: called about once a second with the state of the run.
        parts: another plan and engine than the settings name (own models, rewards or extractors); the
            settings still name the output, the cluster, and what `run.json` records.
        retry_failed: also run the prompts again that were given up in earlier sessions.
        force_new: if the output folder holds something else, use a numbered one beside it.

    Raises:
        ConfigurationError, CheckpointError: settings that cannot be run.
        InputError: prompts that cannot be used.
        OutputError: an output folder that cannot be continued.
        StorageError: a path or URI that cannot be opened, a storage that fails.
        ClusterConnectionError: no cluster at the address.
        InterruptedRunError: asked to stop; whole parts are committed and the same command goes on.
        RunFailedError: the cluster cannot finish the run.
        LostRowsError: in the end a prompt has neither images nor a dead letter, or both.
    """
    started = time.monotonic()
    named = _named_source(config)
    if named.path != STANDARD_INPUT:
        # A name that is mistyped is told at once: what follows imports the networks' libraries.
        prompt_files(named)
    from ttsvar_ray.cluster.driver import Driver
    from ttsvar_ray.job.paths import resolve_output
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.job.runnable import job_parts
    from ttsvar_ray.models.row_stability import cpu_kernels

    if parts is None:
        parts = job_parts(resolve(config, needs_parts=True))
    shard = config.cluster.shard or Shard(index=0, count=1)
    root = resolve_output(config.output.path, submitted=is_submitted_job(), shard=config.cluster.shard)
    is_relative = not is_uri(config.output.path) and not Path(config.output.path).is_absolute()
    if is_relative and is_submitted_job():
        logger.warning("output.path %s is relative; under ray job submit it is %s", config.output.path, root)
    with _readable_twice(named) as source:
        scan = scan_prompts(source, rows_per_chunk=config.output.rows_per_part)
        operators = [selection.operator for selection in parts.plan.selections]
        content = {**config.content(), **parts.fingerprints(), **own_sources(operators)}
        manifest = RunManifest(
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
            cpu_kernels=cpu_kernels(),
        )
        layout = OutputLayout(root)
        if force_new:
            layout = fresh_output(layout, manifest)
        check_output(layout, manifest)
        carried = carried_columns(scan.column_types)
        with OutputLock(layout) as lock:
            layout = lock.layout
            warn_of_other_kernels(open_output(layout, manifest), manifest)
            if scan.bad_lines and shard.index == 0:
                write_bad_lines(layout.bad_lines_file, bad_lines(source))
            committed = committed_chunks(layout)
            given_up = failed_rows(layout, committed)
            rows_to_run = given_up if retry_failed else {}
            ledger = LeaseLedger(
                read_prompts(source, scan=scan),
                prompt_count=scan.count,
                rows_per_chunk=config.output.rows_per_part,
                committed=committed,
                rows_to_run=rows_to_run,
                shard=(shard.index, shard.count),
            )
            if not ledger.chunks:
                logger.warning("shard %s has no part: there are fewer parts than shards", shard)
            driver = Driver(
                config=config,
                parts=parts,
                layout=layout,
                lock=lock,
                ledger=ledger,
                progress=progress,
                scan=scan,
                sessions=SessionLog(layout),
                context=partial(
                    RowContext,
                    strategy=parts.plan.strategy,
                    seed=config.seed,
                    carried=carried,
                    bits=config.output.bits,
                ),
                prompts_resumed=sum(len(ledger.rows(chunk)) for chunk in committed if chunk in ledger.chunks)
                - sum(len(rows) for rows in rows_to_run.values()),
            )
            if not ledger.is_done:
                parts.fetch()
                driver.run()
            return driver.summary(started)


def warn_of_other_kernels(begun: RunManifest, now: RunManifest) -> None:
    """Say so where a run is continued on a machine that may round otherwise than the one that began it."""
    if begun.cpu_kernels and begun.cpu_kernels != now.cpu_kernels:
        logger.warning(
            "this run was begun with the CPU kernels of %s and goes on with those of %s: prompts that run on "
            "a CPU may get other images than they would have got there; what is finished stays as it is",
            begun.cpu_kernels,
            now.cpu_kernels,
        )


def _named_source(config: JobConfig) -> PromptSource:
    prompts = config.prompts
    columns = prompts.columns or ColumnChoice()
    return PromptSource(
        path=prompts.path,
        column=prompts.column,
        id_column=prompts.id_column,
        limit=prompts.limit,
        format=None if prompts.format is None else PromptFormat(f".{prompts.format}"),
        keep=columns.keep,
        drop=columns.drop,
    )


@contextlib.contextmanager
def _readable_twice(source: PromptSource) -> Iterator[PromptSource]:
    """Yield where the prompts are; standard input is copied to a file for the time of the run."""
    if source.path != STANDARD_INPUT:
        yield source
        return
    spooled = spool_standard_input(source, sys.stdin.buffer)
    try:
        yield spooled
    finally:
        Path(spooled.name).unlink(missing_ok=True)
