"""An output folder is a new run's, or goes on with the same run, or is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from ttsvar_ray.dataset.card import card_text
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.location import Location

logger = logging.getLogger(__name__)

_MOST_NEIGHBOURS = 999


def check_output(layout: OutputLayout, manifest: RunManifest) -> RunManifest | None:
    """Say whether a run may write to a folder, changing nothing.

    A folder without a committed part, or something kept of one, is owned by nobody: settings that never made
    an image bind no one.

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
        if differences and (layout.data_parts() or layout.partial_parts()):
            raise _another_run(root, differences)
        return None if differences else present
    if foreign := [name for name in root.names() if not name.startswith(".")]:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise OutputError(
            f"{root}: expected a new or empty folder, or one with a run.json to continue; it holds {shown}"
        )
    return None


def open_output(layout: OutputLayout, manifest: RunManifest, *, has_trace: bool = True) -> RunManifest:
    """Create an output folder, or continue one of the same settings and prompts; needs the lock.

    Args:
        has_trace: whether searches select anything: `datasets` cannot open a table that has no row in any
            part, so that the card must not name it.

    Returns:
        The manifest on disk: the given one, or the one of the run that is continued.

    Raises:
        OutputError: as `check_output`.
    """
    was_there = layout.run_file.is_file()
    present, text = check_output(layout, manifest), json.dumps(manifest.to_json(), indent=2) + "\n"
    if present is not None and present.prompts_digest != manifest.prompts_digest:
        layout.run_file.write_text(text)
        present = manifest
    if present is None and was_there:
        _take_over(layout, text)
    # First of all files: a folder without it would be refused as somebody's other files after a crash.
    elif present is None and not layout.run_file.create_text(text):
        present = _begun_meanwhile(layout, manifest)
    for folder in layout.folders:
        folder.make_folder()
        folder.remove_leftovers()
    layout.root.remove_leftovers()
    if not layout.card_file.is_file():
        layout.card_file.write_text(card_text(manifest if present is None else present, has_trace=has_trace))
    return manifest if present is None else present


def _another_run(root: Location, differences: Sequence[str]) -> OutputError:
    lines = "\n".join(f"  {line}" for line in differences)
    return OutputError(
        f"{root}: this folder holds a run with other settings:\n{lines}\n"
        "Choose another --output folder, add --force-new to have a new folder beside this one, or go "
        "back to those settings to continue that run."
    )


def _begun_meanwhile(layout: OutputLayout, manifest: RunManifest) -> RunManifest:
    """Return the manifest of the same run that another session just began; any other is refused."""
    present = read_manifest(layout)
    assert present is not None, "a file that could not be made is there"
    if differences := [*_setting_differences(present, manifest), *_prompt_differences(present, manifest)]:
        raise _another_run(layout.root, differences)
    return present


def _take_over(layout: OutputLayout, run_text: str) -> None:
    """Make a folder that is owned by nobody this run's: what another one left beside its parts goes."""
    for folder in layout.folders:
        for name in folder.names() if folder != layout.data_folder else ():
            (folder / name).delete()
    if layout.sessions_file.is_file():
        layout.sessions_file.delete()
    layout.run_file.write_text(run_text)


def is_continued_by(present: RunManifest, wanted: RunManifest) -> bool:
    """Whether a run is another one, or the same to which prompts may have been added since."""
    has_prompts = present.prompts_digest == wanted.prompts_digest or present.prompt_count in wanted.extended
    return present.config_digest == wanted.config_digest and has_prompts


def fresh_output(layout: OutputLayout, manifest: RunManifest) -> OutputLayout:
    """Return the first of OUTPUT, OUTPUT-2, OUTPUT-3, ... that this run may write to; nothing is deleted.

    That is a folder that is new or empty, or holds this very run, which it then continues: so the same
    command goes on after an interruption.

    Raises:
        OutputError: there is none in reach.
    """
    for number in range(1, _MOST_NEIGHBOURS + 1):
        candidate = layout if number == 1 else OutputLayout(layout.root.neighbour(f"-{number}"))
        if _is_free(candidate, manifest):
            if number > 1:
                logger.warning(
                    "output %s holds something else; this run writes to %s", layout.root, candidate.root
                )
            return candidate
    raise OutputError(
        f"{layout.root}: expected a free folder among it and {_MOST_NEIGHBOURS - 1} numbered ones beside it, "
        "found none; choose another --output folder"
    )


def _is_free(layout: OutputLayout, manifest: RunManifest) -> bool:
    try:
        continued = check_output(layout, manifest)
    except OutputError:
        return False
    # Another run may just have begun there.
    return continued is not None or not (layout.run_file.is_file() and layout.lock_file.is_file())


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
    if present.prompts_digest == wanted.prompts_digest or wanted.extended == (
        *present.extended,
        present.prompt_count,
    ):
        return []
    where = _first_change(present, wanted)
    if wanted.prompt_count > present.prompt_count:
        where += "; --extend makes those that were added at the end"
    return [f"prompts: {_prompt_set(present)} in the folder, {_prompt_set(wanted)} now{where}"]


def _first_change(present: RunManifest, wanted: RunManifest) -> str:
    """Return which chunk of prompts is the first that differs; nothing where chunks do not compare."""
    size, digests = present.rows_per_chunk, present.chunk_digests
    if wanted.rows_per_chunk != size or not digests:
        return ""
    pairs = zip(digests, wanted.chunk_digests, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if same == len(digests):
        return f"; the first {present.prompt_count} are the same, others were added at the end"
    first, last = same * size, min((same + 1) * size, present.prompt_count)
    is_partial = last < first + size and wanted.prompt_count > present.prompt_count
    added = ", or others were added at the end" * is_partial
    return f"; the first {first} are the same, a change is in prompts {first + 1} to {last}{added}"


def _prompt_set(manifest: RunManifest) -> str:
    digest = manifest.prompts_digest[:12]
    return f"{manifest.prompt_count} of {manifest.prompts_path} (digest {digest})"


def _word(content: Mapping[str, Any], key: str) -> str:
    return json.dumps(content[key]) if key in content else "absent"
