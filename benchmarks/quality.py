"""How low the loss ends, against others at equal parameters, text, tokens and tokenizer.

``python benchmarks/quality.py [--nanogpt PATH] [--seeds 2] [--steps 1900] [--show]``: (a) GPT-2's architecture under our recipe against
nanoGPT's own train.py, for which PATH is a checkout of it; (b) our default against transformers' Llama in our trainer. Each side's rate
is chosen among five on one seed, then trained again from fresh seeds.

Every run becomes a file of benchmarks/out/quality/ as it ends, and runs that are there are not trained again: an interrupted benchmark
goes on with the same command. benchmarks/out/quality.json is what report.py reads. About two hours on one core.
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

from benchmarks import bars, measure, tables  # noqa: E402
from benchmarks.quality_sides import SHAPE, SIDES, NanoGPT, Side, load_text, loss_of  # noqa: E402

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
SEARCH_SEED = 0  # the fresh seeds are those after it
STEPS = 1900
ALIKE = 0.005  # by which the parameters of two sides may differ


class Runs:
    """The losses of finished runs in a folder, a file each; with `train`, a missing one is trained first."""

    def __init__(self, folder: Path, *, train: bool) -> None:
        self.folder, self.trains = folder, train
        folder.mkdir(parents=True, exist_ok=True)

    def loss(self, name: str, side: Side, lr: float, seed: int) -> float | None:
        """Nats per token; inf where the run diverged, None where it is not there."""
        settings = {"side": name, "steps": side.steps, **side.settings(lr, seed)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = self.folder / f"{name}_{side.steps}_lr{lr:g}_seed{seed}_{digest}.json"
        if not path.exists():
            if not self.trains:
                return None
            self._write(path, settings, side, lr, seed)
        loss = json.loads(path.read_text())["val_loss"]
        return math.inf if loss is None else loss

    def _write(self, path: Path, settings: dict[str, Any], side: Side, lr: float, seed: int) -> None:
        began = time.monotonic()
        model = side.train(lr, seed)
        seconds = time.monotonic() - began
        loss = math.nan if model is None else loss_of(model, side)
        row = {"val_loss": loss if math.isfinite(loss) else None, "seconds": round(seconds, 1), "settings": settings}
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(row, indent=1) + "\n")
        aside.replace(path)
        print(f"{side.title}, rate {lr:g}, seed {seed}: {loss:.4f} nats per token, {seconds:.0f} s", flush=True)


def check_counts(sides: dict[str, Side]) -> dict[str, int]:
    """The parameters of each side, which the two of a comparison share but for half a per cent."""
    counts = {name: side.n_params() for name, side in sides.items()}
    for ours, theirs, _ in bars.QUALITY.values():
        if ours in counts and theirs in counts:
            a, b = counts[ours], counts[theirs]
            assert abs(a / b - 1) <= ALIKE, f"{ours} has {a:,} parameters and {theirs} {b:,}"
    return counts


def measured(sides: dict[str, Side], runs: Runs, seeds: int) -> Iterator[dict[str, dict[str, Any]]]:
    """What is known of each side, after each round: the rates from the middle outwards, then the fresh seeds."""
    found: dict[str, dict[str, Any]] = {name: {"search": {}, "fresh": {}} for name in sides}
    middle = RATES[len(RATES) // 2]
    for lr in sorted(RATES, key=lambda rate: abs(math.log(rate / middle))):
        for name, side in sides.items():
            if (loss := runs.loss(name, side, lr, SEARCH_SEED)) is not None:
                found[name]["search"][lr] = loss
        yield found
    for name in sides:
        search = found[name]["search"]
        if len(search) == len(RATES):  # no rate is chosen while one is missing
            found[name]["lr"] = min(search, key=search.__getitem__)
    for seed in range(SEARCH_SEED + 1, SEARCH_SEED + 1 + seeds):
        for name, side in sides.items():
            lr = found[name].get("lr")
            if lr is not None and (loss := runs.loss(name, side, lr, seed)) is not None:
                found[name]["fresh"][seed] = loss
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
    elif "nanogpt" in wanted:
        print("nanoGPT: not measured: --nanogpt PATH names a checkout of it", file=sys.stderr)
        wanted.remove("nanogpt")
    data = load_text()
    sides = {name: SIDES[name](SHAPE, given.steps, data) for name in wanted}
    counts = check_counts(sides)
    about = {
        "machine": measure.machine("cpu"),
        "steps": given.steps,
        "tokens": given.steps * SHAPE.tokens_per_step,
        "train_tokens": len(data.train),
        "vocab": data.vocab_size,
    }
    runs = Runs(OUT / "quality", train=not given.show)
    for found in measured(sides, runs, given.seeds):
        rows = {name: {"title": side.title, "n_params": counts[name], **found[name]} for name, side in sides.items()}
        (OUT / "quality.json").write_text(json.dumps({**about, "sides": rows}, indent=1) + "\n")
    result = json.loads((OUT / "quality.json").read_text())
    print(tables.quality_table(result), bars.bars_table(list(bars.quality_bars(result))), sep="\n\n")


if __name__ == "__main__":
    main()
