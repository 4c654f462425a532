"""The Trainer as one of several processes: the same steps, each process computing its own rows.

The sum over processes of ``share * gradient`` is the gradient of the whole batch, where `share` is the fraction of the batch's scored
targets in a process. DDP and FSDP2 average over processes, so each loss is multiplied by their number.
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
from lmablate.training.compile import compile_model
from lmablate.training.distributed.checkpoint import load_together, save_together, save_whole
from lmablate.training.distributed.ranks import current
from lmablate.training.progress import Interrupted, Record, Trunk
from lmablate.training.trainer import Trainer

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

R = TypeVar("R")


class RootModule(nn.Module):
    """A module that runs a callable as its forward pass, so that FSDP2 gathers the weights outside the blocks and DDP expects a
    backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], R]) -> R:
        return work()


class RankTrainer(Trainer):
    """One process's part of a run. The first process sends the configuration to the others (launcher/torchrun.py)."""

    def __init__(
        self, model: TransformerLM, data: TokenData, cfg: RunConfig, folder: Path | None, trunk: Trunk | None = None
    ) -> None:
        self.ranks = current()
        if self.ranks.first:
            self.ranks.broadcast(json.dumps({"config": cfg.model_dump(mode="json"), "folder": str(folder)}))
        self.ranks.in_run = True
        self.sharded = cfg.runtime.parallel == "fsdp2"
        whole = RootModule(model.to(cfg.runtime.device))
        if self.sharded:
            _shard(whole, cfg.runtime.device)
        super().__init__(model, data, cfg, folder, trunk)
        self.root: nn.Module = whole if self.sharded else _replicated(whole, cfg.runtime.device)

    def compile(self) -> None:
        """Compile the blocks and try them through the root, since collectives are part of the pass."""
        rows = torch.zeros(len(self._mine(self.rows(0))), self.rows(0).shape[1], dtype=torch.long, device=self.device)
        self.compile_note = compile_model(self.model, self.cfg, lambda: self._pass(self.prepare_batch(rows)))
        self.compiled = self.compile_note is None

    def records(self, stop: Callable[[], int] = lambda: 0) -> Iterator[Record]:
        try:
            yield from super().records(stop)
        except Interrupted:
            self.ranks.in_run = False
            raise
        self.ranks.in_run = False

    def agree_on_stop(self, stopping: int, late: bool) -> tuple[int, bool]:
        """Return the maximum over all processes; if they disagreed, they would wait for each other for ever."""
        signal, due = self.ranks.max([stopping, int(late)])
        return signal, bool(due)

    def backward(self, rows: Tensor) -> Tensor:
        cfg = self.cfg
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        before_step(self.model)
        total = torch.zeros((), device=self.device)
        batch = self.prepare_batch(rows)
        mine = self._mine(batch)
        parts = mine.split(cfg.runtime.microbatch_size or len(mine.inputs))
        for part, micro in enumerate(parts):
            self.seed_noise(
                self.ranks.rank * len(parts) + part
            )  # numbered over all processes, so that a row's noise is its own
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
            for name in getattr(module, "per_member", ()):  # counts of a step are over all processes
                dist.all_reduce(getattr(module, name))
        after_step(self.model)
        self._pending.append(torch.stack((nats, norm.to(nats.dtype))))

    def load(self) -> dict[str, Any] | None:
        return None if self.folder is None else load_together(self.folder, self.model, self.optimizer, self.ranks)

    def _save(self, folder: Path, keep: int) -> None:
        """Write shards during training, and one file at the end, which every tool reads."""
        assert self.detector is not None
        state = {"progress": self.progress.state(), "detector": self.detector.state()}
        last = self.progress.step == self.cfg.trainer.steps
        save = save_whole if last else save_together
        save(folder, self.progress.step, self.model, self.optimizer, state, self.ranks, keep=keep)
        if last and self.sharded:
            self._gather_model(folder)

    def _gather_model(self, folder: Path) -> None:
        """Give the first process a whole model, since all that follows training runs there alone."""
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
        """Run forward and backward over some rows; return their mean nats."""

        def work() -> tuple[Tensor, Tensor]:
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


def _replicated(whole: RootModule, device: str) -> nn.Module:
    """DDP (Li et al. 2020, arXiv 2006.15704): every process has all weights."""
    ids = [torch.cuda.current_device()] if device == "cuda" else None
    kind = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(kind).parameters  # from torch 2.13 on
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return kind(whole, device_ids=ids, **options)


def _shard(whole: RootModule, device: str) -> None:
    """FSDP2: every process has a shard of each weight, its gradient and its moments (Rajbhandari et al. 2020, arXiv 1910.02054, stage
    3); blocks are gathered one by one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for owner in reversed(list(whole.modules())):
        blocks = getattr(owner, "blocks", None)
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(whole, mesh=mesh)
