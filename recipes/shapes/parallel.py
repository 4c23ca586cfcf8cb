"""Data-parallel ranks on one machine: single-threaded processes, one flat gradient over gloo.

On few CPU cores, one thread a process and an all-reduce waste less than threads inside operators do.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of a data-parallel group, and its device."""

    index: int
    size: int
    device: torch.device
    parent: int | None = None
    """Process that started the ranks; a rank that has lost it stops."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes checkpoints and logs."""
        return self.index == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one message."""
        if self.parent is not None and os.getppid() != self.parent:
            raise SystemExit("the process that started this rank is gone")
        items = list(tensors)
        if self.size == 1 or not items:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in items])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for tensor in items:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def agree(self, flag: bool) -> bool:
        """Return the first rank's answer on every rank, so that all stop at the same step."""
        if self.size == 1:
            return flag
        answer = torch.tensor([float(flag)])
        dist.broadcast(answer, src=0)
        return bool(answer.item())


def _enter(
    index: int,
    size: int,
    rendezvous: str,
    body: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=index, world_size=size)
    try:
        body(Rank(index=index, size=size, device=torch.device("cpu"), parent=os.getppid()), *args)
    finally:
        dist.destroy_process_group()


def run_ranks(body: Callable[..., None], *args: Any, ranks: int | None = None) -> None:
    """Run `body(rank, *args)` on a GPU if there is one, else on `ranks` CPU processes.

    Args:
        ranks: CPU processes; default one a core, at most 8.
    """
    if torch.cuda.is_available():
        body(Rank(index=0, size=1, device=torch.device("cuda")), *args)
        return
    size = ranks or min(os.cpu_count() or 1, 8)
    if size == 1:
        torch.set_num_threads(1)
        body(Rank(index=0, size=1, device=torch.device("cpu")), *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            _enter,
            args=(size, str(Path(folder) / "rendezvous"), body, args),
            nprocs=size,
        )
