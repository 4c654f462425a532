"""Define the evaluation of a finished run on one text: the content of its file, and the columns of load_evaluations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1
MEASURES = ("tokens", "nats_per_token", "bits_per_byte", "accuracy", "ece")


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class ScoredText(_Part):
    """The text of an evaluation."""

    name: str
    fingerprint: str
    tokens: int
    bytes: int


class PositionBin(_Part):
    """The tokens at positions ``[start, end)`` of their window, and their mean loss."""

    start: int
    end: int
    tokens: int
    nats_per_token: float | None


class WindowScores(_Part):
    """The scores of a text in windows of `length` tokens, each `stride` tokens after the one before."""

    length: int
    stride: int
    tokens: int
    nats_per_token: float | None
    bits_per_byte: float | None
    accuracy: float | None
    ece: float | None = Field(description="expected calibration error of the most likely token, 0 to 1")
    calibration: list[dict[str, Any]] = []
    positions: list[PositionBin]


class EvaluationFile(_Part):
    """An evaluation of one text under one set of windows and changes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str
    text: ScoredText
    changes: list[str] = Field(description="overrides of the evaluation, such as posemb=rope_yarn")
    train_length: int = Field(description="the context length of training, in tokens")
    numerics: dict[str, str] = {}
    results: list[WindowScores]
