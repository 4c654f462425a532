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

from lmablate.data.tokens import share_of
from lmablate.model import build_model
from lmablate.model.plain_torch import why_alone
from lmablate.model.primitives import set_compute_dtype
from lmablate.model.training_hooks import before_step, join_counts, leave_counts, stack_counts
from lmablate.objective import member_losses, objective_of, stacked
from lmablate.schema.identity import science
from lmablate.training.compile import compile_blocks
from lmablate.training.trainer import Interrupted, Record, Trainer

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

# What members of one gang may differ in: numbers that change no shape and no code.
FUSIBLE = ("init_seed", "data_seed", "optim", "schedule")
FUSIBLE_KEYS = {
    "model": ("init_std", "depth_scaled_init", "init"),
    "trainer": ("steps", "divergence_smoothing", "divergence_patience", "init_from"),
}


def graph_key(cfg: RunConfig, data: TokenData) -> str | None:
    """Runs with equal keys may train as one gang; None for a run that trains solo.

    Solo are runs with dropout, whose random draws depend on the shape of the whole batch, those of an objective that says
    so, and those with parameters or buffers of plain torch.
    """
    if cfg.model.dropout or objective_of(cfg).solo or why_alone(cfg):
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

    def __init__(self, members: list[Trainer], *, compiled: bool = False) -> None:
        cfg = members[0].cfg
        self.members = members
        self.left: set[int] = set()  # slots whose members have ended
        self.device = members[0].device
        self.model = build_model(cfg, device="meta").to_empty(device=self.device)
        for mine, theirs in zip(self.model.buffers(), members[0].model.buffers(), strict=True):
            mine.copy_(theirs)
        if cfg.trainer.precision == "bf16" and self.device == "cpu":
            set_compute_dtype(self.model, torch.bfloat16)
        self.stacked: list[torch.nn.Parameter] = list(self.model.parameters())
        solo = [list(member.model.parameters()) for member in members]
        for i, parameter in enumerate(self.stacked):
            parameter.data = torch.stack([parameters[i].data for parameters in solo])
            for k, parameters in enumerate(solo):
                parameters[i].data = parameter.data[k]
        stack_counts(self.model, [member.model for member in members])
        self.compiled = False
        if compiled:
            self._compile()

    def _compile(self) -> None:
        """Compile the one model; the members' own stay eager, since they only evaluate."""
        member = self.members[0]
        rows = [torch.zeros_like(member.rows(0)) for _ in self.members]
        note = compile_blocks(self.model, member.cfg, lambda: self.backward(rows))
        self.compiled = note is None
        for member in self.members:
            member.compile_note = note

    def replace(self, slot: int, member: Trainer) -> None:
        """Put a fresh member into a slot: its weights are copied into the stack and become views of it."""
        with torch.no_grad():
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                parameter.data[slot].copy_(own.data)
                own.data = parameter.data[slot]
            join_counts(self.model, slot, member.model)
        self.members[slot] = member
        self.left.discard(slot)

    def release(self, slot: int) -> None:
        """Let the member of a slot take its weights with it, before another one writes there."""
        for own in self.members[slot].model.parameters():
            own.data, own.grad = own.data.clone(), None
        leave_counts(self.members[slot].model)
        self.left.add(slot)

    def backward(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Leave each member's gradients in its parameters; `rows` are ``[B, T + 1]`` (or ``[B, 2 T]``) each. Returns each one's mean nats.

        A slot whose member has left computes on whatever stands there, and touches nothing of that member's.
        """
        cfg = self.members[0].cfg
        for parameter in self.stacked:
            parameter.grad = None
        before_step(self.model)
        totals = torch.zeros(len(self.members), device=self.device)
        batch = stacked([member.prepared(own) for member, own in zip(self.members, rows, strict=True)])
        self.model.train()
        for micro in batch.split(cfg.runtime.microbatch_size or batch.inputs.shape[1], dim=1):
            share = share_of(micro.targets, batch.targets)
            with self.members[0].precision():
                objectives = [member.objective for member in self.members]
                losses = member_losses(objectives, self.model, *micro)
            (losses.objective * share).sum().backward()
            totals += losses.nats.detach() * share
        for k, member in enumerate(self.members):
            if k in self.left:
                continue
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                own.grad = None if parameter.grad is None else parameter.grad[k]
        return list(totals.unbind())


@dataclass
class Seat:
    """A member at work: its trainer, its cycle, and the rows it waits for."""

    name: Any
    trainer: Trainer
    cycle: Generator[Record | torch.Tensor, torch.Tensor | None, None]
    rows: torch.Tensor | None = None


class Gang:
    """Trains queued members `size` at a time, as a compiled program if `compiled`.

    `queue` yields (name, trainer) pairs; trainers are made one by one, when a slot is free for them.
    """

    def __init__(
        self,
        queue: Iterable[tuple[Any, Trainer]],
        *,
        size: int,
        compiled: bool = False,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.queue, self.stop, self.compiled = iter(queue), stop, compiled
        self.slots: list[Seat | None] = [None] * size
        self.stack: Stack | None = None

    def run(self) -> Iterator[tuple[Any, Record | None]]:
        """Yield (name, record) for every record of every member, and (name, None) when a member has ended.

        When `stop` answers with a signal's number, every member writes a checkpoint, and Interrupted is raised.
        """
        while True:
            yield from self._fill()
            seats = [(slot, seat) for slot, seat in enumerate(self.slots) if seat is not None]
            if not seats:
                return
            if self.stack is None:
                self.stack = Stack([seat.trainer for _, seat in seats], compiled=self.compiled)
            idle = seats[0][1].rows
            rows = [idle if seat is None else seat.rows for seat in self.slots]
            nats = self.stack.backward([row for row in rows if row is not None])
            interrupted: Interrupted | None = None
            for slot, seat in seats:
                seat.trainer.compiled = self.stack.compiled
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
        """Give free slots to queued runs. Where none is left, drop the slots, so that no work is spent on them: at once,
        or where that costs a compilation, when half of them are free."""
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
        live = [seat for seat in self.slots if seat is not None]
        patient = self.stack is not None and self.stack.compiled
        if len(live) <= len(self.slots) // 2 if patient else len(live) < len(self.slots):
            self.slots = list(live)
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
