"""Count the parameters, FLOPs and bytes of a model.

  lmablate budget attention=gqa model.d_model=256
  lmablate budget -m norm=rms,layer activation=swiglu,gelu

Nothing is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmablate.budget import DEFINITIONS, flops_per_token, kv_bytes_per_token, parameters
from lmablate.cli.front_door import main as front_door
from lmablate.core.errors import exit_on_config_error

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

NOTES = (
    "All FLOPs: products, and one for each element that any other operation works on.",
    "Activations: bytes that the forward pass of one text keeps for the backward pass, eager, on a CPU, weights left out.",
    "Traffic: bytes that the operations of a training step read and write, nothing cached or fused, for each token.",
)


def sheet(cfg: RunConfig) -> list[tuple[str, str]]:
    """Return the account of one run as (quantity, value) rows."""
    from lmablate.budget.trace import all_flops_per_token, trace

    n, step, length = parameters(cfg), trace(cfg), cfg.model.context_length
    flops, every = flops_per_token(cfg), all_flops_per_token(cfg, step)
    kinds = {"matrix products": step.products, "norms": step.norms, "element-wise": step.pointwise}
    total = sum(work.bytes for work in kinds.values())
    rows = [
        ("parameters", f"{n.total:,}"),
        ("  embedding", f"{n.embedding:,}"),
        ("  non-embedding", f"{n.non_embedding:,}"),
        ("  active", f"{n.active:,}"),
        ("training FLOPs per token", f"{flops:,}"),
        ("  all operations", f"{every:,}"),
        ("  of these in norms", f"{100 * step.norms.flops / length / every:.2f} %"),
        ("KV-cache bytes per token", f"{kv_bytes_per_token(cfg):,}"),
        ("activation bytes per token", f"{round(step.saved_bytes / length):,}"),
        ("traffic, bytes per token", f"{round(total / length):,}"),
    ]
    shares = [(f"  {kind}", f"{100 * work.bytes / total:.1f} %") for kind, work in kinds.items()]
    solved = [] if cfg.solved is None else [("solved", cfg.solved)]
    return [*solved, *rows, *shares]


def show(configs: Sequence[RunConfig], launcher: str) -> int:
    """Print the account of every distinct model of a command. Return the exit code."""
    from lmablate.runs.prepared import load_data, with_data

    printed: set[str] = set()
    for cfg in configs:
        final = with_data(cfg, load_data(cfg))
        lines = "\n".join(f"{what:<28}{value}" for what, value in sheet(final))
        if lines not in printed:
            shown = [key for key in cfg.overrides if not key.startswith(("seed=", "init_seed=", "data_seed="))]
            print(f"{' '.join(shown) or 'defaults'}\n{lines}\n")
        printed.add(lines)
    print("\n".join([*(DEFINITIONS[key] for key in ("params", "params_non_embedding", "flops", "kv_cache")), *NOTES]))
    return 0


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print the accounts of the models of a command line. Return the exit code."""
    return front_door("budget", show, argv)


if __name__ == "__main__":
    sys.exit(main())
