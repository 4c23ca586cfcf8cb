"""One line of what was found."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Mark(str, enum.Enum):
    """How a finding stands."""

    OK = "ok"
    WARN = "warn"
    """Works, but somebody should know."""
    MISSING = "missing"
    """Not here; only what needs it cannot run."""
    BROKEN = "broken"
    """Keeps even the built-in model from running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: group of findings, such as "weights".
        name: of the thing.
        mark: how it stands.
        text: what was found, one line.
        command: what to run where something is missing; may be of several lines.
    """

    area: str
    name: str
    mark: Mark
    text: str
    command: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return plain values."""
        return {
            "area": self.area,
            "name": self.name,
            "mark": self.mark.value,
            "text": self.text,
            "command": self.command,
        }


Check = Callable[[], list[Finding]]


def run_check(area: str, check: Check, *, otherwise: Mark) -> list[Finding]:
    """Run one check; what goes wrong inside it is a finding, not the end of the others.

    Args:
        area: of its findings.
        check: what to run.
        otherwise: how a check that cannot be made stands.
    """
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor reports whatever it meets
        return [Finding(area=area, name=area, mark=otherwise, text=f"{type(error).__name__}: {error}")]
