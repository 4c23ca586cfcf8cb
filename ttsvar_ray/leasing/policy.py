"""Which cell is handed how many prompts, and when: the driver's policy over the ledger, pure.

    a cell asks        -> prompts, while those that are out stay within what the driver may hold
    nothing is left    -> it is told so, and asks no more
    prompts come back  -> to cells that ask, or else to those that have little left to do
    a cell is idle     -> prompts that another one has had for far longer than usual, too

Without time it does not decide: callers say what time it is, in seconds from any origin.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ttsvar_ray.leasing.ledger import Lease, LeaseLedger

OPEN_CHUNKS = 4
"""Chunks' worth of outcomes that may wait for their part before leasing waits for parts to be committed."""

OPEN_ROUNDS = 2
"""The same, in what the cells have: behind a prompt that takes this many times longer than others, and holds
up its part, the others go on. Cells ask for no more than their workers need, so this bounds memory, too."""

STRAGGLER_FACTOR = 3.0
STRAGGLER_FLOOR_SECONDS = 30.0
"""A prompt straggles when it has been out this many times longer than prompts usually are, and this long."""

EMA_WEIGHT = 0.05
"""Weight of the newest prompt in the mean time that a prompt is out."""


@dataclass(slots=True)
class _Cell:
    """What the policy knows of a cell.

    Attributes:
        asked: most prompts it ever asked for at once.
        was_told_last: whether it was told that nothing is left, and asks no more.
    """

    asked: int = 1
    workers: int = 0
    was_told_last: bool = False


class LeasePolicy:
    """Answers the cells' requests for prompts."""

    def __init__(self, ledger: LeaseLedger, *, rows_per_chunk: int) -> None:
        """Start without cells.

        Args:
            ledger: what it leases from; it alone leases.
            rows_per_chunk: prompts in one chunk.
        """
        self._ledger = ledger
        self._rows_per_chunk = rows_per_chunk
        self._cells: dict[str, _Cell] = {}
        self._requests: deque[tuple[str, int]] = deque()
        self._usual_seconds: float | None = None

    @property
    def limit(self) -> int:
        """Outcomes that may wait for their part: enough to keep going past a slow chunk, not all."""
        return max(OPEN_CHUNKS * self._rows_per_chunk, OPEN_ROUNDS * self._ledger.num_out)

    @property
    def straggler_after_seconds(self) -> float | None:
        """Seconds after which a prompt that is out straggles; None before anything was finished."""
        return (
            None
            if self._usual_seconds is None
            else max(STRAGGLER_FLOOR_SECONDS, STRAGGLER_FACTOR * self._usual_seconds)
        )

    def ask(self, cell_id: str, count: int) -> None:
        """Take in a cell's request for up to `count` prompts; `hand_out` answers it, maybe much later."""
        cell = self._cells.setdefault(cell_id, _Cell())
        cell.asked = max(cell.asked, count)
        self._requests.append((cell_id, count))

    def set_workers(self, cell_id: str, workers: int) -> None:
        """Take in how many workers a cell has: one without any is handed nothing unasked."""
        self._cells.setdefault(cell_id, _Cell()).workers = workers

    def delivered(self, seconds: float) -> None:
        """Take in how long a prompt was out before its outcome came."""
        usual = seconds if self._usual_seconds is None else self._usual_seconds
        self._usual_seconds = usual + EMA_WEIGHT * (seconds - usual)

    def lose_cell(self, cell_id: str) -> int:
        """Forget a cell that is gone; return how many prompts of its came back."""
        self._cells.pop(cell_id, None)
        self._requests = deque(request for request in self._requests if request[0] != cell_id)
        return self._ledger.lose_cell(cell_id)

    def hand_out(self, now: float) -> list[tuple[str, Lease]]:
        """Return what to hand to which cell now, in order."""
        leases = self._answers(now)
        for cell_id, cell in self._cells.items():
            if cell.was_told_last and cell.workers:
                lease = self._unasked(cell_id, cell, now)
                if lease is not None:
                    cell.was_told_last = lease.is_last
                    leases.append((cell_id, lease))
        return leases

    def _answers(self, now: float) -> list[tuple[str, Lease]]:
        leases: list[tuple[str, Lease]] = []
        while self._requests:
            cell_id, asked = self._requests[0]
            # What comes back was counted when it was leased first.
            allowed = max(0, self.limit - self._ledger.num_over) + self._ledger.num_queued
            if allowed == 0 and not self._ledger.is_exhausted:
                break
            self._requests.popleft()
            lease = self._ledger.lease(cell_id, min(asked, allowed), now=now)
            self._cells[cell_id].was_told_last = lease.is_last
            leases.append((cell_id, lease))
        return leases

    def _unasked(self, cell_id: str, cell: _Cell, now: float) -> Lease | None:
        held = self._ledger.num_held(cell_id)
        if not self._ledger.is_exhausted:
            if 2 * held >= cell.asked:
                return None
            return self._ledger.lease(cell_id, min(cell.asked - held, self._ledger.num_queued), now=now)
        out_for = self.straggler_after_seconds
        if held or out_for is None:
            return None
        prompts = self._ledger.lease_again(cell_id, cell.asked, now=now, out_for=out_for)
        return Lease(prompts=prompts, is_last=True) if prompts else None
