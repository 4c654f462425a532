"""Do the controls come out at this size?

The runs: ``lmablate train sweeps=controls``.
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

SWEEP = "controls"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Each control against the baseline but the text without order, which is another text; `runs` as from load_runs or study_runs."""
    return against_baseline(runs[runs["arm"] != "shuffled tokens"], SWEEP, "rope")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.controls RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
