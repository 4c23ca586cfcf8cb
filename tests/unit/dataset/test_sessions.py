"""Each session that computed is written down, and a change of software or device is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.sessions import SessionLog, read_sessions
from ttsvar_ray.errors import OutputError


def session(layout: OutputLayout, torch: str, *devices: str) -> list[str]:
    log = SessionLog(layout, versions={"python": "3.11", "torch": torch})
    return [change for device in devices for change in log.add_device(device)]


def test_sessions_are_appended_and_changes_are_told(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    assert session(layout, "2.9") == []
    assert not layout.sessions_file.is_file()
    assert session(layout, "2.9", "H100", "H100") == []
    assert session(layout, "2.9", "H100") == []
    (change,) = session(layout, "2.13", "A100")
    assert change.startswith("the session before had torch 2.9, now 2.13; device H100, now A100; images")
    (change,) = session(layout, "2.13", "A100", "H100")
    assert change.startswith("workers of this session have A100 and H100; ")
    assert session(layout, "2.13", "H100") == []
    lines = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [(line["versions"]["torch"], line["devices"]) for line in lines] == [
        ("2.9", ["H100"]),
        ("2.9", ["H100"]),
        ("2.13", ["A100"]),
        ("2.13", ["A100", "H100"]),
        ("2.13", ["H100"]),
    ]
    assert [one.to_json() for one in read_sessions(layout)] == lines


def test_versions_are_those_of_this_process(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    SessionLog(layout).add_device("CPU")
    (only,) = read_sessions(layout)
    assert {"python", "numpy", "torch", "ttsvar-ray"} <= set(only.versions)
    assert only.started.endswith("+00:00")


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"started": 1, "versions": 2, "devices": []}'])
def test_a_line_that_is_no_session_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "sessions.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(OutputError, match=r"sessions\.jsonl: line 2 is no session .*; delete that line"):
        SessionLog(OutputLayout(tmp_path))
