"""Gang training: K runs of one graph train as one program.

Every weight of the members is a slice ``[k]`` of a stacked tensor ``[K, ...]``, so one forward and backward pass of one model serves
them all (model/primitives.py applies each member's slice to its own activations). All else belongs to the solo Trainer: a member has
its own seeds, optimizer, clipping, schedule, step counter, records and checkpoints. Checkpoints have the solo format, because a
member's parameters are views of the stack.

A member that ends or diverges frees its slot at once. The next queued run takes it, or the stack shrinks. A member's numbers depend on
no other member: products are batched over K and reductions stay inside a member, so a NaN in one changes no bit of another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmablate.data.tokens import share_of
from lmablate.model import build_model
from lmablate.model.plain_torch import why_solo
from lmablate.model.precision import compute_dtype, set_compute_dtype
from lmablate.model.training_hooks import before_step, join_counts, leave_counts, stack_counts
from lmablate.objective import objective_of, stacked, z_losses
from lmablate.schema.identity import science
from lmablate.training.compile import compile_model
from lmablate.training.progress import Interrupted, Record
from lmablate.training.trainer import Trainer

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

# Members of one gang may differ in these numbers, which change no shape and no code.
FUSIBLE = ("init_seed", "data_seed", "optim", "schedule")
FUSIBLE_KEYS = {
    "model": ("init_std", "head_std", "embedding_std", "depth_scaled_init", "init"),
    "trainer": ("steps", "divergence_smoothing", "divergence_patience", "init_from"),
}


def graph_key(cfg: RunConfig, data: TokenData) -> str | None:
    """Return a key of the graph: runs with equal keys may train as one gang. None for a run that trains solo.

    Solo are runs with dropout, whose draws depend on the shape of the whole batch, objectives that require it, and models with
    parameters or buffers of plain torch.
    """
    if cfg.model.dropout or objective_of(cfg).solo or why_solo(cfg):
        return None
    key: dict[str, Any] = {name: value for name, value in science(cfg, data).items() if name not in FUSIBLE}
    for group, names in FUSIBLE_KEYS.items():
        key[group] = {name: value for name, value in key[group].items() if name not in names}
    if "z_loss" in key.get("stability", {}):
        key["stability"] = {**key["stability"], "z_loss": "on"}
    how = cfg.runtime
    key["runtime"] = [how.device, how.compile, how.threads, how.microbatch_size]
    return json.dumps(key, sort_keys=True)


class MemberStack:
    """The stacked weights of K members, and one model that runs them."""

    def __init__(self, members: list[Trainer], *, compiled: bool = False) -> None:
        cfg = members[0].cfg
        self.members = members
        self.free: set[int] = set()  # slots whose members have ended
        self.device = members[0].device
        self.model = build_model(cfg, device="meta").to_empty(device=self.device)
        for mine, theirs in zip(self.model.buffers(), members[0].model.buffers(), strict=True):
            mine.copy_(theirs)
        set_compute_dtype(self.model, compute_dtype(cfg.trainer.precision))
        self.objective = objective_of(cfg)
        self.z_loss = z_losses([member.objective for member in members], self.device)
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
        """Compile the stacked model; the members' own models only evaluate and stay eager."""
        member = self.members[0]
        rows = [torch.zeros_like(member.rows(0)) for _ in self.members]
        note = compile_model(self.model, member.cfg, lambda: self.backward(rows), self.objective)
        self.compiled = note is None
        for member in self.members:
            member.compile_note = note

    def replace(self, slot: int, member: Trainer) -> None:
        """Put a new member into a slot: copy its weights into the stack and make them views of it."""
        with torch.no_grad():
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                parameter.data[slot].copy_(own.data)
                own.data = parameter.data[slot]
            join_counts(self.model, slot, member.model)
        self.members[slot] = member
        self.z_loss = z_losses([each.objective for each in self.members], self.device)
        self.free.discard(slot)

    def release(self, slot: int) -> None:
        """Give the member of a slot its own copy of its weights, before another one writes there."""
        for own in self.members[slot].model.parameters():
            own.data, own.grad = own.data.clone(), None
        leave_counts(self.members[slot].model)
        self.free.add(slot)

    def backward(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute each member's gradients into its parameters; return the mean nats of each. `rows` are ``[B, T + 1]`` (or ``[B, 2
        T]``) per member. A free slot computes on whatever it contains and changes nothing of its former member."""
        cfg = self.members[0].cfg
        for parameter in self.stacked:
            parameter.grad = None
        before_step(self.model)
        totals = torch.zeros(len(self.members), device=self.device)
        batch = stacked([member.prepare_batch(own) for member, own in zip(self.members, rows, strict=True)])
        if not self.model.training:
            self.model.train()
        for micro in batch.split(cfg.runtime.microbatch_size or batch.inputs.shape[1], dim=1):
            share = share_of(micro.targets, batch.targets)
            losses = self.objective(self.model, *micro, z_loss=self.z_loss)
            (losses.objective * share).sum().backward()
            totals += losses.nats.detach() * share
        for k, member in enumerate(self.members):
            if k in self.free:
                continue
            for parameter, own in zip(self.stacked, member.model.parameters(), strict=True):
                own.grad = None if parameter.grad is None else parameter.grad[k]
        return list(totals.unbind())


@dataclass
class ActiveMember:
    """An active member: its trainer, its cycle, and the rows of its next step."""

    name: Any
    trainer: Trainer
    cycle: Generator[Record | torch.Tensor, torch.Tensor | None, None]
    rows: torch.Tensor | None = None


class Gang:
    """A trainer of queued members, `size` at a time, as a compiled program if `compiled`. `queue` yields (name, trainer) pairs; each
    trainer is created when a slot becomes free."""

    def __init__(
        self,
        queue: Iterable[tuple[Any, Trainer]],
        *,
        size: int,
        compiled: bool = False,
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.queue, self.stop, self.compiled = iter(queue), stop, compiled
        self.slots: list[ActiveMember | None] = [None] * size
        self.stack: MemberStack | None = None

    def run(self) -> Iterator[tuple[Any, Record | None]]:
        """Yield (name, record) for every record of every member, and (name, None) when a member has ended. If `stop` returns a signal
        number, every member writes a checkpoint and Interrupted is raised."""
        while True:
            yield from self._fill()
            seats = [(slot, seat) for slot, seat in enumerate(self.slots) if seat is not None]
            if not seats:
                return
            if self.stack is None:
                self.stack = MemberStack([seat.trainer for _, seat in seats], compiled=self.compiled)
            idle = seats[0][1].rows
            rows = [idle if seat is None else seat.rows for seat in self.slots]
            nats = self.stack.backward([row for row in rows if row is not None])
            interrupted: Interrupted | None = None
            for slot, seat in seats:
                seat.trainer.compiled = self.stack.compiled
                try:
                    yield from _advance(seat, nats[slot])
                except Interrupted as stop:  # raised after the others have written their checkpoints
                    interrupted = stop
                    continue
                if seat.rows is None:
                    self.slots[slot] = None
                    self.stack.release(slot)
                    yield seat.name, None
            if interrupted is not None:
                raise interrupted

    def _fill(self) -> Iterator[tuple[Any, Record | None]]:
        """Give free slots to queued runs. With an empty queue, drop free slots: at once, or if that costs a compilation, when half of
        the slots are free."""
        for slot, seat in enumerate(self.slots):
            while seat is None and (queued := next(self.queue, None)) is not None:
                name, trainer = queued
                fresh = ActiveMember(name, trainer, trainer.cycle(self.stop))
                yield from _advance(fresh, None)
                if fresh.rows is None:  # an earlier attempt took its last step
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


def _advance(seat: ActiveMember, nats: torch.Tensor | None) -> Iterator[tuple[Any, Record]]:
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
