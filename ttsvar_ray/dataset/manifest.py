"""`run.json`: what an output folder is, so that the same command can go on and another one cannot.

What is done is not written here: the parts on disk are the only truth about that.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ttsvar_ray.dataset.accounting import PlanRecord
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.uris import redacted

FORMAT_VERSION = 3

_Value = TypeVar("_Value")


def utc_now() -> str:
    """Return the time as outputs have it: ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """Return the versions of python and of what the output depends on, without importing any of it."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "pyarrow", "ray", "torch", "transformers", "ttsvar-ray"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """What a run generates, from what, with which software.

    Credentials in the URIs of settings and prompts are dropped: the manifest is public.

    Attributes:
        config: every resolved setting, nested as in a job file.
        content: the settings that change what is generated, flat: `{"strategy.n": 2, ...}`.
        config_digest: digest of `content`.
        prompts_path: where the prompts came from.
        prompts_digest, prompt_count, bad_lines: the prompt set.
        rows_per_chunk, chunk_digests: of its chunks, each of which has a part.
        column_types: the caller's columns and their types in words, fixed for all parts.
        seed: the run seed.
        created: when the run was started first, ISO 8601, UTC.
        versions: of this package and what it computes with.
        extended: how many prompts the set had before each time that others were added at its end.
        cpu_kernels: what decides how the machine that began the run rounds on a CPU; "" if unknown.
        plan: what is done to each prompt, and what it costs; None where nobody said.
    """

    config: Mapping[str, Any]
    content: Mapping[str, Any]
    config_digest: str
    prompts_path: str
    prompts_digest: str
    prompt_count: int
    bad_lines: int
    rows_per_chunk: int
    chunk_digests: tuple[str, ...]
    column_types: Mapping[str, str]
    seed: int
    created: str = field(default_factory=utc_now)
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    cpu_kernels: str = ""
    extended: tuple[int, ...] = ()
    plan: PlanRecord | None = None

    def __post_init__(self) -> None:
        for name in ("config", "content", "prompts_path"):
            object.__setattr__(self, name, redacted(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as `run.json` holds it."""
        return {
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "seed": self.seed,
            "config_digest": self.config_digest,
            "config": dict(self.config),
            "content": dict(self.content),
            "prompts": {
                "path": self.prompts_path,
                "digest": self.prompts_digest,
                "count": self.prompt_count,
                "bad_lines": self.bad_lines,
                "extended": list(self.extended),
                "columns": dict(self.column_types),
                # One line, for millions of prompts have thousands of chunks.
                "chunks": {"rows": self.rows_per_chunk, "digests": " ".join(self.chunk_digests)},
            },
            "versions": dict(self.versions),
            "cpu_kernels": self.cpu_kernels,
            "plan": None if self.plan is None else self.plan.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """Return the manifest that `to_json` wrote; KeyError, TypeError or ValueError if it is none."""
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {data['format_version']}")
        prompts = _of(dict, data, "prompts")
        chunks = _of(dict, prompts, "chunks")
        count, rows = _of(int, prompts, "count"), _of(int, chunks, "rows")
        digests = tuple(_of(str, chunks, "digests").split())
        if count < 1 or rows < 1 or len(digests) != -(-count // rows):
            raise ValueError(f"expected {count} prompts in chunks of {rows}, got {len(digests)} chunks")
        return cls(
            config=_of(dict, data, "config"),
            content=_of(dict, data, "content"),
            config_digest=_of(str, data, "config_digest"),
            prompts_path=prompts["path"],
            prompts_digest=_of(str, prompts, "digest"),
            prompt_count=count,
            bad_lines=_of(int, prompts, "bad_lines"),
            rows_per_chunk=rows,
            chunk_digests=digests,
            column_types=_of(dict, prompts, "columns"),
            seed=_of(int, data, "seed"),
            created=_of(str, data, "created"),
            versions=_of(dict, data, "versions"),
            cpu_kernels=str(data.get("cpu_kernels", "")),
            extended=tuple(map(int, prompts.get("extended", ()))),
            plan=None if data.get("plan") is None else PlanRecord.from_json(_of(dict, data, "plan")),
        )


def _of(kind: type[_Value], values: Mapping[str, Any], name: str) -> _Value:
    """Return a value that must be of a kind, or raise TypeError."""
    value = values[name]
    if type(value) is not kind:  # A truth value is no number here.
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def read_manifest(layout: OutputLayout) -> RunManifest | None:
    """Return the manifest of an output folder, or None if it has none.

    Raises:
        OutputError: there is one, and it cannot be read.
    """
    try:
        text = layout.run_file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return RunManifest.from_json(json.loads(text))
    except json.JSONDecodeError as error:
        advice = "put it back from a copy, or from a folder in which the same command begins a new run"
        raise OutputError(f"{layout.run_file}: damaged, it is no JSON ({error}); {advice}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{layout.run_file}: not a manifest this version can read ({error}); choose another output folder"
        ) from None


def read_run(output: str | Path | OutputLayout) -> tuple[OutputLayout, RunManifest]:
    """Return where a run wrote, and what it is.

    Raises:
        OutputError: there is no run, or none that this version can read.
    """
    layout = output if isinstance(output, OutputLayout) else OutputLayout(output)
    manifest = read_manifest(layout)
    if manifest is None:
        shards = layout.shards()
        more = f", but {len(shards)} shards: name one, or put them together first" if shards else ""
        raise OutputError(f"{layout.root}: expected the output of a run, found no run.json{more}")
    return layout, manifest
