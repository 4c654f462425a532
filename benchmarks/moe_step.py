"""What experts cost on a CPU: ``python benchmarks/moe_step.py [--tokens 2048] [--rounds 30]``.

A layer of experts and a dense network as wide as what a token meets take turns, forward and backward, in one process; the figure
is the ratio of their medians. Also with AdamW's step, which moves all experts. Writes benchmarks/out/moe_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

import torch  # noqa: E402
from torch import nn  # noqa: E402

from lmablate.config import compose  # noqa: E402
from lmablate.model.factory import ffn_option, ffn_shape  # noqa: E402
from lmablate.model.init import initialise  # noqa: E402
from lmablate.model.posemb import AttentionContext  # noqa: E402
from lmablate.model.precision import set_compute_dtype  # noqa: E402
from lmablate.training.memory import keep_freed_memory  # noqa: E402

WARM = 40  # steps in which most numbers of rows are met once
WORDS = ("model.d_model=256", "model.context_length=128", "trainer.precision=fp32", "runtime.device=cpu")
ARMS = {
    "top-2 of 8": ("ffn=token_choice",),
    "loss-free": ("ffn=loss_free",),
    "3 of 16 and 1 shared": ("ffn=fine_grained",),
    "hash": ("ffn=hash",),
    "expert choice": ("ffn=expert_choice", "ffn.leaks=true"),
}


def step(words: tuple[str, ...], n_tokens: int, precision: str, optimizer: bool) -> Callable[[], float]:
    """A branch with its own input; a call takes one step and gives its processor seconds."""
    cfg = compose([*WORDS, *words])
    branch: nn.Module = ffn_option(cfg).branch(ffn_shape(cfg), layer=0)
    initialise(branch, "bench", seed=0, std=0.02, out_proj_scale=1.0)
    set_compute_dtype(branch, torch.bfloat16 if precision == "bf16" else None)
    adam = torch.optim.AdamW([p for p in branch.parameters() if p.requires_grad], fused=True)
    length = cfg.model.context_length

    def take() -> float:
        # Other tokens in every step, as in training: what an expert's product costs depends on how many rows it has met before.
        x = torch.randn(n_tokens // length, length, cfg.model.d_model, requires_grad=True)
        positions = AttentionContext(lambda q, k: (q, k), None, tokens=torch.randint(0, 4096, x.shape[:2]))
        began = time.process_time()
        loss = branch(x, positions).square().mean()
        extra = getattr(branch, "extra_loss", None)
        (loss if extra is None else loss + extra).backward()
        if extra is not None:
            branch.extra_loss = None  # type: ignore[assignment]
        if optimizer:
            adam.step()
        adam.zero_grad(set_to_none=True)
        return time.process_time() - began

    return take


def compare(words: tuple[str, ...], n_tokens: int, precision: str, optimizer: bool, rounds: int) -> dict[str, float]:
    """Medians in milliseconds of steps that take turns."""
    takes = {
        "dense": step(("ffn=dense",), n_tokens, precision, optimizer),
        "moe": step(words, n_tokens, precision, optimizer),
    }
    times: dict[str, list[float]] = {name: [] for name in takes}
    for i in range(rounds + WARM):
        for name, take in takes.items():
            seconds = take()
            if i >= WARM:
                times[name].append(1000 * seconds)
    found = {name: statistics.median(own) for name, own in times.items()}
    return {**found, "ratio": found["moe"] / found["dense"]}


def main() -> int:
    parser = argparse.ArgumentParser(description="What experts cost on a CPU.")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as training does
    rows = []
    for arm, words in ARMS.items():
        for precision in ("fp32", "bf16"):
            for optimizer in (False, True):
                found = compare(words, asked.tokens, precision, optimizer, asked.rounds)
                rows.append(
                    {"arm": arm, "precision": precision, "optimizer": optimizer, "tokens": asked.tokens, **found}
                )
                what = "forward, backward, AdamW" if optimizer else "forward, backward"
                print(
                    f"{arm:<22}{precision}  {what:<26}dense {found['dense']:7.1f} ms   experts {found['moe']:7.1f} ms   "
                    f"ratio {found['ratio']:.2f}",
                    flush=True,
                )
    OUT.mkdir(exist_ok=True)
    (OUT / "moe_step.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
