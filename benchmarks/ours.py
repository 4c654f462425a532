"""Our side of a step: the Trainer that `lmablate.train` uses, one optimizer step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.shapes import Shape, Tokens

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer


def compile_word(wanted: bool) -> str:
    """The value of runtime.compile that compiles without asking whether it pays, or never does."""
    return str(wanted).lower()


def config(shape: Shape, *extra: str) -> RunConfig:
    """Our default architecture at `shape`, with its vocabulary."""
    from lmablate.config import compose

    cfg = compose([*shape.overrides(), "tokenizer=bytes", "runtime.wandb=disabled", "trainer.steps=100000", *extra])
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": shape.vocab})})


class Ours:
    """One run of ours; `precision` None is the default (bf16 in linear layers where the processor has it)."""

    def __init__(self, shape: Shape, tokens: Tokens, *, precision: str | None, compiled: bool, **fields: int) -> None:
        from lmablate.model import build_model
        from lmablate.training.trainer import Trainer

        words = [f"runtime.compile={compile_word(compiled)}", *(f"{key}={value}" for key, value in fields.items())]
        if precision:
            words.append(f"trainer.precision={precision}")
        self.cfg = config(shape, *words)
        self.trainer: Trainer = Trainer(build_model(self.cfg), tokens, self.cfg, folder=None)  # type: ignore[arg-type]
        if compiled:
            self.trainer.compile()
            if not self.trainer.compiled:
                raise RuntimeError("torch.compile failed; see the warning above")
        self.n_params = sum(p.numel() for p in self.trainer.model.parameters())
        self.precision = self.cfg.trainer.precision

    def step(self, number: int) -> None:
        """One optimizer step, and its loss taken from the device as the training loop does on a CPU."""
        self.trainer._step(number)
        if self.trainer.device == "cpu":
            self.trainer.drain_pending()


def n_params(shape: Shape) -> int:
    """Our parameters at `shape`, the count the others are matched to."""
    from lmablate.budget import parameters

    return parameters(config(shape)).total


def flops_per_step(shape: Shape) -> int:
    """Matrix products of a step, forward and backward: what a share of the matmul peak counts."""
    from lmablate.budget import flops_per_token

    return flops_per_token(config(shape)) * shape.tokens_per_step
