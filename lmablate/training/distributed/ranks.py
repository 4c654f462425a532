"""The processes of one run, and the few words they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(hours=4)  # the first process may have a long text to tokenise; torchrun sees one that dies


class Ranks:
    """This process among those of the run. Numbers and words go over gloo, gradients over NCCL where there are GPUs."""

    def __init__(self, device: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.at_work = False  # a run is under way, and every process is in it

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, in double precision."""
        return self._reduced(torch.tensor(list(numbers), dtype=torch.float64), dist.ReduceOp.SUM)

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number."""
        return [int(n) for n in self._reduced(torch.tensor(list(numbers), dtype=torch.int64), dist.ReduceOp.MAX)]

    def all(self, fine: bool) -> bool:
        """Is it so in every process?"""
        return self.most([int(not fine)]) == [0]

    def say(self, text: str = "") -> str:
        """The words of the first process, in all of them."""
        raw = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        (length,) = self.most([len(raw) if self.first else 0])
        raw = raw if self.first else torch.empty(length, dtype=torch.uint8)
        dist.broadcast(raw, 0)
        return bytes(raw.tolist()).decode().strip()

    def wait(self) -> None:
        """Until all are here."""
        self.most([0])

    def share(self, pieces: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """This process's part of `pieces`, as many for each: where they run out, the last one again, which does not count."""
        for start in range(0, len(pieces), self.size):
            mine = start + self.rank
            yield pieces[min(mine, len(pieces) - 1)], mine < len(pieces)

    def _reduced(self, numbers: torch.Tensor, how: dist.ReduceOp.RedOpType) -> list:
        dist.all_reduce(numbers, how)
        return numbers.tolist()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun has started."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    try:
        yield set_ranks(Ranks(device))
    finally:
        dist.destroy_process_group()


_here: list[Ranks] = []


def set_ranks(ranks: Ranks) -> Ranks:
    """Make `ranks` those of this process."""
    _here[:] = [ranks]
    return ranks


def current() -> Ranks:
    """Those of this process."""
    return _here[0]
