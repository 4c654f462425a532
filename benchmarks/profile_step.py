"""Where a step's processor time goes, ours and others': ``python benchmarks/profile_step.py [--configs C1] [--only litgpt]``.

Writes benchmarks/out/profile.json. A profiler slows small operations, so shares are to be read, not seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks.contenders import contenders  # noqa: E402
from benchmarks.shapes import SHAPES, Tokens  # noqa: E402

# The first group that holds one of these words in an operation's name takes its time.
GROUPS = {
    "matrix products": ("::mm", "addmm", "bmm", "linear", "matmul"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "optimizer": ("adamw", "Optimizer"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "gradient norm and clipping": ("_foreach", "linalg_vector_norm"),
    "casts and copies": ("copy_", "_to_copy", "clone", "::cat", "contiguous", "fill_", "zero_"),
    "embedding": ("embedding", "index"),
}
REST = "norms, activations, rotations, the rest"
STEPS = 5


def group_of(operation: str) -> str:
    return next((name for name, words in GROUPS.items() if any(word in operation for word in words)), REST)


def profile(runner: Any) -> dict[str, float]:
    """Milliseconds a step by group."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    for number in range(3):
        runner.step(number)
    with torch_profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(STEPS):
            runner.step(number)
    groups = dict.fromkeys([*GROUPS, REST], 0.0)
    for event in found.key_averages():
        groups[group_of(event.key)] += event.self_cpu_time_total / 1e3 / STEPS
    return groups


def main() -> None:
    import torch

    from benchmarks.ours import n_params
    from benchmarks.peers import NotInstalled

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", default="C1,C3,C4,W512")
    parser.add_argument("--only", default="litgpt, fp32", help="a word in the names of the others")
    parser.add_argument("--compiled", action="store_true", help="compiled rows too, whose kernels count as the rest")
    words = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    out: dict[str, Any] = {}
    for name in words.configs.split(","):
        shape = SHAPES[name]
        tokens, target = Tokens(shape.vocab), n_params(shape)
        out[name] = {}
        for contender in contenders(compiled=words.compiled):
            if contender.library == "lmablate" or words.only in contender.name:
                try:
                    out[name][contender.name] = profile(contender.make(shape, tokens, target))
                except NotInstalled as absent:
                    print(f"{contender.name}: {absent} is not installed", file=sys.stderr)
        from benchmarks.tables import profile_table

        print(name, profile_table(out[name]), sep="\n", flush=True)
    OUT.mkdir(exist_ok=True)
    path = OUT / "profile.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | out, indent=1))


if __name__ == "__main__":
    main()
