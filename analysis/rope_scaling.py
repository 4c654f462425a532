"""Can a model read four times its training length after a short fine-tune?

The runs: ``lmablate train sweeps=rope_scaling``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of
from lmablate.analysis._style import run
from lmablate.analysis.study_figures import against_baseline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "rope_scaling"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Each rule against RoPE as it was, all fine-tuned alike and read at the new length."""
    return against_baseline(runs[arm_of(runs) != "rope"], SWEEP, "extended")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.rope_scaling RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
