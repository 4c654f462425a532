"""Gang training: K runs of one graph train as one program.

Every weight of the members is a slice ``[k]`` of a stacked tensor ``[K, ...]``, so one forward and backward pass of one
model serves all of them (model/primitives.py meets each member's activations with its own slice). Everything else stays
the solo Trainer's: a member has its own seeds, optimizer, clipping, schedule, step counter, records and checkpoints, and
a checkpoint is the solo format, because its parameters are views of the stack.

A member that ends or diverges leaves its slot at once; the next queued run takes it, or the stack is made smaller. What a
member computes depends on nothing beside it: products are batched over K and reductions stay inside a member, so a NaN
in one changes no bit of another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmablate.identity import science
from lmablate.model import build_model
from lmablate.model.primitives import set_compute_dtype
from lmablate.trainer import Interrupted, Record, Trainer

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData

# What members of one gang may differ in: numbers that change no shape and no code.
FUSIBLE = ("init_seed", "data_seed", "optim", "schedule")
FUSIBLE_KEYS = {
    "model": ("init_std", "depth_scaled_init"),
    "trainer": ("steps", "divergence_smoothing", "divergence_patience"),
}


def graph_key(cfg: RunConfig, data: TokenData) -> str | None:
    """Runs with equal keys may train as one gang; None for a run that trains solo.

    Solo are runs with dropout, whose random draws depend on the shape of the whole batch, and compiled runs, since the
    stack of a gang runs eagerly.
    """
    if cfg.model.dropout or cfg.runtime.compile:
        return None
    key: dict[str, Any] = {name: value for name, value in science(cfg, data).items() if name not in FUSIBLE}
    for group, names in FUSIBLE_KEYS.items():
        key[group] = {name: value for name, value in key[group].items() if name not in names}
    if "z_loss" in key.get("stability", {}):
        key["stability"] = {**key["stability"], "z_loss": "on"}
    how = cfg.runtime
    key["runtime"] = [how.device, how.compile, how.threads, how.microbatch_size]
    return json.dumps(key, sort_keys=True)


class Stack:
    """The stacked weights of K members, and one model that runs them."""

    def __init__(self, members: list[Trainer]) -> None:
        cfg = members[0].cfg
        self.members = members
        self.device = members[0].device
        self.model = build_model(cfg, device="meta").to_empty(device=self.device)
        for mine, theirs in zip(self.model.buffers(), members[0].model.buffers(), strict=True):
            mine.copy_(theirs)
        if cfg.trainer.precision == "bf16" and self.device == "cpu":
            set_compute_dtype(self.model, torch.bfloat16)
        self.stacked = list(self.model.parameters())
        solo = [list(member.model.parameters()) for member in members]
        for i, parameter in enumerate(self.stacked):
            parameter.data = torch.stack([parameters[i].data for parameters in solo])
            for k, parameters in enumerate(solo):
                parameters[i].data = parameter.data[k]

    def replace(self, slot: int, member: Trainer) -> None:
        """Put a fresh member into a slot: its weights are copied into the stack and become views of it."""
        with torch.no_grad():
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                parameter.data[slot].copy_(own.data)
                own.data = parameter.data[slot]
        self.members[slot] = member

    def release(self, slot: int) -> None:
        """Let the member of a slot take its weights with it, before another one writes there."""
        for own in self.members[slot].model.parameters():
            own.data, own.grad = own.data.clone(), None

    def backward(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Leave each member's gradients in its parameters; `rows` are ``[B, T + 1]`` each. Returns each one's mean nats."""
        cfg = self.members[0].cfg
        for parameter in self.stacked:
            parameter.grad = None
        totals = [torch.zeros((), device=self.device) for _ in self.members]
        batch = torch.stack(rows)
        self.model.train()
        size = batch.shape[1]
        for micro in batch.split(cfg.runtime.microbatch_size or size, dim=1):
            share = micro.shape[1] / size
            with self.members[0].precision():
                logits = self.model(micro[..., :-1])
                losses = [
                    member.objective.of_logits(*pair)
                    for member, pair in zip(self.members, zip(logits, micro[..., 1:], strict=True), strict=True)
                ]
            (torch.stack([loss.objective for loss in losses]) * share).sum().backward()
            totals = [total + loss.nats.detach() * share for total, loss in zip(totals, losses, strict=True)]
        for k, member in enumerate(self.members):
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                own.grad = None if parameter.grad is None else parameter.grad[k]
        return totals


@dataclass
class Seat:
    """A member at work: its trainer, its cycle, and the rows it waits for."""

    name: Any
    trainer: Trainer
    cycle: Generator[Record | torch.Tensor, torch.Tensor | None, None]
    rows: torch.Tensor | None = None


class Gang:
    """Trains queued members `size` at a time.

    `queue` yields (name, trainer) pairs; trainers are made one by one, when a slot is free for them.
    """

    def __init__(self, queue: Iterable[tuple[Any, Trainer]], *, size: int, stop: Callable[[], int] = lambda: 0) -> None:
        self.queue, self.stop = iter(queue), stop
        self.slots: list[Seat | None] = [None] * size
        self.stack: Stack | None = None

    def run(self) -> Iterator[tuple[Any, Record | None]]:
        """Yield (name, record) for every record of every member, and (name, None) when a member has ended.

        When `stop` answers with a signal's number, every member writes a checkpoint, and Interrupted is raised.
        """
        while True:
            yield from self._fill()
            seats = [seat for seat in self.slots if seat is not None]
            if not seats:
                return
            if self.stack is None:
                self.stack = Stack([seat.trainer for seat in seats])
            nats = self.stack.backward([seat.rows for seat in seats if seat.rows is not None])
            interrupted: Interrupted | None = None
            for slot, seat in enumerate(seats):
                try:
                    yield from _advance(seat, nats[slot])
                except Interrupted as stop:  # the others write their checkpoints first
                    interrupted = stop
                    continue
                if seat.rows is None:
                    self.slots[slot] = None
                    self.stack.release(slot)
                    yield seat.name, None
            if interrupted is not None:
                raise interrupted

    def _fill(self) -> Iterator[tuple[Any, Record | None]]:
        """Give free slots to queued runs; where none is left, drop the slots, so that no work is spent on them."""
        for slot, seat in enumerate(self.slots):
            while seat is None and (queued := next(self.queue, None)) is not None:
                name, trainer = queued
                fresh = Seat(name, trainer, trainer.cycle(self.stop))
                yield from _advance(fresh, None)
                if fresh.rows is None:  # an earlier attempt had taken its last step
                    yield name, None
                    continue
                seat = self.slots[slot] = fresh
                if self.stack is not None:
                    self.stack.replace(slot, trainer)
        if None in self.slots:
            self.slots = [seat for seat in self.slots if seat is not None]
            self.stack = None


def _advance(seat: Seat, nats: torch.Tensor | None) -> Iterator[tuple[Any, Record]]:
    """Take a member to its next step; its `rows` are None once it has ended."""
    seat.rows = None
    try:
        item = seat.cycle.send(nats)
        while isinstance(item, dict):
            yield seat.name, item
            item = seat.cycle.send(None)
        seat.rows = item
    except StopIteration:
        return
