"""How a run stands, read from its output folder alone: from any machine that sees it."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.dataset.contents import read_cost, rows_added
from ttsvar_ray.dataset.dead_letters import count_lines
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import read_manifest
from ttsvar_ray.errors import OutputError, noting
from ttsvar_ray.results import RunCost
from ttsvar_ray.storage.location import Location

SILENT_SECONDS = 120.0
"""Without a sign of life after which a running session is taken for dead: it writes one every ten seconds,
and to an object store every thirty."""

_STATES = ("starting", "running", "done", "stopped", "failed")
"""What a session writes of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run, or one shard of it.

    Attributes:
        state: "running", "done", "stopped", "failed", "silent" (it should run, and says nothing), or
            "unknown" where no session wrote how far it came.
        prompts_total, prompts_done: of the whole run; prompts that are done but in no part yet are lost where
            a session dies.
        failed: of those that are done, given up and so without an image.
        parts, parts_total: committed, and of the whole run.
        images_per_second: of the last session; None before its first image.
        seconds_left: at that speed; None where that is not known, or nothing runs.
        silent_seconds: since the last sign of life; None without any.
        where: host and process of the last session.
        reason: why it ended, if it did before all was done; of a part that cannot be read, what to do.
        cost: of what is committed; None where the run does not say what its plan is.
        strays: what to say of files in data/ that are no parts of the run.
    """

    root: str
    state: str
    prompts_total: int
    prompts_done: int
    failed: int
    parts: int
    parts_total: int
    images_per_second: float | None = None
    seconds_left: float | None = None
    silent_seconds: float | None = None
    where: str = ""
    reason: str = ""
    cost: RunCost | None = None
    strays: str = ""


def read_status(root: str, *, now: datetime.datetime | None = None) -> list[RunStatus]:
    """Return the status of the run in a folder, or of each of its shards, if they are not put together yet.

    Args:
        root: path or URI of the output folder.
        now: with a time zone; None is this machine's clock.

    Raises:
        OutputError: no run is there.
    """
    layout = OutputLayout(root)
    layouts = [layout] if layout.run_file.is_file() else layout.shards()
    if not layouts:
        raise OutputError(f"{layout.root}: expected an output folder with a run.json, found none")
    moment = now or datetime.datetime.now(datetime.timezone.utc)
    return [_status(each, moment) for each in layouts]


def _status(layout: OutputLayout, now: datetime.datetime) -> RunStatus:
    manifest = read_manifest(layout)
    assert manifest is not None
    each = int(manifest.config["output"]["rows_per_part"])
    shard = manifest.config["cluster"].get("shard") if layout.is_shard else None
    first, step = map(int, shard.split("/")) if shard else (0, 1)
    chunks = range(first, -(-manifest.prompt_count // each), step)
    rows = {chunk: min(each, manifest.prompt_count - chunk * each) for chunk in chunks}
    committed, damaged, added = list[int](), list[str](), 0
    for chunk in rows.keys() & layout.data_parts().keys():
        with noting(damaged, OutputError):
            added += sum(map(len, rows_added(layout, manifest, [chunk]).values()))
            committed.append(chunk)
    total, in_parts = sum(rows.values()), sum(rows[chunk] for chunk in committed) - added
    given_up = sum(count_lines(file) for chunk, file in layout.failed_parts().items() if chunk in committed)
    last = _last_line(layout.progress_file)
    state, silent = "unknown", None
    if last is not None:
        silent = max(0.0, (now - datetime.datetime.fromisoformat(last["time"])).total_seconds())
        state = last["state"]
    if state in ("running", "starting"):
        state = "running" if silent is not None and silent < SILENT_SECONDS else "silent"
    if in_parts == total and state in ("silent", "unknown"):
        state = "done"
    last = last or {}
    reason = last.get("reason", "")
    if in_parts < total and state == "done":
        gone = len(rows) - len(committed) - len(damaged)
        state, reason = "stopped", f"{gone} of its parts are not there any more" if gone else ""
    return RunStatus(
        root=str(layout.root),
        state=state,
        prompts_total=total,
        # What a session that is over had in hand and in no part is gone.
        prompts_done=last.get("prompts_done", in_parts) if state == "running" else in_parts,
        # This session's are in no part until that is whole.
        failed=max(given_up, last.get("failed", 0) if state == "running" else 0),
        parts=len(committed),
        parts_total=len(rows),
        images_per_second=last.get("images_per_second"),
        seconds_left=last.get("seconds_left") if state == "running" else None,
        silent_seconds=silent,
        where=f"{last['host']}, process {last['pid']}" if "host" in last else "",
        reason="; ".join(damaged) or reason,
        cost=read_cost(layout, manifest),
        strays=layout.strays(rows),
    )


def _last_line(file: Location) -> dict[str, Any] | None:
    """Return the last line of a progress file that can be read; one that is being written is passed over."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            values = json.loads(line)
            time = datetime.datetime.fromisoformat(values["time"])
        except (KeyError, TypeError, ValueError):
            continue
        if values.get("state") in _STATES and time.tzinfo is not None:
            return dict(values)
    return None
