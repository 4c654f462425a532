"""transformers' Trainer, one step at a time: it trains in a thread that waits after each of its steps."""

from __future__ import annotations

import logging
import tempfile
import threading
from typing import Any

import torch

from benchmarks import peers
from benchmarks.shapes import Shape, Tokens


class _Rows(torch.utils.data.Dataset):
    """Sequences of `context` tokens; the library shifts the labels itself."""

    def __init__(self, shape: Shape, tokens: Tokens) -> None:
        self.rows = [
            torch.from_numpy(row[:-1])
            for number in range(8)
            for row in tokens.batch(number, data_seed=0, batch_size=shape.batch, context_length=shape.context)
        ]

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index % len(self.rows)]
        return {"input_ids": row, "labels": row}


class InTrainer:
    """A transformers model under `Trainer`, with the same optimizer, clipping and precision as in the plain loop.

    The clock of interleaved steps is the process's, and only one of the two threads ever runs, so a step of this one
    counts whatever `Trainer` does between two `on_step_end`: collation, step, callbacks, bookkeeping.
    """

    def __init__(self, kind: type[peers.Peer], shape: Shape, tokens: Tokens, target: int, *, precision: str) -> None:
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        peers._needs("accelerate")
        model = kind(shape, tokens, target, precision="fp32", compiled=False).model
        self.n_params, self.precision = sum(p.numel() for p in model.parameters()), precision
        go, done = self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

        class Lockstep(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                done.release()
                go.acquire()

        self.folder = tempfile.TemporaryDirectory()
        recipe = peers.RECIPE
        arguments = TrainingArguments(
            output_dir=self.folder.name,
            per_device_train_batch_size=shape.batch,
            max_steps=1 << 16,
            learning_rate=recipe["lr"],
            adam_beta1=recipe["betas"][0],
            adam_beta2=recipe["betas"][1],
            weight_decay=recipe["weight_decay"],
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            bf16=precision == "bf16",
            use_cpu=shape.device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
        )
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.trainer = Trainer(model, arguments, train_dataset=_Rows(shape, tokens), callbacks=[Lockstep()])
        self.trainer.remove_callback(PrinterCallback)  # what disable_tqdm puts in its place
        self.failure: BaseException | None = None
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        torch.set_num_threads(1)  # a setting of the thread, not of the process
        torch.set_flush_denormal(True)
        self.go.acquire()
        try:
            self.trainer.train()
        except BaseException as error:  # a thread would swallow it, and step() would wait for ever
            self.failure = error
            self.done.release()

    def step(self, number: int) -> None:
        self.go.release()
        self.done.acquire()
        if self.failure is not None:
            raise RuntimeError("transformers' Trainer stopped") from self.failure
