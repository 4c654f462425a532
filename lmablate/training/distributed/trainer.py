"""The Trainer as one of several processes: the same steps, of which each process computes its rows.

The sum over processes of ``share * gradient`` is the gradient of the whole batch, where `share` is the part of the batch's
scored targets that a process has: DDP and FSDP2 average over processes, so each one's loss is multiplied by their number.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmablate.data.tokens import share_of
from lmablate.evaluate.ready import ready
from lmablate.model import build_model
from lmablate.model.training_hooks import after_step, before_step
from lmablate.objective import Batch
from lmablate.training.checkpoint import checkpoints, load_weights
from lmablate.training.compile import compile_blocks
from lmablate.training.distributed.checkpoint import load_together, save_together, save_whole
from lmablate.training.distributed.ranks import current
from lmablate.training.trainer import Interrupted, Record, Trainer, Trunk

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

R = TypeVar("R")


class Whole(nn.Module):
    """Runs any piece of work as its forward pass: FSDP2 gathers the weights outside the blocks for as long as that lasts, and
    DDP knows of the backward pass that follows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], R]) -> R:
        return work()


class RankTrainer(Trainer):
    """One process's part of a run. The first process says to the others what is trained (command.py)."""

    def __init__(
        self, model: TransformerLM, data: TokenData, cfg: RunConfig, folder: Path | None, trunk: Trunk | None = None
    ) -> None:
        self.ranks = current()
        if self.ranks.first:
            self.ranks.say(json.dumps({"config": cfg.model_dump(mode="json"), "folder": str(folder)}))
        self.ranks.at_work = True
        self.sharded = cfg.runtime.parallel == "fsdp2"
        whole = Whole(model.to(cfg.runtime.device))
        if self.sharded:
            _shard(whole, cfg.runtime.device)
        super().__init__(model, data, cfg, folder, trunk)
        self.root: nn.Module = whole if self.sharded else _replicated(whole, cfg.runtime.device)

    def compile(self) -> None:
        """Compile the blocks, with a try through the root: collectives are part of the pass."""
        rows = torch.zeros(len(self._mine(self.rows(0))), self.rows(0).shape[1], dtype=torch.long, device=self.device)
        self.compile_note = compile_blocks(self.model, self.cfg, lambda: self._pass(self.prepared(rows)))
        self.compiled = self.compile_note is None

    def records(self, stop: Callable[[], int] = lambda: 0) -> Iterator[Record]:
        try:
            yield from super().records(stop)
        except Interrupted:
            self.ranks.at_work = False
            raise
        self.ranks.at_work = False

    def agreed(self, stopping: int, late: bool) -> tuple[int, bool]:
        """What one process is asked for, all do; they would wait for each other for ever otherwise."""
        told = self.ranks.most([stopping, int(late)])
        return told[0], bool(told[1])

    def backward(self, rows: Tensor) -> Tensor:
        cfg = self.cfg
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        before_step(self.model)
        total = torch.zeros((), device=self.device)
        batch = self.prepared(rows)
        mine = self._mine(batch)
        parts = mine.split(cfg.runtime.microbatch_size or len(mine.inputs))
        for part, micro in enumerate(parts):
            self.seed_noise(self.ranks.rank * len(parts) + part)  # numbered over all, so that a row's noise is its own
            share = share_of(micro.targets, batch.targets)
            with self._syncing(part == len(parts) - 1):
                total += self._pass(micro, share) * share
        dist.all_reduce(total)
        return total

    def apply(self, nats: Tensor) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.grad_clip or math.inf)
        if self.sharded:
            norm = norm.full_tensor()  # type: ignore[attr-defined]
        self.optimizer.step()
        for module in self.model.modules():
            for name in getattr(module, "per_member", ()):  # what is counted over a step is over all processes
                dist.all_reduce(getattr(module, name))
        after_step(self.model)
        self._pending.append(torch.stack((nats, norm.to(nats.dtype))))

    def load(self) -> dict[str, Any] | None:
        return None if self.folder is None else load_together(self.folder, self.model, self.optimizer, self.ranks)

    def _save(self, folder: Path, keep: int) -> None:
        """On the way in parts, each process its own; at the end as one file, which every tool reads."""
        assert self.detector is not None
        state = {"progress": self.progress.state(), "detector": self.detector.state()}
        last = self.progress.step == self.cfg.trainer.steps
        save = save_whole if last else save_together
        save(folder, self.progress.step, self.model, self.optimizer, state, self.ranks, keep=keep)
        if last and self.sharded:
            self._gather_model(folder)

    def _gather_model(self, folder: Path) -> None:
        """What comes after training runs in the first process alone, and needs a whole model."""
        if self.ranks.first:
            model = build_model(self.cfg)
            load_weights(checkpoints(folder)[0], model)
            self.model = ready(model, self.cfg, self.device)

    def _evaluate(self) -> bool:
        if not self.sharded:
            return super()._evaluate()
        with torch.no_grad():
            fine = self.root(super()._evaluate)
        self.root.reshard()  # type: ignore[operator]
        return fine

    def _mine(self, whole: Any) -> Any:
        """This process's rows of a batch, or of a tensor."""
        n = len(whole.inputs) if isinstance(whole, Batch) else len(whole)
        return whole.split(n // self.ranks.size)[self.ranks.rank]

    def _pass(self, micro: Batch, share: Tensor | float = 1.0) -> Tensor:
        """Forward and backward over some rows; returns their mean nats."""

        def work() -> tuple[Tensor, Tensor]:
            with self.precision():
                loss = self.objective(self.model, *micro)
            return loss.objective * share * self.ranks.size, loss.nats.detach()

        objective, nats = self.root(work)
        objective.backward()
        return nats

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients after the last microbatch only."""
        if self.sharded:
            self.root.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if last else self.root.no_sync()  # type: ignore[operator]


def _replicated(whole: Whole, device: str) -> nn.Module:
    """DDP (Li et al. 2020, arXiv 2006.15704): every process holds all weights."""
    ids = [torch.cuda.current_device()] if device == "cuda" else None
    kind = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(kind).parameters  # from torch 2.13 on
    words: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return kind(whole, device_ids=ids, **words)


def _shard(whole: Whole, device: str) -> None:
    """FSDP2: every process holds a part of each weight, its gradient and its moments (Rajbhandari et al. 2020, arXiv
    1910.02054, stage 3); blocks are gathered one by one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for owner in reversed(list(whole.modules())):
        blocks = getattr(owner, "blocks", None)
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(whole, mesh=mesh)
