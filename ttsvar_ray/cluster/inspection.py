"""What can be said about Ray without starting or joining a cluster."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import ray

TOKEN_FILE = Path("~/.ray/auth_token")
ANSWER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayFacts:
    """Ray on this machine, as its environment describes it.

    Attributes:
        version: of the installed package.
        address: of `RAY_ADDRESS`; None where it is not set.
        problem: why nothing answers there; None where something does, or where there is nothing to ask.
        auth_mode: `RAY_AUTH_MODE`; None where it is not set.
        has_token_file: whether Ray would turn token authentication on by itself.
    """

    version: str
    address: str | None
    problem: str | None
    auth_mode: str | None
    has_token_file: bool


def inspect_ray() -> RayFacts:
    """Read the environment, and knock at the address; takes two seconds at most."""
    address = os.environ.get("RAY_ADDRESS") or None
    return RayFacts(
        version=ray.__version__,
        address=address,
        problem=None if address is None else _knock(address),
        auth_mode=os.environ.get("RAY_AUTH_MODE") or None,
        has_token_file="RAY_AUTH_TOKEN" in os.environ or TOKEN_FILE.expanduser().is_file(),
    )


def _knock(address: str) -> str | None:
    """Return why nothing listens at host:port; None where something does, or for "auto" and "local"."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return None
