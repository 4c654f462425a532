"""Both runs read the same tokens through the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmablate.core.axes import default_choices
from lmablate.core.errors import ConfigError
from lmablate.data.tasks.store import SkillData

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.evaluate.scoring import Scored
    from lmablate.evaluate.text import Text
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

PASS_TOKENS = 4096
_SILENT = ("runtime.", "results_dir=", "hydra")  # words that change no number


class Pair(NamedTuple):
    """`text` under the runs a and b: their scores, token by token. `window`: how many tokens they read at a time; `words`:
    what each run's options have that the other's have not; `data`: of run a."""

    names: tuple[str, str]
    words: tuple[str, str]
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
    """Score the validation text, or the files of `paths`, under both runs. Raises ConfigError for runs that cannot meet.

    Windows have the shorter of the two training lengths and do not overlap: at every token both runs have read the same.
    """
    from lmablate.evaluate.text import read_text, validation_text

    a, b = _load(run_a, device), _load(run_b, device)
    _check(a, b, validation=paths is None)
    text = validation_text(a.data) if paths is None else read_text(paths, a.data, text_field)
    window = min(a.cfg.model.context_length, b.cfg.model.context_length)
    words = _words(a.cfg, b.cfg)
    return Pair((a.name, b.name), words, text, window, _score(a, text, window), _score(b, text, window), a.data)


def _load(run_dir: Path, device: str) -> _Run:
    from lmablate.runs.evaluate_run import check_finished, ready
    from lmablate.runs.load import load_run

    check_finished(run_dir)
    model, cfg, data = load_run(run_dir)
    return _Run(run_dir.absolute().name, ready(model, cfg, device), cfg, data)


def _check(a: _Run, b: _Run, *, validation: bool) -> None:

    for run in (a, b):
        if isinstance(run.data, SkillData):
            raise ConfigError(
                f"{run.name}: data={run.cfg.choices.get('data')} is a task, whose tokens are no text: compare val_accuracy in the results"
            )
        if run.cfg.objective.kind != "causal":
            raise ConfigError(
                f"{run.name}: objective={run.cfg.objective.kind} reads more than what comes before a token, so its nats a token are "
                "of another question: compare runs of objective=causal"
            )
    if a.data.tokenizer_fingerprint != b.data.tokenizer_fingerprint:
        said = " and ".join(f"{run.cfg.choices.get('tokenizer')} with {run.data.vocab_size:,} ids" for run in (a, b))
        raise ConfigError(
            f"{a.name} and {b.name} have different tokenizers ({said}), so that no token of one is a token of the other: compare them "
            "in bits per byte, with python -m lmablate.evaluate RUN_A RUN_B --data FILE"
        )
    if validation and a.data.fingerprint != b.data.fingerprint:
        raise ConfigError(
            f"{a.name} and {b.name} were trained on different texts, and their validation texts differ: name one with --data FILE"
        )


def _words(a: RunConfig, b: RunConfig) -> tuple[str, str]:
    """What tells the two apart: options, then the seed and the keys of the command line."""
    known = default_choices()
    ours, theirs = a.choices, b.choices
    axes = sorted(
        axis for axis in {*ours, *theirs} if ours.get(axis, known.get(axis)) != theirs.get(axis, known.get(axis))
    )
    both = []
    for own, other, choices in ((a, b, ours), (b, a, theirs)):
        words = [f"{axis}={choices.get(axis, known.get(axis))}" for axis in axes]
        told = (word for word in own.overrides if not word.lstrip("+").startswith(_SILENT))
        words += [word for word in told if word not in other.overrides and word.split("=")[0] not in axes]
        both.append(" ".join(words))
    return both[0], both[1]


def _score(run: _Run, text: Text, window: int) -> Scored:
    from lmablate.evaluate.lengths import precision
    from lmablate.evaluate.scoring import score

    device = run.model.embedding.weight.device.type
    with precision(run.cfg, run.model):
        found = score(
            run.model,
            text.tokens,
            first=run.data.eot_id,
            length=window,
            stride=window,
            pass_tokens=PASS_TOKENS,
            device=device,
            what=f"{run.name}, passes",
        )
    if not np.isfinite(found.nats).all():
        raise ConfigError(f"{run.name}: its loss on {text.name} is not finite, so that there is nothing to compare")
    return found
