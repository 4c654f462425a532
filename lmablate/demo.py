"""``make demo``: four models, two seeds each, compared on English text, ending with a table, figures and a page."""

from __future__ import annotations

import sys
from pathlib import Path

from lmablate.errors import in_words

RESULTS, PAGE = Path("demo/results"), Path("demo/report")
SIZE = ("trainer.steps=200", "runtime.wandb=disabled", "runtime.evaluations=8")


@in_words
def main() -> int:
    from lmablate.cli import main as front_door
    from lmablate.report import main as report
    from lmablate.train import train

    words = ["sweeps=norm_and_activation", *SIZE, f"results_dir={RESULTS}", *sys.argv[1:]]
    print("python -m lmablate.train " + " ".join(words), flush=True)
    if code := front_door("lmablate.train", "the demo", train, words):
        return code
    print(f"python -m lmablate.report {RESULTS} --out {PAGE}", flush=True)
    return report([str(RESULTS), "--out", str(PAGE)])


if __name__ == "__main__":
    sys.exit(main())
