"""Seeded mischief on a Ray cluster of this machine: kill a process, or a whole node, and see what is left.

Victims are found among the descendants of the cluster's own raylets, so that other clusters on the machine
are safe. A kill is SIGKILL: nothing in the victim runs after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.support.chaos_driver import TO_BE_CONTINUED

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("worker", "coordinator", "sink", "driver", "node")
CLASSES = {"worker": "SegmentWorker", "coordinator": "Cell", "sink": "Sink"}
"""Class names as Ray shows them in a process's title: `ray::Cell.lease`, `ray::NAME:Cell.__init__`."""


def write_prompts(path: Path, count: int) -> Path:
    """Write a prompt file and return it."""
    lines = [json.dumps({"prompt": f"a red circle number {i}", "tag": i}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def data_bytes(output: Path) -> dict[str, bytes]:
    """Return every part of an output folder; hidden files, which readers skip, are left out."""
    return {path.name: path.read_bytes() for path in sorted((output / "data").glob("part-*"))}


@dataclass(slots=True, kw_only=True)
class Driver:
    """The job's process, started again until it is done."""

    arguments: Sequence[str]
    log: Path
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin the next session with the very same command."""
        self.starts += 1
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.chaos_driver", *self.arguments]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, cwd=ROOT, env=environment, start_new_session=True
            )

    def go_on(self) -> bool:
        """Start it again where it ended early; return whether the job is done.

        Raises:
            AssertionError: it ended with an error that the same command would not mend.
        """
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        if code == 0:
            return True
        assert code in (TO_BE_CONTINUED, -signal.SIGKILL), (
            f"session {self.starts} ended with {code}:\n{self.log.read_text()[-4000:]}"
        )
        self.start()
        return False

    def stop(self) -> None:
        """End whatever runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True, kw_only=True)
class Chaos:
    """Kills what its seed says, and keeps count.

    Attributes:
        cluster: where.
        driver: the job; "driver" kills this process.
        kinds: what may be killed.
        node_options: with which a killed node comes back; None: no node is killed.
    """

    cluster: Cluster
    driver: Driver
    seed: int
    kinds: Sequence[str] = KINDS
    node_options: dict[str, Any] | None = None
    kills: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def pause(self, least_s: float, most_s: float) -> None:
        """Wait a random time."""
        time.sleep(self._random.uniform(least_s, most_s))

    def strike(self) -> None:
        """Kill one thing; nothing where no victim of the drawn kind is up just now."""
        kind = self._random.choice(self.kinds)
        victim = self._kill_node() if kind == "node" else self._kill_process(kind)
        if victim is not None:
            self.kills[kind] += 1
            self.history.append(f"{kind} {victim}")

    def _kill_process(self, kind: str) -> str | None:
        if kind == "driver":
            process = self.driver.process
            if process is None or process.poll() is not None:
                return None
            process.send_signal(signal.SIGKILL)
            process.wait()
            return str(process.pid)
        victims = sorted(self._actors(CLASSES[kind]), key=lambda process: process.pid)
        if not victims:
            return None
        victim = self._random.choice(victims)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        return str(victim.pid)

    def _kill_node(self) -> str | None:
        nodes = list(self.cluster.worker_nodes)
        if self.node_options is None or not nodes:
            return None
        node = self._random.choice(sorted(nodes, key=lambda node: node.node_id))
        name: str = node.node_id
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(wait=False, **self.node_options)
        return name

    def _actors(self, class_name: str) -> Iterator[psutil.Process]:
        for node in self.cluster.list_all_nodes():
            for info in node.all_processes.get("raylet", []):
                with contextlib.suppress(psutil.Error):
                    for process in psutil.Process(info.process.pid).children(recursive=True):
                        with contextlib.suppress(psutil.Error):
                            if _is_actor(" ".join(process.cmdline()), class_name):
                                yield process


def _is_actor(title: str, class_name: str) -> bool:
    """Whether a process title is that of an actor of a class, whatever it is doing."""
    return title.startswith("ray::") and re.search(rf"[:]{class_name}\b", title) is not None


def run_to_the_end(chaos: Chaos, *, strikes: int, least_s: float, most_s: float, limit_s: float) -> None:
    """Strike again and again until the job is done, however often its driver must be started.

    Args:
        chaos: with a driver that was started.
        strikes: most kills; then the job is left alone.
        least_s, most_s: between two strikes.
        limit_s: the job must be done by then.
    """
    deadline = time.monotonic() + limit_s
    while not chaos.driver.go_on():
        assert time.monotonic() < deadline, (
            f"not done after {limit_s:g} s and {chaos.history}:\n{chaos.driver.log.read_text()[-4000:]}"
        )
        chaos.pause(least_s, most_s)
        if sum(chaos.kills.values()) < strikes:
            chaos.strike()
