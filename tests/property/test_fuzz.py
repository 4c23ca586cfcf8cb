"""Files that are changed at random are taken or refused in a sentence; `python -m tests.fuzz` plays more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import TARGETS, play, write_good
from ttsvar_ray.errors import TtsVarError

CASES = 200


def test_changed_files_are_taken_or_refused() -> None:
    findings, ends = play(0, CASES, seconds=30.0)
    assert findings == {}
    # Both must happen often, or the changes would be no test.
    assert min(ends["taken"], ends["refused"]) > CASES / 5, ends


def changed(*path: str | int, to: Any = None) -> Callable[[bytes], bytes]:
    """Return what puts a value into JSON."""

    def change(content: bytes) -> bytes:
        whole = value = json.loads(content)
        for name in path[:-1]:
            value = value[name]
        value[path[-1]] = to
        return json.dumps(whole).encode()

    return change


FOUND: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("run", lambda content: b"\xff" + content),
    ("run", changed("content", to=[[1]])),
    ("run", changed("content", to=5)),
    ("run", changed("prompts", "count", to=2**63)),
    ("run", changed("prompts", "count", to=-1)),
    ("run", changed("prompts", "chunks", "rows", to=0)),
    ("run", changed("prompts", "chunks", "rows", to=True)),
    ("run", changed("versions", to=[])),
    ("model", changed("tokenizer", to={})),
    ("model", changed("scale_schedule", to=[["x", 1]])),
    ("model", changed("sampling", "top_p", to=[])),
    ("model", changed("files", to={"transformer": ["x"]})),
    ("model", lambda content: b"[" * 5000),
    ("part manifest", changed("data", "rows", to=math.inf)),
    ("workload", changed("segments", 0, "tokens", to=math.nan)),
    ("workload", lambda content: b"[" * 5000),
)
"""What was found; the first one of each kind."""


@pytest.mark.parametrize(("name", "change"), FOUND)
def test_what_was_found_is_refused(tmp_path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    write_good(tmp_path)
    (target,) = (each for each in TARGETS if each.name == name)
    file = tmp_path / target.file
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(TtsVarError, match=file.name):
        target.read(tmp_path)
