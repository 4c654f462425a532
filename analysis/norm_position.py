"""Where should the norm stand, and which placement needs warmup?

The runs: ``lmablate train sweeps=norm_position``.
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

SWEEP = "norm_position"
BASELINE = "pre, warmup_fraction "  # and the share of its steps


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves, and each placement against pre-norm with the longest warmup; `runs` as from load_runs or study_runs."""
    shares = {float(arm.removeprefix(BASELINE)) for arm in arm_of(runs) if arm.startswith(BASELINE)}
    return against_baseline(runs, SWEEP, f"{BASELINE}{max(shares, default=0.2)}")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.norm_position RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
