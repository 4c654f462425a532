"""How low the loss ends, against others at equal parameters, text, tokens and tokenizer.

``python benchmarks/quality.py [--nanogpt PATH] [--seeds 2] [--steps 1900] [--show]``: (a) GPT-2's architecture under our recipe against
nanoGPT's own train.py, for which PATH is a checkout of it; (b) our default against transformers' Llama in our trainer. Each side's rate
is chosen among five on one seed, then trained again from fresh seeds.

Every run becomes a file of benchmarks/out/quality/ as it ends, and runs that are there are not trained again: an interrupted benchmark
goes on with the same command. benchmarks/out/quality.json is what report.py reads, and the same Markdown is printed. About an hour
and a half on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import bars, measure, report  # noqa: E402
from benchmarks.quality_sides import SHAPE, SIDES, NanoGPT, Side, load_text, loss_of  # noqa: E402

SEARCH_SEED = 0  # the fresh seeds are those after it
STEPS = 1900
ALIKE = 0.005  # by which the parameters of two sides may differ


class Runs:
    """Finished runs in a folder, a file each; with `train`, a missing one is trained first."""

    def __init__(self, folder: Path, *, train: bool) -> None:
        self.folder, self.trains = folder, train
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, name: str, side: Side, lr: float, seed: int) -> dict[str, Any] | None:
        """`val_loss` in nats per token, inf where the run diverged, and `n_params`; None where the run is not there."""
        settings = {"side": name, "steps": side.steps, **side.settings(lr, seed)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = self.folder / f"{name}_{side.steps}_lr{lr:g}_seed{seed}_{digest}.json"
        if not path.exists():
            if not self.trains:
                return None
            self._write(path, settings, side, lr, seed)
        row = json.loads(path.read_text())
        return row if row["val_loss"] is not None else {**row, "val_loss": math.inf}

    def _write(self, path: Path, settings: dict[str, Any], side: Side, lr: float, seed: int) -> None:
        began = time.monotonic()
        model = side.train(lr, seed)
        seconds = time.monotonic() - began
        loss = math.nan if model is None else loss_of(model, side)
        row = {
            "val_loss": loss if math.isfinite(loss) else None,
            "n_params": side.n_params(),
            "seconds": round(seconds, 1),
            "settings": settings,
        }
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(row, indent=1) + "\n")
        aside.replace(path)
        print(f"{side.title}, rate {lr:g}, seed {seed}: {loss:.4f} nats per token, {seconds:.0f} s", flush=True)


def check_counts(sides: dict[str, Side]) -> None:
    """The two sides of a comparison have the same number of parameters but for half a per cent."""
    for ours, theirs, _ in bars.QUALITY.values():
        if ours in sides and theirs in sides:
            a, b = sides[ours].n_params(), sides[theirs].n_params()
            assert abs(a / b - 1) <= ALIKE, f"{ours} has {a:,} parameters and {theirs} {b:,}"


def measured(sides: dict[str, Side], runs: Runs, seeds: int) -> Iterator[dict[str, dict[str, Any]]]:
    """What is known of each side, after each round: the rates from the middle outwards, then the fresh seeds."""
    found: dict[str, dict[str, Any]] = {}

    def look(name: str, lr: float, seed: int, kind: str) -> None:
        if (row := runs.row(name, sides[name], lr, seed)) is not None:
            new = {"title": sides[name].title, "n_params": row["n_params"], "search": {}, "fresh": {}}
            found.setdefault(name, new)[kind][seed if kind == "fresh" else lr] = row["val_loss"]

    outwards = [
        sorted(side.rates, key=lambda lr, mid=side.rates[2]: abs(math.log(lr / mid))) for side in sides.values()
    ]
    for rates in zip(*outwards, strict=True):
        for name, lr in zip(sides, rates, strict=True):
            look(name, lr, SEARCH_SEED, "search")
        yield found
    for name, row in found.items():
        if len(row["search"]) == len(sides[name].rates):  # no rate is chosen while one is missing
            row["lr"] = min(row["search"], key=row["search"].__getitem__)
    for seed in range(SEARCH_SEED + 1, SEARCH_SEED + 1 + seeds):
        for name in [name for name in found if "lr" in found[name]]:
            look(name, found[name]["lr"], seed, "fresh")
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; without it its side is left out")
    parser.add_argument("--seeds", type=int, default=2, help="fresh ones, at the chosen rate")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {SHAPE.tokens_per_step:,} tokens")
    parser.add_argument("--only", choices=list(bars.QUALITY), help="one of the two comparisons")
    parser.add_argument("--show", action="store_true", help="the table of what is there; nothing is trained")
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    OUT.mkdir(exist_ok=True)
    wanted = [name for key, pair in bars.QUALITY.items() if given.only in (None, key) for name in pair[:2]]
    if given.nanogpt:
        NanoGPT.load(given.nanogpt.resolve())
    elif "nanogpt" in wanted and not given.show:
        print("nanoGPT: not measured: --nanogpt PATH names a checkout of it", file=sys.stderr)
        wanted.remove("nanogpt")
    data = load_text()
    sides = {name: SIDES[name](SHAPE, given.steps, data) for name in wanted}
    if not given.show:
        check_counts(sides)
    about = {
        "machine": measure.machine("cpu"),
        "steps": given.steps,
        "tokens": given.steps * SHAPE.tokens_per_step,
        "train_tokens": len(data.train),
        "vocab": data.vocab_size,
        "d_model": SHAPE.d_model,
    }
    runs = Runs(OUT / "quality", train=not given.show)
    for found in measured(sides, runs, given.seeds):
        (OUT / "quality.json").write_text(json.dumps({**about, "sides": found}, indent=1) + "\n")
    result = json.loads((OUT / "quality.json").read_text())
    print(report.quality_section(result), bars.bars_table(list(bars.quality_bars(result))), sep="\n\n")


if __name__ == "__main__":
    main()
