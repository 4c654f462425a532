"""What a run is asked to measure, and whether a finished one has it. Imports no torch: plans and sweeps ask this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmablate.core.settings import Settings

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

PREFIX = "diag/"  # of every number's name in history.jsonl
TOLD = "diagnostics"  # what a record with such numbers was asked for, as JSON
Positive = Annotated[int, Field(gt=0)]
Measure = Literal["gradients", "updates", "activations", "ffn", "attention", "logits", "norms", "experts"]


class DiagnosticsSettings(Settings):
    """`measures` are taken before training, every `every` steps and after the last one; those of activations read
    `sequences` texts of the validation span. No measures: off, and then the other two are null."""

    measures: list[Measure]
    every: Positive | None
    sequences: Positive | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for key in ("every", "sequences"):
            value = getattr(self, key)
            if not self.measures and value is not None:
                raise ValueError(
                    f"diagnostics.{key}={value} has no effect where nothing is measured: add diagnostics=standard, "
                    "or name diagnostics.measures"
                )
            if self.measures and value is None:
                raise ValueError(
                    f"diagnostics.{key} needs a number beside diagnostics.measures: add diagnostics=standard"
                )
        return self

    @property
    def on(self) -> bool:
        return bool(self.measures)

    def due(self, step: int, steps: int) -> bool:
        """Whether `step` of a run of `steps` is measured; 0 is before training."""
        return self.every is not None and (step % self.every == 0 or step == steps)


def requested_diagnostics(cfg: RunConfig) -> DiagnosticsSettings | None:
    """What a run is asked for, of what its model has; None where that is nothing."""
    asked = cfg.diagnostics
    if asked is None:
        return None
    if cfg.ffn is None and "experts" in asked.measures:
        asked = asked.model_copy(update={"measures": [word for word in asked.measures if word != "experts"]})
    return asked if asked.on else None


def covers(have: Mapping[str, Any] | None, asked: DiagnosticsSettings | None) -> bool:
    """Whether measurements taken as `have` says hold all that `asked` wants, at the same steps and on the same texts."""
    if asked is None:
        return True
    if not have:
        return False
    return (
        set(asked.measures) <= set(have["measures"])
        and (asked.every or 0) % have["every"] == 0
        and asked.sequences == have["sequences"]
    )


def merge(first: RunConfig, second: RunConfig) -> RunConfig | None:
    """Of two configurations of one run, the one whose diagnostics hold the other's; None if neither does."""
    one, two = requested_diagnostics(first), requested_diagnostics(second)
    if covers(None if one is None else one.model_dump(), two):
        return first
    return second if covers(None if two is None else two.model_dump(), one) else None


def measured_until(history: Path, step: int, asked: DiagnosticsSettings, steps: int) -> bool:
    """Whether a history holds what `asked` wants at every step up to `step` of a run of `steps`."""
    seen = set()
    for line in history.read_bytes().splitlines() if history.exists() else ():
        try:
            record = json.loads(line)
            if TOLD in record and covers(json.loads(record[TOLD]), asked):
                seen.add(record["step"])
        except (ValueError, TypeError, KeyError):  # torn by a kill
            continue
    return all(at in seen for at in range(step + 1) if asked.due(at, steps))
