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
from typing import Any

from ttsvar_ray.dataset.card import write_card
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.totals import damaged
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage import redacted
from ttsvar_ray.types import ColumnType

FORMAT_VERSION = 1

_PARQUET_MAGIC = b"PAR1"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _installed_versions() -> dict[str, str]:
    """Return the versions of python and of what the output depends on, without importing any of it."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "pyarrow", "ray", "scikit-learn", "torch", "transformers", "ttsvar-ray"):
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
        column_types: the caller's columns, fixed for all parts.
        seed: the run seed.
        created: when the run was started first, ISO 8601, UTC.
        versions: of this package and what it computes with.
    """

    config: Mapping[str, Any]
    content: Mapping[str, Any]
    config_digest: str
    prompts_path: str
    prompts_digest: str
    prompt_count: int
    bad_lines: int
    column_types: Mapping[str, ColumnType]
    seed: int
    created: str = field(default_factory=_now)
    versions: Mapping[str, str] = field(default_factory=_installed_versions)

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
                "columns": {name: kind.value for name, kind in self.column_types.items()},
            },
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """Return the manifest that `to_json` wrote; KeyError, TypeError or ValueError if it is none."""
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {data['format_version']}")
        prompts = data["prompts"]
        return cls(
            config=data["config"],
            content=data["content"],
            config_digest=data["config_digest"],
            prompts_path=prompts["path"],
            prompts_digest=prompts["digest"],
            prompt_count=prompts["count"],
            bad_lines=prompts["bad_lines"],
            column_types={name: ColumnType(kind) for name, kind in prompts["columns"].items()},
            seed=data["seed"],
            created=data["created"],
            versions=data["versions"],
        )


def read_manifest(layout: OutputLayout) -> RunManifest | None:
    """Return the manifest of an output folder, or None if it has none.

    Raises:
        OutputError: there is one, and it cannot be read.
    """
    try:
        text = layout.run_file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return RunManifest.from_json(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"{layout.run_file}: not a manifest this version can read ({error}); choose another output folder"
        ) from None


def check_output(layout: OutputLayout, manifest: RunManifest) -> RunManifest | None:
    """Say whether a run may write to a folder, changing nothing.

    Returns:
        The manifest of the run that it would continue, or None for a new one.

    Raises:
        OutputError: the folder is another run's, or somebody's other files.
    """
    root = layout.root
    if root.is_file():
        raise OutputError(f"{root}: expected a folder for the output, got a file")
    present = read_manifest(layout)
    if present is not None:
        differences = [*_setting_differences(present, manifest), *_prompt_differences(present, manifest)]
        if differences:
            lines = "\n".join(f"  {line}" for line in differences)
            raise OutputError(
                f"{root}: this folder holds a run with other settings:\n{lines}\n"
                "Choose another --output folder, add --force-new to have a new folder beside this one, or go "
                "back to those settings to continue that run."
            )
        return present
    foreign = [name for name in root.names() if not name.startswith(".")]
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OutputError(
            f"{root}: expected a new or empty folder, or one with a run.json to continue; it holds {shown}"
        )
    return None


def open_output(layout: OutputLayout, manifest: RunManifest) -> RunManifest:
    """Create an output folder, or continue one of the same settings and prompts; needs the lock.

    Returns:
        The manifest on disk: the given one, or the one of the run that is continued.

    Raises:
        OutputError: as `check_output`.
    """
    present = check_output(layout, manifest)
    # First of all files: a folder without it would be refused as somebody's other files after a crash.
    if present is None and not layout.run_file.create_text(json.dumps(manifest.to_json(), indent=2) + "\n"):
        present = check_output(layout, manifest)
    for folder in (layout.data_folder, layout.trace_folder, layout.failed_folder):
        folder.make_folder()
        folder.remove_leftovers()
    layout.root.remove_leftovers()
    if not layout.card_file.is_file():
        write_card(layout.card_file)
    return manifest if present is None else present


def committed_chunks(layout: OutputLayout) -> frozenset[int]:
    """Return the chunks whose parts are there.

    Raises:
        OutputError: a part is cut short, for example by an interrupted copy of the folder.
    """
    parts = layout.data_parts()
    for part in parts.values():
        # An object store has no halves of objects, and asking for each end would take it minutes.
        if (path := part.local_path) is not None:
            _check_end(path)
    return frozenset(parts)


def _check_end(path: Path) -> None:
    """Raise `OutputError` unless a file ends as Parquet does: whatever is cut short does not."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - len(_PARQUET_MAGIC), 0))
        end = file.read()
    if end != _PARQUET_MAGIC:
        raise damaged(path, f"it does not end with {_PARQUET_MAGIC.decode()}")


def _setting_differences(present: RunManifest, wanted: RunManifest) -> list[str]:
    if present.config_digest == wanted.config_digest:
        return []
    keys = list(dict.fromkeys([*present.content, *wanted.content]))
    return [
        f"{key}: {_word(present.content, key)} in the folder, {_word(wanted.content, key)} now"
        for key in keys
        if _word(present.content, key) != _word(wanted.content, key)
    ]


def _prompt_differences(present: RunManifest, wanted: RunManifest) -> list[str]:
    if present.prompts_digest == wanted.prompts_digest:
        return []
    return [f"prompts: {_prompt_set(present)} in the folder, {_prompt_set(wanted)} now"]


def _prompt_set(manifest: RunManifest) -> str:
    digest = manifest.prompts_digest[:12]
    return f"{manifest.prompt_count} of {manifest.prompts_path} (digest {digest})"


def _word(content: Mapping[str, Any], key: str) -> str:
    return json.dumps(content[key]) if key in content else "absent"
