"""What a report says of finished runs, before it draws anything: verdicts, controls, ladders and forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lmablate.claims.report_verdicts import verdicts
from lmablate.report.controls import controls
from lmablate.scaling.ladder_summary import summaries

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
VERDICTS_SCHEMA = 4  # of verdicts.json


class Judgement(NamedTuple):
    """The parts of verdicts.json that rest on rows and studies alone (docs/reference/verdicts_json.md)."""

    claims: list[Row]
    controls: list[Row]
    ladders: list[Row]

    @property
    def forecasts(self) -> list[Row]:
        """Return the forecasts of all ladders."""
        return [row for ladder in self.ladders for row in ladder["forecasts"]]


def judgement(every: pd.DataFrame, history: pd.DataFrame, studies: Sequence[Row]) -> Judgement:
    """Return what finished runs show; `every` from claims.report_verdicts.evidence, `history` from load_history."""
    claims = verdicts(every, history, studies)
    return Judgement(claims, controls(every, claims), summaries(every, studies))
