"""What does weight decay do to the training loss, and does it need a decaying rate?

The runs: ``lmablate train sweeps=weight_decay``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import run
from lmablate.analysis.study_figures import against_baseline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "weight_decay"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves, and the training loss of each strength against none under the same schedule."""
    return against_baseline(runs, SWEEP, "wd 0", metric="train_loss", what="final training loss")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.weight_decay RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
