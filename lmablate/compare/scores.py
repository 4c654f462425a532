"""Score the same tokens under two runs, through the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmablate.core.axes import default_choices
from lmablate.core.errors import ConfigError
from lmablate.data.tasks.store import TaskData

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.evaluate.scoring import Scored
    from lmablate.evaluate.text import Text
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

PASS_TOKENS = 4096
_SILENT = ("runtime.", "results_dir=", "hydra")  # overrides that change no number


class Pair(NamedTuple):
    """A `text` scored under the runs a and b, token by token.

    `window`: tokens read at a time. `differences`: the options of each run that the other does not have. `data`: of run a.
    """

    names: tuple[str, str]
    differences: tuple[str, str]
    text: Text
    window: int
    a: Scored
    b: Scored
    data: TokenData


class _Run(NamedTuple):
    name: str
    model: TransformerLM
    cfg: RunConfig
    data: TokenData


def score_pair(run_a: Path, run_b: Path, paths: str | None, text_field: str, device: str) -> Pair:
    """Return the scores of the validation text, or of the files of `paths`, under both runs.

    Windows have the shorter of the two training lengths and do not overlap, so that both runs have read the same at every token.
    Raises ConfigError for runs that cannot be compared."""
    from lmablate.evaluate.text import read_text, validation_text

    a, b = _load(run_a, device), _load(run_b, device)
    _check(a, b, validation=paths is None)
    text = validation_text(a.data) if paths is None else read_text(paths, a.data, text_field)
    window = min(a.cfg.model.context_length, b.cfg.model.context_length)
    differences = _differences(a.cfg, b.cfg)
    return Pair((a.name, b.name), differences, text, window, _score(a, text, window), _score(b, text, window), a.data)


def _load(run_dir: Path, device: str) -> _Run:
    from lmablate.runs.evaluate_run import check_finished, ready
    from lmablate.runs.load import load_run

    check_finished(run_dir)
    model, cfg, data = load_run(run_dir)
    return _Run(run_dir.absolute().name, ready(model, cfg, device), cfg, data)


def _check(a: _Run, b: _Run, *, validation: bool) -> None:
    for run in (a, b):
        if isinstance(run.data, TaskData):
            raise ConfigError(
                f"{run.name}: data={run.cfg.choices.get('data')} is a task, whose tokens are no text: compare val_accuracy in the results"
            )
        if run.cfg.objective.kind != "causal":
            raise ConfigError(
                f"{run.name}: objective={run.cfg.objective.kind} reads more than what comes before a token, so its nats a token are "
                "of another question: compare runs of objective=causal"
            )
    if a.data.tokenizer_fingerprint != b.data.tokenizer_fingerprint:
        both = " and ".join(f"{run.cfg.choices.get('tokenizer')} with {run.data.vocab_size:,} ids" for run in (a, b))
        raise ConfigError(
            f"{a.name} and {b.name} have different tokenizers ({both}), so that no token of one is a token of the other: compare them "
            "in bits per byte, with lmablate evaluate RUN_A RUN_B --data FILE"
        )
    if validation and a.data.fingerprint != b.data.fingerprint:
        raise ConfigError(
            f"{a.name} and {b.name} were trained on different texts, and their validation texts differ: name one with --data FILE"
        )


def _differences(a: RunConfig, b: RunConfig) -> tuple[str, str]:
    """Return what differs between the two: options, then the seed and other overrides."""
    known = default_choices()
    ours, theirs = a.choices, b.choices
    axes = sorted(
        axis for axis in {*ours, *theirs} if ours.get(axis, known.get(axis)) != theirs.get(axis, known.get(axis))
    )
    both = []
    for own, other, choices in ((a, b, ours), (b, a, theirs)):
        parts = [f"{axis}={choices.get(axis, known.get(axis))}" for axis in axes]
        acting = (one for one in own.overrides if not one.lstrip("+").startswith(_SILENT))
        parts += [one for one in acting if one not in other.overrides and one.split("=")[0] not in axes]
        both.append(" ".join(parts))
    return both[0], both[1]


def _score(run: _Run, text: Text, window: int) -> Scored:
    from lmablate.evaluate.scoring import score

    device = run.model.embedding.weight.device.type
    scored = score(
        run.model,
        text.tokens,
        first=run.data.eot_id,
        length=window,
        stride=window,
        pass_tokens=PASS_TOKENS,
        device=device,
        what=f"{run.name}, passes",
    )
    if not np.isfinite(scored.nats).all():
        raise ConfigError(f"{run.name}: its loss on {text.name} is not finite, so that there is nothing to compare")
    return scored
