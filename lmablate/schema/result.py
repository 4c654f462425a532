"""Define the result of a run: the content of result.json, its validation, and the columns of load_runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Status = Literal["completed", "diverged", "failed"]
CHECKSUM = "checksum"  # of result.json, over all its other keys
STATUSES: tuple[str, ...] = get_args(Status)


class RunResult(BaseModel):
    """The result of one run. Measures of an objective are additional keys (``extra``). Fields are attributes; every
    key, also of the objective, can be read as of a mapping."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    run_id: str = Field(description="hash of the resolved science; the name of the run's folder")
    science_version: int = Field(description="of the code; older rows are stale")
    status: Status = Field(description="completed, diverged or failed")
    choices: dict[str, str] = Field(description="the option of each axis; a column each")
    seed: int | None = Field(description="both seeds, where they are equal")
    n_params: int = Field(description="all parameters")
    n_params_non_embedding: int = Field(description="parameters without token and position tables and an untied head")
    flops_per_token: int = Field(
        description="matrix products of training, forward and backward; causal attention counts the keys it reads"
    )
    tokens: int = Field(description="tokens of training text seen")
    epochs: float | None = Field(
        None,
        description="these tokens over the training tokens of the text; null where every example is new",
    )
    tokens_per_param: float | None = Field(
        None,
        description="training tokens of the whole run, and of the run its weights come from, for each non-embedding parameter that "
        "a token meets",
    )
    train_loss: float | None = Field(description="nats per target, mean over the last logging interval")
    init_val_loss: float | None = Field(description="val_loss before training")
    val_loss: float | None = Field(
        description="nats per token on the fixed validation text; null where the run diverged"
    )
    val_bpb: float | None = Field(
        description="bits per UTF-8 byte of that text, end tokens paid for: comparable over tokenizers"
    )
    diverged_at_step: int | None = Field(description="the step at which it diverged")
    tokens_per_second: float | None = Field(description="of training, evaluation left out")
    wall_seconds: float | None = Field(description="seconds of training, evaluation left out")
    peak_memory_bytes: int | None = Field(description="of the process, or of the GPU")
    numerics: dict[str, Any] = Field(
        description="what may move the last bits: device, precision, compiled, gang, threads"
    )
    provenance: dict[str, Any] = Field(description="host, time, versions, overrides")
    val_accuracy: float | None = Field(None, description="share of right answers, of a task")
    val_accuracy_by_length: dict[str, float | None] | None = Field(
        None, description="the same by the length of further examples; null where the model cannot read so far"
    )
    init_seed: int | None = Field(None, description="seed of the initial weights")
    data_seed: int | None = Field(None, description="seed of the order of the data")
    n_params_active: int | None = Field(None, description="parameters that a token meets; fewer than all with experts")
    kv_bytes_per_token: int | None = Field(
        None, description="keys and values of a full context in bf16, over its tokens"
    )
    targets_per_token: float | None = Field(None, description="mean share of tokens that are targets")
    flops_counted: list[str] | None = Field(
        None, description="axes whose FLOPs torch counted, since their class does not state them"
    )
    sweep: str | None = Field(None, description="the stored sweep that asked for the run")
    arm: str | None = Field(None, description="the arm of a study")
    stage: str | None = Field(None, description="the stage of a study")
    solved: str | None = Field(None, description="what a budget solved, in words")
    trunk: str | None = Field(None, description="what runs of schedule=wsd_branches share")
    code: dict[str, str] | None = Field(
        None,
        description="fingerprint of each module that is not as shipped: your own parts, and files of lmablate that you changed",
    )
    data: dict[str, Any] = Field(
        {}, description="fingerprints and sizes of text and tokenizer, and the unigram model's loss on the same text"
    )
    config: dict[str, Any] = Field({}, description="the resolved configuration; a column each, with dotted names")
    diagnostics: dict[str, Any] | None = Field(None, description="what was measured during training")

    def __getitem__(self, name: str) -> Any:
        if name in type(self).model_fields:
            return getattr(self, name)
        return (self.model_extra or {})[name]  # an attribute of the class is no column

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field or extra of this name, or `default`."""
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> Iterator[str]:
        """Yield the names of all fields and extras."""
        return (name for name, _ in self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield every name with its value."""
        return iter(self)


REQUIRED = tuple(name for name, field in RunResult.model_fields.items() if field.is_required())
# The first columns of load_runs: those of every row, and those that distinguish runs of one arm.
LEADING = tuple(
    name
    for name in (*REQUIRED, "tokens_per_param", "val_accuracy", "init_seed", "data_seed", "sweep")
    if name not in ("choices", "provenance")
)


def _of_type(*types: Any) -> tuple[str, ...]:
    return tuple(name for name in LEADING if RunResult.model_fields[name].annotation in types)


WHOLE, WHOLE_OR_NONE, NUMBERS = _of_type(int), _of_type(int | None), _of_type(float | None)


def parse_result(row: Any) -> tuple[RunResult | None, str]:
    """Validate the content of a result.json. Returns the result and "", or None and the problem."""
    if not isinstance(row, dict):
        return None, "not a JSON object"
    written = row.pop(CHECKSUM, None)  # rows of the past and of archives have none
    try:
        result = RunResult.model_validate(row)
    except ValidationError as error:
        return None, _problem(error, row)
    if written is not None and written != checksum(row):
        return None, "its checksum does not fit: damaged, or changed by hand"
    return result, ""


def checksum(row: dict[str, Any]) -> str:
    """Return a hash of the content, independent of layout and key order."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _problem(error: ValidationError, row: dict[str, Any]) -> str:
    found = error.errors(include_url=False, include_context=False)
    if missing := [str(one["loc"][0]) for one in found if one["type"] == "missing"]:
        return f"lacks {', '.join(missing)}"
    wrong = list(dict.fromkeys(str(one["loc"][0]) for one in found))
    if "status" in wrong:
        return f"status is {row['status']!r}, not one of {', '.join(STATUSES)}"
    if "choices" in wrong:
        return "choices is not a mapping from axis to option word"
    return f"wrong type: {', '.join(f'{key}={row[key]!r}' for key in wrong)}"


def markdown_table() -> str:
    """Return the fields as a table of Markdown, for docs/reference/results.md."""
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in RunResult.model_fields.items():
        kind = str(field.annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
        kind = "text" if kind == "str" else kind.replace("Literal['completed', 'diverged', 'failed']", "text")
        lines.append(f"| `{name}` | {kind.replace(' | ', ' or ')} | {field.description} |")
    return "\n".join(lines) + "\n"
