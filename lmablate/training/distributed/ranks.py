"""The processes of one run, and the messages they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
TIMEOUT = timedelta(hours=4)  # the first process may tokenise a long text; torchrun notices one that dies


class Ranks:
    """This process among those of the run. Numbers and text go over gloo, gradients over NCCL if there are GPUs."""

    def __init__(self, device: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.in_run = False  # True while every process is inside a run

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all processes, in double precision."""
        return self._reduced(torch.tensor(list(numbers), dtype=torch.float64), dist.ReduceOp.SUM)

    def max(self, numbers: Sequence[int]) -> list[int]:
        """Return the maximum of each number over all processes."""
        return [int(n) for n in self._reduced(torch.tensor(list(numbers), dtype=torch.int64), dist.ReduceOp.MAX)]

    def all(self, fine: bool) -> bool:
        """Return True if `fine` is True in every process."""
        return self.max([int(not fine)]) == [0]

    def broadcast(self, text: str = "") -> str:
        """Return the first process's `text` in every process."""
        raw = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        (length,) = self.max([len(raw) if self.first else 0])
        raw = raw if self.first else torch.empty(length, dtype=torch.uint8)
        dist.broadcast(raw, 0)
        return bytes(raw.tolist()).decode().strip()

    def barrier(self) -> None:
        """Block until every process has arrived."""
        self.max([0])

    def assigned(self, items: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """Yield this process's share of `items`, equally many for each process, as (item, counts). Where they run out the last item is
        repeated with False, which must not be counted."""
        for start in range(0, len(items), self.size):
            mine = start + self.rank
            yield items[min(mine, len(items) - 1)], mine < len(items)

    def _reduced(self, numbers: torch.Tensor, how: dist.ReduceOp.RedOpType) -> list:
        dist.all_reduce(numbers, how)
        return numbers.tolist()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun started; yield this process's Ranks."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    try:
        yield set_ranks(Ranks(device))
    finally:
        dist.destroy_process_group()


_here: list[Ranks] = []


def set_ranks(ranks: Ranks) -> Ranks:
    """Set the Ranks of this process and return them."""
    _here[:] = [ranks]
    return ranks


def current() -> Ranks:
    """Return the Ranks of this process."""
    return _here[0]
