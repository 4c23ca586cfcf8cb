"""`sessions.jsonl`: with which software and on which devices each session of a run computed.

Beside `run.json`, which is written once and then only compared: a file that is replaced may be away for a
moment in some storages, and without `run.json` an output is nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import installed_versions, utc_now
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.location import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session.

    Attributes:
        started: when, ISO 8601, UTC.
        versions: of this package and what it computes with.
        devices: of the workers that were up, in the order in which the first of each came.
        device_seconds: how long they were up, all together, as known when a part was last committed or the
            session ended.
    """

    started: str
    versions: Mapping[str, str]
    devices: tuple[str, ...] = ()
    device_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as its line holds it."""
        return {
            "started": self.started,
            "versions": dict(self.versions),
            "devices": list(self.devices),
            "device_seconds": round(self.device_seconds, 3),
        }


class SessionLog:
    """The sessions of an output folder, of which the last is this one; needs the lock.

    A session of which no worker was ever up has made nothing, and is not written down.
    """

    def __init__(self, layout: OutputLayout, *, versions: Mapping[str, str] | None = None) -> None:
        """Read the earlier ones.

        Args:
            versions: of this session; None asks this process.

        Raises:
            OutputError: a line is no session.
        """
        self._file = layout.sessions_file
        self._earlier = read_sessions(layout)
        self._now = Session(
            started=utc_now(), versions=installed_versions() if versions is None else versions
        )

    def add_device(self, device: str) -> list[str]:
        """Take in the device of a worker that is up, and write it down if it is new.

        Returns:
            What a person should know: that software or device are not those of the session before.
        """
        if device in self._now.devices:
            return []
        changes = self._changes(device)
        self._now = replace(self._now, devices=(*self._now.devices, device))
        _write(self._file, [*self._earlier, self._now])
        return changes

    def spent(self, device_seconds: float) -> None:
        """Write down how long the workers of this session have been up, all together."""
        if self._now.devices:
            self._now = replace(self._now, device_seconds=device_seconds)
            _write(self._file, [*self._earlier, self._now])

    def _changes(self, device: str) -> list[str]:
        advice = (
            "images from here on may be others than they would have been; what is finished stays as it is"
        )
        changes = []
        if self._now.devices:
            changes.append(
                f"workers of this session have {' and '.join([*self._now.devices, device])}; {advice}"
            )
        elif self._earlier:
            before = self._earlier[-1]
            found = [
                f"{name} {before.versions.get(name, 'absent')}, now {self._now.versions.get(name, 'absent')}"
                for name in dict.fromkeys([*before.versions, *self._now.versions])
                if before.versions.get(name) != self._now.versions.get(name)
            ]
            if device not in before.devices:
                found.append(f"device {', '.join(before.devices)}, now {device}")
            if found:
                changes.append(f"the session before had {'; '.join(found)}; {advice}")
        return changes


def read_sessions(layout: OutputLayout) -> list[Session]:
    """Return the sessions of an output folder; none if there is no such file.

    Raises:
        OutputError: a line is no session.
    """
    try:
        lines = layout.sessions_file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [
        _session(line, f"{layout.sessions_file}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _session(line: bytes, where: str) -> Session:
    try:
        data = json.loads(line)
        return Session(
            started=str(data["started"]),
            versions={str(name): str(version) for name, version in data["versions"].items()},
            devices=tuple(str(device) for device in data["devices"]),
            device_seconds=float(data.get("device_seconds", 0.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{where} is no session ({type(error).__name__}: {error}); delete that line"
        ) from None


def _write(file: Location, sessions: Sequence[Session]) -> None:
    file.write_text("".join(json.dumps(session.to_json()) + "\n" for session in sessions))
