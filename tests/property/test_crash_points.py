"""Runs that are killed at any step of the storage lose nothing and write nothing twice.

A trial is a small job: several runs of it, each with random failures and now and then `--retry-failed`, some
asked to stop, each killed at a random step of what it does to the storage. A step is the moment before or
after a file is flushed, renamed, linked, deleted, moved or uploaded, and before or after the lock is taken or
released: of parts, kept or whole, traces, manifests, dead letters, bad lines, run.json, card and lock.
Then the files of every part are what its manifest says. In the end one run is left alone, and its output must
be that of a job that was never disturbed, byte for byte.

`TTSVAR_CRASHES=100000` runs so many trials on each of three storages; in pieces with
`TTSVAR_CRASHES_FROM=<first seed>`: each piece runs the seeds from there up to `TTSVAR_CRASHES`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.manifests import manifest
from tests.support.plans import tts_var_plan
from ttsvar_ray.cluster.parts import Sink
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.costs.plan_cost import plan_record
from ttsvar_ray.dataset import contents, lock, lock_files
from ttsvar_ray.dataset.contents import committed_chunks, failed_rows, summarise_output
from ttsvar_ray.dataset.dead_letters import write_lines
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.output import check_output, open_output
from ttsvar_ray.dataset.part_manifest import read_part_manifest
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.dataset.writer import ChunkReport, partial_rows
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.prompts import BadLine
from ttsvar_ray.results import (
    FinalImage,
    PromptFailure,
    PromptResult,
    ResultImage,
    SelectionRecord,
)
from ttsvar_ray.storage import location
from ttsvar_ray.storage.location import Location
from ttsvar_ray.types import Prompt

FIRST = int(os.environ.get("TTSVAR_CRASHES_FROM", "0"))
TRIALS = int(os.environ.get("TTSVAR_CRASHES", "334"))

MOST_STEPS = 120
"""About as many as a run of the largest job takes."""

MANIFEST = dataclasses.replace(
    manifest("seed=1", bad_lines=1, column_types={"tag": "int64"}, created="now", versions={}),
    config={},
    content={"seed": 1},
)
CONTEXT = RowContext(
    model="tiny",
    strategy="none",
    seed=1,
    reward_name="none",
    carried=carried_columns({"tag": ColumnType.INT64}),
    plan=plan_record(tts_var_plan(), None, selector_decode="full"),
)


class Killed(BaseException):
    """The process is gone."""


class MovingFileSystem(MemoryFileSystem):
    """A store as sftp and its kind: half an upload can be seen, and no move goes over a file."""

    protocol = "moving"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared by all instances, as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if target in self.store:
            raise OSError(f"{target} exists")
        self.store[target] = self.store.pop(source)


fsspec.register_implementation("moving", MovingFileSystem, clobber=True)


class Process:
    """Counts the steps that a run takes on the storage, and dies at one of them; then it changes nothing.

    Attributes:
        number: which run it is, so that the next one knows that it is dead.
        left: steps until it dies; None lives on.
    """

    def __init__(self) -> None:
        self.number = 0
        self.left: int | None = None
        self.is_dead = False

    def begin(self, dies_after: int | None) -> None:
        self.number += 1
        self.left, self.is_dead = dies_after, False

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.is_dead = self.is_dead or self.left < 0
        if self.is_dead:
            raise Killed

    def around(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def stepwise(*given: Any) -> Any:
            self.step()
            done = change(*given)
            self.step()
            return done

        return stepwise

    def flush(self, path: Path) -> None:
        """Take the place of flushing: what was not flushed when a process dies may be half there."""
        try:
            self.step()
        except Killed:
            if path.suffix == ".tmp" and path.exists():
                os.truncate(path, path.stat().st_size // 2)
            raise

    def upload(self, upload: Callable[[Path, Location], None]) -> Callable[[Path, Location], None]:
        def stepwise(staged: Path, target: Location) -> None:
            try:
                self.step()
            except Killed:
                if target.scheme == "moving":
                    half = staged.read_bytes()[: staged.stat().st_size // 2]
                    target.fsspec.pipe_file(target.path, half)
                raise
            upload(staged, target)
            self.step()

        return stepwise

    def discard(self, temporary: Path) -> None:
        if not self.is_dead:
            temporary.unlink(missing_ok=True)


class OneThread:
    """A pool of threads without threads, which would take most of the time here."""

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    map = staticmethod(map)


class NoThread:
    """A heartbeat that no run here lives long enough for."""

    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self, seconds: float) -> None:
        pass


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    process = Process()
    for name in ("_rename", "_link", "_remove", "_move"):
        monkeypatch.setattr(location, name, process.around(getattr(location, name)))
    monkeypatch.setattr(location, "_flush", process.flush)
    monkeypatch.setattr(location, "_upload", process.upload(location._upload))
    monkeypatch.setattr(location, "_discard", process.discard)
    monkeypatch.setattr(lock_files, "_create", process.around(lock_files._create))
    monkeypatch.setattr(lock_files.LocalLock, "release", process.around(lock_files.LocalLock.release))
    monkeypatch.setattr(lock_files.AdvisoryLock.__init__, "__kwdefaults__", {"settle_s": 0.0})
    monkeypatch.setattr(lock_files, "LOOK_AGAIN_S", ())
    monkeypatch.setattr(contents, "ThreadPoolExecutor", OneThread)
    monkeypatch.setattr(lock, "threading", SimpleNamespace(Event=threading.Event, Thread=NoThread))
    monkeypatch.setattr(lock, "this_process", lambda: {"number": process.number})
    monkeypatch.setattr(lock, "is_alive", lambda owner: owner.get("number") == process.number)
    return process


def make_prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            row=row,
            prompt_id=f"p{row}",
            ordinal=0,
            text=f"number {row}\u2028",
            columns=MappingProxyType({"tag": row}),
        )
        for row in range(count)
    ]


def done(prompt: Prompt) -> PromptResult:
    image = FinalImage.of_bytes(f"image {prompt.row}".encode(), width=1, height=1, image_format="png")
    kept = ResultImage(
        rank=0, image=image, reward=prompt.row, reward_history=(), lineage=(0,), bits=(), member_rewards=()
    )
    trace = (SelectionRecord(prompt_key=prompt.key, scale_index=2, kind="cluster", ancestor_index=(0,)),)
    return PromptResult(prompt=prompt, images=(kept,), trace=trace, attempts=1, seconds=0.1)


def run(
    where: str,
    prompts: list[Prompt],
    rows_per_chunk: int,
    *,
    fails: Callable[[Prompt], bool] = lambda prompt: False,
    retry_failed: bool = False,
    stops_after: int | None = None,
) -> None:
    """Do to an output folder what a job does, with outcomes out of nothing."""
    layout = OutputLayout(where)
    found = dataclasses.replace(
        MANIFEST,
        prompt_count=len(prompts),
        rows_per_chunk=rows_per_chunk,
        chunk_digests=("d",) * -(-len(prompts) // rows_per_chunk),
    )
    check_output(layout, found)
    with OutputLock(layout, heartbeat_s=1e6) as held:
        layout = held.layout
        open_output(layout, found)
        write_lines(layout.bad_lines_file, [BadLine(line=1, reason="blank", excerpt="").to_json()])
        committed = committed_chunks(layout)
        given_up = failed_rows(layout, committed)
        ledger = LeaseLedger(
            prompts,
            prompt_count=len(prompts),
            rows_per_chunk=rows_per_chunk,
            committed=committed,
            rows_to_run=given_up if retry_failed else {},
            kept=partial_rows(layout, committed),
        )
        for device in ("a", "b"):
            SessionLog(layout, versions={"python": "3"}).add_device(device)
        sink = Sink(where, held.token)
        over = 0
        while not ledger.is_done:
            for prompt in ledger.lease("cell", 2, now=0.0).prompts:
                outcome = (
                    PromptFailure(prompt=prompt, attempts=1, errors=("no",))
                    if fails(prompt)
                    else done(prompt)
                )
                if over == stops_after:
                    for chunk in ledger.unfinished():
                        sink.keep(chunk, CONTEXT, 1.0)
                    return
                over += 1
                whole = ledger.add("cell", outcome).whole
                if whole is not None:
                    assert isinstance(sink.write(whole, CONTEXT), ChunkReport)
                    ledger.commit(whole.chunk_index)
        summarise_output(layout, {index: ledger.rows(index) for index in ledger.chunks})


def files(where: str) -> dict[str, bytes]:
    layout = OutputLayout(where)
    folders = {
        "": layout.root,
        "partial/": layout.partial_folder,
        "data/": layout.data_folder,
        "trace/": layout.trace_folder,
    }
    folders["failed/"] = layout.failed_folder
    folders["manifest/"] = layout.manifest_folder
    return {
        f"{prefix}{name}": (folder / name).read_bytes()
        for prefix, folder in folders.items()
        for name in folder.names()
        if prefix or not ((layout.root / name).is_folder() or name == "sessions.jsonl")
    }


def check_manifests(where: str) -> None:
    """Compare the files of each part that is there with its manifest."""
    layout = OutputLayout(where)
    for index, part in layout.data_parts().items():
        found = read_part_manifest(layout.manifest_part(index))
        assert found is not None
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        assert digest in [each.sha256 for each in (found.data, *found.data_before)]
        digest = hashlib.sha256(layout.trace_part(index).read_bytes()).hexdigest()
        assert digest in [each.sha256 for each in (found.trace, *found.trace_before)]


@contextlib.contextmanager
def new_output(kind: str, folder: Path, seed: int) -> Iterator[str]:
    if kind == "local":
        yield str(folder / "out")
        shutil.rmtree(folder / "out", ignore_errors=True)
        return
    yield f"{kind}://out-{seed}/run"
    filesystem = fsspec.filesystem(kind)
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def one_trial(kind: str, folder: Path, seed: int, process: Process, expected: dict[Any, Any]) -> None:
    draw = random.Random(seed)
    prompts, rows_per_chunk = make_prompts(draw.randint(1, 5)), draw.randint(1, 4)
    case = (len(prompts), rows_per_chunk)
    if case not in expected:
        with new_output(kind, folder, seed) as where:
            process.begin(None)
            run(where, prompts, rows_per_chunk)
            expected[case] = files(where)
    with new_output(kind, folder, seed) as where:
        for _ in range(draw.randint(1, 4)):
            rate = draw.choice((0.0, 0.3, 1.0))
            process.begin(draw.randrange(MOST_STEPS))
            with contextlib.suppress(Killed):
                run(
                    where,
                    prompts,
                    rows_per_chunk,
                    fails=lambda prompt, rate=rate: draw.random() < rate,
                    retry_failed=draw.random() < 0.6,
                    stops_after=draw.choice((None, None, 0, 1, 2, 3)),
                )
            process.begin(None)
            for each in OutputLayout(where).folders:
                each.remove_leftovers()
            check_manifests(where)
        process.begin(None)
        run(where, prompts, rows_per_chunk, retry_failed=True)
        assert files(where) == expected[case], f"seed {seed} on {kind}"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["local", "memory", "moving"])
def test_runs_that_are_killed_anywhere_lose_nothing_and_double_nothing(
    kind: str, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - files in memory, in a folder of this process
    folder = memory / f"ttsvar-{os.getpid()}" if memory.is_dir() else tmp_path
    folder.mkdir(exist_ok=True)
    # Uploads are staged there: a folder comes and goes with each.
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    expected: dict[Any, Any] = {}
    try:
        for seed in range(FIRST, TRIALS):
            one_trial(kind, folder, seed, process, expected)
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)
