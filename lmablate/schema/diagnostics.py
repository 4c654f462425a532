"""Define the diagnostics of a run, and compare them with those of a finished run. Plans need it fast: no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmablate.core.settings import Settings

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

PREFIX = "diag/"  # prefix of every diagnostic in history.jsonl
SETTINGS_KEY = "diagnostics"  # key in records with diagnostics: their settings as JSON
Positive = Annotated[int, Field(gt=0)]
Measure = Literal["gradients", "updates", "activations", "ffn", "attention", "logits", "norms", "experts"]


class DiagnosticsSettings(Settings):
    """The diagnostics of a run. `measures` are taken before training, every `every` steps and after the last one.
    Measures of activations read `sequences` texts of the validation span. Without measures, the other two are null."""

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
        """Return whether `step` of a run of `steps` is measured; 0 is before training."""
        return self.every is not None and (step % self.every == 0 or step == steps)


def requested_diagnostics(cfg: RunConfig) -> DiagnosticsSettings | None:
    """Return the requested diagnostics that apply to the run's model, or None."""
    requested = cfg.diagnostics
    if requested is None:
        return None
    if cfg.ffn is None and "experts" in requested.measures:
        requested = requested.model_copy(
            update={"measures": [word for word in requested.measures if word != "experts"]}
        )
    return requested if requested.on else None


def covers(have: Mapping[str, Any] | None, requested: DiagnosticsSettings | None) -> bool:
    """Return whether diagnostics `have` contain the `requested` ones, at the same steps and on the same texts."""
    if requested is None:
        return True
    if not have:
        return False
    return (
        set(requested.measures) <= set(have["measures"])
        and (requested.every or 0) % have["every"] == 0
        and requested.sequences == have["sequences"]
    )


def merge(first: RunConfig, second: RunConfig) -> RunConfig | None:
    """Return the one of two configurations of a run whose diagnostics cover the other's, or None."""
    one, two = requested_diagnostics(first), requested_diagnostics(second)
    if covers(None if one is None else one.model_dump(), two):
        return first
    return second if covers(None if two is None else two.model_dump(), one) else None


def measured_until(history: Path, step: int, requested: DiagnosticsSettings, steps: int) -> bool:
    """Return whether a history has the `requested` diagnostics at every step up to `step` of a run of `steps`."""
    seen = set()
    for line in history.read_bytes().splitlines() if history.exists() else ():
        try:
            record = json.loads(line)
            if SETTINGS_KEY in record and covers(json.loads(record[SETTINGS_KEY]), requested):
                seen.add(record["step"])
        except (ValueError, TypeError, KeyError):  # a line torn by a kill
            continue
    return all(at in seen for at in range(step + 1) if requested.due(at, steps))
