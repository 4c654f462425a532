"""The training loop. It yields records and knows nothing of files, dashboards or terminals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmablate.core.paths import CHECKPOINTS
from lmablate.core.torch_utils import eager
from lmablate.data.tokens import inputs_and_targets, share_of
from lmablate.diagnostics.probe import open_probe
from lmablate.evaluate import evaluate
from lmablate.model.init import seed_everything, seed_of
from lmablate.model.precision import compute_dtype, set_compute_dtype
from lmablate.model.training_hooks import after_step, before_step
from lmablate.objective import Batch, objective_of
from lmablate.training.checkpoint import load_checkpoint, load_parent_weights, save_checkpoint
from lmablate.training.compile import compile_model
from lmablate.training.divergence import DivergenceDetector
from lmablate.training.memory import keep_freed_memory
from lmablate.training.optim import build_optimizer, lr_factor, set_lr
from lmablate.training.progress import Interrupted, Progress, Record, Trunk

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig


class Trainer:
    """The training of `model` on `data` as `cfg` describes, from the newest checkpoint in `folder` if there is one."""

    ranks: Any = None  # the processes that share this run, if there are several (training/distributed)

    def __init__(
        self, model: TransformerLM, data: TokenData, cfg: RunConfig, folder: Path | None, trunk: Trunk | None = None
    ) -> None:
        self.cfg, self.data, self.folder, self.trunk = cfg, data, folder, trunk
        self.device = cfg.runtime.device
        if self.device == "cpu":
            keep_freed_memory()
        self.model = model.to(self.device)
        self.optimizer = build_optimizer(self.model, cfg.optim)
        self.objective = objective_of(cfg)
        set_compute_dtype(self.model, compute_dtype(cfg.trainer.precision))
        self.progress = Progress()
        self.detector: DivergenceDetector | None = None
        self.probe = open_probe(cfg, data)
        self.compiled = False
        self.compile_note: str | None = None  # why compilation failed, if it was requested
        self._pending: list[torch.Tensor] = []
        self.on_resume: Callable[[int | None], None] = lambda step: None  # called with the first step, None if fresh

    def compile(self) -> None:
        """Compile the model if possible. A batch of zeros is used, since a process that only compiles has no text."""
        size = min(self.cfg.runtime.microbatch_size or math.inf, self.cfg.trainer.batch_size)
        shape = (int(size), self.cfg.model.context_length)
        inputs, targets = (torch.zeros(shape, dtype=torch.long, device=self.device) for _ in range(2))
        batch = self.objective.batch(inputs, targets, data_seed=self.cfg.data_seed, step=0)

        def step() -> None:
            self.model.train()
            loss = self.objective(self.model, *batch)
            loss.objective.backward()

        self.compile_note = compile_model(self.model, self.cfg, step, self.objective)
        self.compiled = self.compile_note is None

    def records(self, stop: Callable[[], int] = lambda: 0) -> Iterator[Record]:
        """Train and yield one record per logging step (see `cycle`); `stop` is as in `cycle`."""
        if self.cfg.runtime.compile is True:
            self.compile()
        cycle = self.cycle(stop)
        nats = None
        while True:
            try:
                item = cycle.send(nats)
            except StopIteration:
                return
            nats = None
            if isinstance(item, dict):
                yield item
            else:
                nats = self.backward(item)

    def cycle(self, stop: Callable[[], int]) -> Generator[Record | torch.Tensor, torch.Tensor | None, None]:
        """Run all steps, leaving the gradients to the caller.

        The generator yields records, and between them the rows ``[B, T + 1]`` of the next step. For rows the caller sends back their
        mean nats, after it has put the gradients into the parameters. `stop` is called after every step; if it returns a signal number,
        a checkpoint is written and Interrupted is raised with that number.
        """
        resumed = self._resume()
        self.on_resume(self.progress.step if resumed else None)
        if not resumed:
            yield self._start()
        last_saved = time.monotonic()
        mark, mark_step = time.monotonic(), self.progress.step
        steps, evaluate_at = self.cfg.trainer.steps, self._evaluation_steps()
        while self.progress.step < steps:
            began = time.monotonic()
            lr = self._set_lr(self.progress.step)
            nats = yield self.rows(self.progress.step)
            assert nats is not None
            probe = self.probe if self.probe is not None and self.probe.due(self.progress.step + 1) else None
            if probe is not None:
                probe.before_update(self.model)
            self.apply(nats)
            self.progress.step += 1
            step = self.progress.step
            due = step % self.cfg.runtime.log_every == 0 or step in evaluate_at or step == steps
            late = time.monotonic() - last_saved >= self.cfg.runtime.checkpoint_seconds
            stopping, late = self.agree_on_stop(stop(), late)
            saving = self.folder is not None and (bool(stopping) or late)
            branching = self.trunk is not None and step in self.trunk.points
            diverged = (due or saving or branching or probe is not None or self.device == "cpu") and self._flush()
            now = time.monotonic()
            self.progress.seconds += now - began
            diagnostics = probe.record(self) if probe is not None and self.progress.step == step else {}
            mark += time.monotonic() - now  # diagnostics do not count as training time, nor does evaluation
            if due or diverged:
                speed = (self.progress.step - mark_step) * self.cfg.tokens_per_step / max(1e-9, time.monotonic() - mark)
                record = self._record(lr, speed) | diagnostics
                if step in evaluate_at and not diverged:
                    diverged = not self._evaluate()
                    record |= self._validation()
                yield record
                mark, mark_step = time.monotonic(), step
            elif diagnostics:
                yield {**self._step_fields(), **diagnostics}
            if diverged:
                return
            if branching:
                self.save_trunk()
            if saving or (step == steps and self.folder is not None):
                self.save()
                last_saved = time.monotonic()
            if stopping and step < steps:
                raise Interrupted(stopping)

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        assert self.folder is not None
        # The previous checkpoint stays until the run ends (checkpoint.keep_last), in case the newest is damaged.
        self._save(self.folder, max(2, self.cfg.runtime.keep_checkpoints))

    def save_trunk(self) -> None:
        """Write a checkpoint of the current step for shorter runs to branch off, and the history up to it."""
        assert self.trunk is not None
        self.trunk.keep_history(self.progress.step)
        self._save(self.trunk.folder, keep=len(self.trunk.points) + 1)

    def _save(self, folder: Path, keep: int) -> None:
        assert self.detector is not None
        state = {"progress": self.progress.state(), "detector": self.detector.state()}
        save_checkpoint(folder, self.progress.step, self.model, self.optimizer, state, keep=keep)

    def seconds_per_step(self, budget: float) -> float:
        """Return the median time of a training step, measured for about `budget` seconds after one warm-up step."""
        times: list[float] = []
        self._step(0)
        while not times or sum(times) < budget:
            began = time.monotonic()
            self._step(0)
            self.drain_pending()
            times.append(time.monotonic() - began)
        return sorted(times)[len(times) // 2]

    @property
    def train_loss(self) -> float:
        """Return the smoothed training loss so far, in nats per token."""
        average = self.detector.average if self.detector else None
        return math.nan if average is None else average

    def agree_on_stop(self, stopping: int, late: bool) -> tuple[int, bool]:
        """Return the stop signal and whether a checkpoint is due; several processes agree on both."""
        return stopping, late

    def load(self) -> dict[str, Any] | None:
        """Fill model and optimizer from the newest checkpoint and return its state; None if there is none."""
        return load_checkpoint(self.folder, self.model, self.optimizer) if self.folder else None

    def _resume(self) -> bool:
        state = self.load()
        if state is None and self.trunk is not None:
            state = load_checkpoint(self.trunk.folder, self.model, self.optimizer, up_to=self.trunk.end)
            self.trunk.left_at = state["step"] if state else None
        if state is None:
            return False
        self.progress.restore(state["progress"])
        self.detector = self._new_detector()
        self.detector.restore(state["detector"])
        return True

    def _start(self) -> Record:
        parent_initial_loss = None
        if (parent := self.cfg.trainer.init_from) is not None:
            parent_initial_loss = load_parent_weights(Path(self.cfg.results_dir) / parent / CHECKPOINTS, self.model)
        self._evaluate()
        self.progress.init_val_loss = self.progress.evaluation.val_loss
        self.detector = self._new_detector()
        if parent_initial_loss is not None:  # the loss of a fine-tune may rise above its start
            self.detector.initial_loss = max(parent_initial_loss, self.progress.init_val_loss)
        diagnostics = {} if self.probe is None else self.probe.at_start(self)
        return {**self._step_fields(), **self._validation(), **diagnostics}

    def _new_detector(self) -> DivergenceDetector:
        t = self.cfg.trainer
        return DivergenceDetector(
            initial_loss=self.progress.init_val_loss, smoothing=t.divergence_smoothing, patience=t.divergence_patience
        )

    def _evaluation_steps(self) -> set[int]:
        n = min(self.cfg.runtime.evaluations, self.cfg.trainer.steps)
        return {round(i * self.cfg.trainer.steps / n) for i in range(1, n + 1)}

    def _step(self, step: int) -> None:
        """One optimizer step on batch `step`. Nothing here waits for a GPU."""
        self._set_lr(step)
        self.apply(self.backward(self.rows(step)))

    def _set_lr(self, step: int) -> float:
        lr = self.cfg.optim.lr * lr_factor(self.cfg.schedule, step, self.cfg.trainer.steps)
        set_lr(self.optimizer, lr)
        return lr

    def rows(self, step: int) -> torch.Tensor:
        """Return the tokens of batch `step` on the device, int64 ``[B, T + 1]``, or ``[B, 2 T]`` for a task."""
        cfg = self.cfg
        batch = self.data.batch(
            step, data_seed=cfg.data_seed, batch_size=cfg.trainer.batch_size, context_length=cfg.model.context_length
        )
        rows = torch.from_numpy(batch)
        return rows if self.device == "cpu" else rows.pin_memory().to(self.device, non_blocking=True)

    def prepare_batch(self, rows: torch.Tensor) -> Batch:
        """Return the objective's batch for the rows of the next step."""
        inputs, targets = (
            x.contiguous() for x in inputs_and_targets(rows, self.cfg.model.context_length)
        )  # as in `compile`
        return self.objective.batch(inputs, targets, data_seed=self.cfg.data_seed, step=self.progress.step)

    def backward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute the gradients of the mean loss over `rows` into the parameters; return the mean nats per token."""
        cfg = self.cfg
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        before_step(self.model)
        total = torch.zeros((), device=self.device)
        batch = self.prepare_batch(rows)
        for part, micro in enumerate(batch.split(cfg.runtime.microbatch_size or len(rows))):
            self.seed_noise(part)
            loss = self.objective(self.model, *micro)
            share = share_of(micro.targets, batch.targets)
            (loss.objective * share).backward()
            total += loss.nats.detach() * share
        return total

    def seed_noise(self, part: int | str) -> None:
        """Seed the draws of a pass by data seed, step and microbatch `part`, so that arms and resumed runs drop the same units. Of the
        shipped parts only dropout draws."""
        seed = noise_seed(self.cfg.data_seed, self.progress.step, part)
        if self.cfg.code:
            seed_everything(seed)
        elif self.cfg.model.dropout:
            torch.manual_seed(seed)

    def apply(self, nats: torch.Tensor) -> None:
        """Clip the gradients, take the optimizer's step, and queue loss and gradient norm for the next flush."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.grad_clip or math.inf)
        self.optimizer.step()
        after_step(self.model)
        self._pending.append(torch.stack((nats, norm.to(nats.dtype))))

    def drain_pending(self) -> list[list[float]]:
        """Return loss and gradient norm of the queued steps; waits for a GPU."""
        rows = torch.stack(self._pending).tolist() if self._pending else []
        self._pending.clear()
        return rows

    def _flush(self) -> bool:
        """Process the queued losses in order; return True if a step diverged."""
        assert self.detector is not None
        rows = self.drain_pending()
        first = self.progress.step - len(rows) + 1
        for step, (loss, norm) in enumerate(rows, first):
            self.progress.window_loss += loss
            self.progress.window_norm += norm
            self.progress.window_steps += 1
            if self.detector.diverged(loss, norm):
                self.progress.diverged_at_step = self.progress.step = step
                return True
        return False

    def _record(self, lr: float, speed: float) -> Record:
        p = self.progress
        n = max(1, p.window_steps)
        record = {
            **self._step_fields(),
            "train_loss": p.window_loss / n,
            "lr": lr,
            "grad_norm": p.window_norm / n,
            "tokens_per_second": speed,
        }
        p.window_loss, p.window_norm, p.window_steps = 0.0, 0.0, 0
        return record

    def _step_fields(self) -> Record:
        p = self.progress
        return {"step": p.step, "tokens": p.step * self.cfg.tokens_per_step, "seconds": p.seconds}

    def _evaluate(self) -> bool:
        """Evaluate; return False if the loss is not finite, which is a divergence at this step."""
        self.seed_noise("evaluation")
        with eager(self.compiled):
            self.progress.evaluation = evaluate(
                self.model,
                self.data,
                self.objective,
                context_length=self.cfg.model.context_length,
                batch_size=self.cfg.runtime.microbatch_size or self.cfg.trainer.batch_size,
                device=self.device,
                with_lengths=self.progress.step == self.cfg.trainer.steps,
                ranks=self.ranks,
            )
        finite = math.isfinite(self.progress.evaluation.val_loss)
        if not finite and self.progress.step:
            self.progress.diverged_at_step = self.progress.step
        return finite

    def _validation(self) -> Record:
        evaluation = self.progress.evaluation
        record: Record = {
            "val_loss": evaluation.val_loss,
            "val_bpb": evaluation.val_bpb,
            **(evaluation.texts or {}),
        }
        return record if evaluation.val_accuracy is None else record | {"val_accuracy": evaluation.val_accuracy}


def noise_seed(data_seed: int, step: int, part: int | str) -> int:
    """Return the seed for the dropout of one pass, the same in every arm."""
    return seed_of("dropout", data_seed, step, part)
