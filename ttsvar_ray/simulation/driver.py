"""The simulated driver: the real ledger and lease policy, outcomes, and the writer of parts.

cell --requests, outcomes--> driver --prompts--> cell
                               '--whole part--> writer --written--> driver
"""

from __future__ import annotations

from collections.abc import Callable

from ttsvar_ray.coordination.messages import PromptsLeased, PromptsWithdrawn
from ttsvar_ray.leasing.ledger import LeaseLedger, WholeChunk
from ttsvar_ray.leasing.policy import LeasePolicy
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.simulation.cells import CellUpdate, SimulatedCell, World
from ttsvar_ray.types import Prompt

POLL_SECONDS = 1.0
"""Between two looks for stragglers, where nothing else happens."""


class SimulatedDriver:
    """Counts what is finished, and keeps the cells in prompts."""

    def __init__(self, world: World, on_prompt: Callable[[int], None]) -> None:
        """Start with all prompts unread.

        Args:
            on_prompt: told the number of finished prompts after each.
        """
        settings = world.settings
        self.ledger = LeaseLedger(
            (Prompt(row=row, prompt_id=f"{row:x}", ordinal=0, text="") for row in range(settings.prompts)),
            prompt_count=settings.prompts,
            rows_per_chunk=settings.rows_per_part,
            committed=(),
        )
        self._policy = LeasePolicy(self.ledger, rows_per_chunk=settings.rows_per_part)
        self.finished = 0
        self.failed = 0
        self.images = 0
        self.survivors = 0
        self.moved = 0
        self.useful_seconds = 0.0
        self.writing_seconds = 0.0
        self.cells: dict[str, SimulatedCell] = {}
        self._world = world
        self._on_prompt = on_prompt
        self._written_at = 0.0

    @property
    def is_done(self) -> bool:
        """Whether every part is written."""
        return self.ledger.is_done

    def start(self) -> None:
        """Begin to look for stragglers now and then."""
        clock = self._world.clock
        clock.at(clock.now + POLL_SECONDS, self._poll)

    def set_workers(self, cell_id: str, workers: int) -> None:
        """Take in how many workers a cell has."""
        self._policy.set_workers(cell_id, workers)

    def take_in(self, cell_id: str, update: CellUpdate) -> None:
        """Take in a cell's update."""
        for outcome in update.outcomes:
            self._take_in_outcome(cell_id, outcome)
        for count in update.lease_requests:
            self._policy.ask(cell_id, count)
        self._hand_out()

    def _take_in_outcome(self, cell_id: str, outcome: PromptResult | PromptFailure) -> None:
        receipt = self.ledger.add(cell_id, outcome)
        for other in receipt.withdraw_from:
            self._tell(other, PromptsWithdrawn(prompt_keys=(outcome.prompt.key,)))
        if not receipt.is_new:
            return
        if receipt.leased_at is not None:
            self._policy.delivered(self._world.clock.now - receipt.leased_at)
        self.finished += 1
        if isinstance(outcome, PromptResult):
            self.images += len(outcome.images)
            self.useful_seconds += outcome.seconds
            self.moved += sum(record.moved for record in outcome.trace)
            self.survivors += sum(len(record.ancestor_index) for record in outcome.trace)
        else:
            self.failed += 1
        self._on_prompt(self.finished)
        if receipt.whole is not None:
            self._write(receipt.whole)

    def _write(self, chunk: WholeChunk) -> None:
        """Hand a whole part to the writer, which writes one after the other."""
        settings, clock = self._world.settings, self._world.clock
        images = sum(len(result.images) for result in chunk.finished)
        seconds = images * settings.payload.image_bytes / settings.sink_bytes_per_second
        self.writing_seconds += seconds
        self._written_at = max(clock.now, self._written_at) + seconds
        clock.at(self._written_at, self._commit, chunk.chunk_index)

    def _commit(self, chunk_index: int) -> None:
        self.ledger.commit(chunk_index)
        self._hand_out()

    def _poll(self) -> None:
        self._hand_out()
        self.start()

    def _hand_out(self) -> None:
        now = self._world.clock.now
        for cell_id, lease in self._policy.hand_out(now):
            self._tell(cell_id, PromptsLeased(prompts=lease.prompts, is_last=lease.is_last))
        if self._world.exhausted_at is None and self.ledger.is_exhausted:
            self._world.exhausted_at = now

    def _tell(self, cell_id: str, event: PromptsLeased | PromptsWithdrawn) -> None:
        clock = self._world.clock
        clock.at(clock.now + self._world.settings.driver_seconds, self.cells[cell_id].handle, event)
