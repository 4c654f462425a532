"""How large a vocabulary pays, in bits per byte of the same text?

The runs: ``lmablate train sweeps=vocab_size``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import run
from lmablate.analysis.study_figures import over_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "vocab_size"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Bits per byte over the best by the number of tokens, since losses per token cannot be compared."""
    size = "vocabulary, tokens"
    return over_size(runs, SWEEP, lambda row: float(row["model.vocab_size"]), size, "val_bpb", "Bits per byte of text")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.vocab_size RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
