"""What the notebooks ask of a results folder: a question's figure and the verdicts on its claims, or the command that is missing."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import arm_colours
from lmablate.core.errors import ConfigError
from lmablate.schema.sweeps import sweep_claims, sweep_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Question", "Shown", "arm_colours", "results_folder"]
COLUMNS = ["claim", "verdict", "test", "effect", "low", "high", "unit", "n", "published_effect", "reason"]


def results_folder() -> str:
    """The results directory of a notebook: $LMABLATE_RESULTS, else the nearest `results` in its folder or up to three above it."""
    if asked := os.environ.get("LMABLATE_RESULTS"):
        return asked
    here = Path.cwd()
    found = (folder / "results" for folder in (here, *here.parents[:3]))
    return next((str(path) for path in found if path.is_dir()), "results")


class Shown:
    """A figure as a notebook's answer: drawn, whatever backend the notebook has."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        from lmablate.analysis._style import style

        buffer = io.BytesIO()
        with style():
            self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


class Question:
    """One stored sweep on one results folder. In a notebook it shows itself. Raises ConfigError for a sweep that is not stored."""

    def __init__(self, results_dir: str, sweep: str) -> None:
        if sweep_question(sweep) is None:
            raise ConfigError(
                f"sweeps={sweep}: no such stored sweep; write sweeps/{sweep}.yaml in the folder that you train from"
            )
        self.results_dir, self.sweep = results_dir, sweep
        self.command = f"lmablate train sweeps={sweep} scale=laptop results_dir={results_dir}"

    @property
    def runs(self) -> pd.DataFrame:
        """Its finished runs, a row for each use in the study; empty without any."""
        from lmablate.analysis._studies import load

        return load(self.results_dir, self.sweep) if Path(self.results_dir).is_dir() else pd.DataFrame()

    def figure(self) -> Shown:
        """The figure of ``analysis/<sweep>.py``; without runs it says which command trains them."""
        from lmablate.analysis._style import message

        runs = self.runs
        if runs.empty:
            return Shown(message(f"No finished runs of sweeps={self.sweep} in {self.results_dir} yet: {self.command}"))
        return Shown(importlib.import_module(f"lmablate.analysis.{self.sweep}").figure(runs))

    def verdicts(self) -> pd.DataFrame:
        """A row a test of each claim that the sweep names, on its own finished runs."""
        from lmablate.claims import judge
        from lmablate.claims.report_verdicts import evidence
        from lmablate.claims.table import verdict_table
        from lmablate.results import load_runs
        from lmablate.results.studies import load_studies

        asked = list(sweep_claims(self.sweep))
        if not asked or self.runs.empty:
            return pd.DataFrame(columns=COLUMNS)
        studies = list(load_studies(self.results_dir).values())
        found = judge(evidence(load_runs(self.results_dir), studies), studies=studies, requested={self.sweep: asked})
        return verdict_table([claim for claim in found if claim["study"] == self.sweep and claim["id"] in asked])[
            COLUMNS
        ]

    def _repr_html_(self) -> str:
        from html import escape

        title = f"<b>{escape(str(sweep_question(self.sweep)))}</b><br><code>{escape(self.command)}</code>"
        table = self.verdicts()
        return title + (table.to_html(index=False, escape=True, float_format="{:.2f}".format) if len(table) else "")
