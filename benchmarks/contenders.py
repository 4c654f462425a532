"""Who is timed: the rows of the single-run table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.shapes import Shape, Tokens


@dataclass(frozen=True)
class Contender:
    """One row: `make(shape, tokens, target)` builds something with ``step(number)``, ``n_params`` and ``precision``."""

    name: str
    library: str
    compiled: bool
    make: Callable[[Shape, Tokens, int], Any]
    best: bool = False  # the setting its library documents as the fastest for this machine


def _ours(precision: str | None, compiled: bool) -> Callable[[Shape, Tokens, int], Any]:
    def make(shape: Shape, tokens: Tokens, target: int) -> Any:
        from benchmarks.ours import Ours

        return Ours(shape, tokens, precision=precision, compiled=compiled)

    return make


def _peer(kind: str, precision: str, compiled: bool) -> Callable[[Shape, Tokens, int], Any]:
    def make(shape: Shape, tokens: Tokens, target: int) -> Any:
        from benchmarks import peers

        return getattr(peers, kind)(shape, tokens, target, precision=precision, compiled=compiled)

    return make


def _trainer(kind: str, precision: str) -> Callable[[Shape, Tokens, int], Any]:
    def make(shape: Shape, tokens: Tokens, target: int) -> Any:
        from benchmarks import hf_trainer, peers

        return hf_trainer.InTrainer(getattr(peers, kind), shape, tokens, target, precision=precision)

    return make


MODES = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))
LIBRARIES = (
    ("Llama", "transformers Llama"),
    ("GPT2", "transformers GPT-2"),
    ("XTransformers", "x-transformers"),
    ("LitGPT", "litgpt"),
    ("NanoGPT", "nanoGPT"),
)


def title(library: str, precision: str, compiled: bool) -> str:
    return f"{library}, {precision} {'compiled' if compiled else 'eager'}"


def contenders(*, compiled: bool = True) -> list[Contender]:
    """Ours first. Without `compiled`, the eager rows alone."""
    rows = [Contender("lmablate, default", "lmablate", False, _ours(None, False), best=True)]
    rows += [
        Contender(title("lmablate", precision, c), "lmablate", c, _ours(precision, c))
        for precision, c in MODES
        if (precision, c) != ("bf16", False)  # the default on a processor with bf16
    ]
    for kind, library in LIBRARIES:
        for precision, c in MODES:
            best = precision == "bf16" and c
            rows.append(Contender(title(library, precision, c), library, c, _peer(kind, precision, c), best))
    for kind, library in LIBRARIES[:2]:
        for precision in ("fp32", "bf16"):
            name = f"{library} in Trainer, {precision}"
            rows.append(Contender(name, f"{library} in Trainer", False, _trainer(kind, precision), precision == "bf16"))
    return [row for row in rows if compiled or not row.compiled]
