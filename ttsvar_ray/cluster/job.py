"""A job from settings to a folder of parts.

    prompts --LeaseLedger--> cell ==> workers          (leases out, outcomes and references back)
                  |  whole chunks
                  '--------> sink --> data/part-*.parquet

The driver knows which prompts are out and which chunks are whole; it never touches an image or a device.
What is done is what is on disk: a killed job run again goes on after its last whole part. A small job needs
no cluster: `in_process` runs it here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.cluster.session import ended_by_signals, is_connected, is_submitted_job
from ttsvar_ray.cluster.stats import RunStats
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.contents import committed_chunks, failed_rows, rows_added
from ttsvar_ray.dataset.dead_letters import write_lines
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.dataset.writer import partial_rows
from ttsvar_ray.errors import LostLockError
from ttsvar_ray.job.preflight import Device, Fact
from ttsvar_ray.job.prepare import PreparedJob, prepared
from ttsvar_ray.job.record import RunRecord
from ttsvar_ray.prompts.read import bad_lines
from ttsvar_ray.results import JobProgress, JobSummary
from ttsvar_ray.storage.uris import is_uri

if TYPE_CHECKING:
    from ttsvar_ray.cluster.driver import Driver
    from ttsvar_ray.cluster.in_process import InProcess
    from ttsvar_ray.job.runnable import JobParts

logger = logging.getLogger(__name__)


def check_job(
    config: JobConfig,
    *,
    tell: Callable[[Fact], None] = lambda fact: None,
    force_new: bool = False,
    extend: bool = False,
) -> None:
    """Look at a job and tell what is found; nothing is started and nothing written.

    Raises:
        TtsVarError: what keeps the job from running, as in `run_job`.
    """
    with prepared(
        config,
        tell=tell,
        force_new=force_new,
        extend=extend,
        submitted=is_submitted_job(),
        connected=is_connected(),
    ):
        pass


def run_job(
    config: JobConfig,
    *,
    progress: Callable[[JobProgress], None] = lambda state: None,
    tell: Callable[[Fact], None] = lambda fact: None,
    parts: JobParts | None = None,
    retry_failed: bool = False,
    force_new: bool = False,
    extend: bool = False,
    log_file: Path | None = None,
    on_part: Callable[[str, str], None] = lambda root, file: None,
) -> JobSummary:
    """Run a job, or go on with it.

    Everything that can be wrong with settings, prompts and output folder is found before Ray starts.

    Args:
        progress: called about once a second with the state of the run.
        tell: told what is known of the job before it starts, each fact as soon as it is.
        parts: another plan and engine than the settings name (own models, rewards or extractors); the
            settings still name the output, the cluster, and what `run.json` records.
        retry_failed: also run the prompts again that were given up in earlier sessions.
        force_new: if the output folder holds something else, use a numbered one beside it.
        extend: if it holds a run of the first of these prompts, add the others to that run.
        log_file: of this session; None is `OUTPUT/run.log`.
        on_part: called with the output folder and the file of each part that this session commits (paths, or
            URIs without credentials); it must return at once.

    Raises:
        ConfigurationError, CheckpointError, CannotStartError: settings that cannot be run.
        InputError: prompts that cannot be used.
        OutputError: an output folder that cannot be continued, or has no room.
        StorageError: a path or URI that cannot be opened, a storage that fails.
        ClusterConnectionError: no cluster at the address.
        InterruptedRunError: asked to stop; whole parts are committed and the same command goes on.
        RunFailedError: the cluster cannot finish the run.
        LostRowsError: in the end a prompt has neither images nor a dead letter, or both.
    """
    started = time.monotonic()
    submitted = is_submitted_job()
    with (
        RunRecord(log_file=log_file) as record,
        ended_by_signals(),
        prepared(
            config,
            tell=tell,
            parts=parts,
            force_new=force_new,
            extend=extend,
            submitted=submitted,
            connected=is_connected(),
        ) as job,
    ):
        root = job.layout.root
        is_relative = not is_uri(config.output.path) and not Path(config.output.path).is_absolute()
        if is_relative and submitted:
            logger.warning(
                "output.path %s is relative; under ray job submit it is %s", config.output.path, root
            )
        with OutputLock(job.layout) as lock, contextlib.ExitStack() as while_locked:
            layout = lock.layout
            has_trace = bool(job.parts.plan.selections)
            manifest = dataclasses.replace(job.manifest, plan=job.plan_record(read_manifest(layout)))
            begun = open_output(layout, manifest, has_trace=has_trace)
            warn_of_other_kernels(begun, job.manifest)
            while_locked.enter_context(record.session(layout))
            if job.scan.bad_lines and job.shard.index == 0:
                write_lines(layout.bad_lines_file, (bad.to_json() for bad in bad_lines(job.source)))
            committed = committed_chunks(layout)
            given_up = failed_rows(layout, committed)
            rows_to_run = given_up if retry_failed else {}
            for chunk, added in rows_added(layout, begun, committed).items():
                rows_to_run[chunk] = (*rows_to_run.get(chunk, ()), *added)
            kept = partial_rows(layout, committed)
            ledger = job.ledger(committed, rows_to_run, kept)
            if not ledger.chunks:
                logger.warning("shard %s has no part: there are fewer parts than shards", job.shard)

            def observe(state: JobProgress) -> None:
                record.observe(state)
                progress(state)

            retried = sum(len(rows) for rows in rows_to_run.values())
            resumed = sum(len(ledger.rows(chunk)) for chunk in committed if chunk in ledger.chunks)
            resumed += sum(map(len, kept.values()))
            stats = RunStats(
                prompts_total=sum(len(ledger.rows(chunk)) for chunk in ledger.chunks),
                prompts_resumed=resumed - retried,
            )
            if not ledger.is_done:
                job.parts.fetch()
                session = _session_of(job, tell)(
                    config=job.config,
                    parts=job.parts,
                    layout=layout,
                    lock=lock,
                    ledger=ledger,
                    progress=observe,
                    sessions=SessionLog(layout),
                    context=partial(
                        RowContext,
                        strategy=job.parts.plan.strategy,
                        seed=config.seed,
                        carried=carried_columns(job.scan.column_types),
                        bits=config.output.bits,
                        rewritten=config.prompts.rewrite is not None,
                        rounds=job.parts.plan.rounds.stop_at is not None,
                        image_costs=job.image_costs(),
                        plan=begun.plan,
                    ),
                    stats=stats,
                    on_part=lambda chunk: on_part(str(layout.root), str(layout.data_part(chunk))),
                )
                try:
                    session.run()
                finally:
                    with contextlib.suppress(LostLockError):
                        session.note_spent()
            return stats.summary(layout, ledger, begun, seconds=time.monotonic() - started)


def _session_of(job: PreparedJob, tell: Callable[[Fact], None]) -> Callable[..., Driver | InProcess]:
    """Return what runs a job; only one of the two imports Ray."""
    if job.in_process:
        from ttsvar_ray.cluster.in_process import InProcess

        assert job.device is not None
        return partial(InProcess, device=job.device)

    # What a cluster's devices take is known when it is connected.
    def tell_device(device: Device) -> None:
        if job.device is None:
            tell(job.time_on(device))

    from ttsvar_ray.cluster.driver import Driver

    return partial(Driver, tell_device=tell_device)


def warn_of_other_kernels(begun: RunManifest, now: RunManifest) -> None:
    """Say so where a run is continued on a CPU that may round otherwise than the one that began it."""
    kernels = [(one.cpu_kernels, f"engine.threads {one.config['engine']['threads']}") for one in (begun, now)]
    if begun.cpu_kernels and kernels[0] != kernels[1]:
        logger.warning(
            "this run was begun with the CPU kernels of %s and goes on with those of %s: prompts that run on "
            "a CPU may get other images than they would have got there; what is finished stays as it is",
            *map(", ".join, kernels),
        )
