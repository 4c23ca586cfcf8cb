"""What a lock must do, whatever holds it; who may take it is decided in `lock`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLock:
    """A lock that is there.

    Attributes:
        owner: who holds it, as far as it can be read.
        silence_s: seconds since its last sign of life, by the clock of the storage; 0 if that is not known.
        beat: changes with every sign of life.
        version: names this state of the lock for `claim`.
    """

    owner: Mapping[str, Any]
    silence_s: float
    beat: Any
    version: Any


class LockFile(Protocol):
    """A lock in one storage."""

    def read(self) -> FoundLock | None:
        """Return the lock that is there, whoever holds it."""
        ...

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Take a lock that is free (None) or as it was found; False if somebody else was first."""
        ...

    def beat(self) -> bool:
        """Give a sign of life; False if the lock is another's now."""
        ...

    def release(self) -> None:
        """Remove the lock, if it is still held."""
        ...


def owner_of(text: bytes | str) -> dict[str, Any]:
    """Return the owner in a lock; an unreadable one (torn by a crash) has an unknown owner."""
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def to_text(owner: Mapping[str, Any], token: str) -> str:
    """Return the content of a lock."""
    return json.dumps({**owner, "token": token}) + "\n"
