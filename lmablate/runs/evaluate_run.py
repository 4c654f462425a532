"""Evaluate a run, at the end of its training or later from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.data import TokenData
from lmablate.evaluate.changes import changed, rebuilt
from lmablate.evaluate.lengths import at_lengths
from lmablate.evaluate.reach import check_lengths
from lmablate.evaluate.ready import ready
from lmablate.evaluate.text import Text, read_text, validation_text
from lmablate.model import build_model
from lmablate.model.transformer import TransformerLM
from lmablate.runs.evaluation_files import write_evaluation
from lmablate.runs.load import load_run
from lmablate.runs.prepared import PreparedRun
from lmablate.runs.provenance import device_name
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.evaluation import EvaluationFile, ScoredText, WindowScores
from lmablate.schema.evaluation_windows import KEY_PREFIX, Protocol, protocols, requested_protocols
from lmablate.schema.run_config import RunConfig
from lmablate.training.checkpoint import checkpoints, load_weights


def evaluation(
    model: TransformerLM,
    cfg: RunConfig,
    text: Text,
    eot_id: int,
    plan: Sequence[Protocol],
    *,
    run_id: str,
    train_length: int,
    changes: Sequence[str] = (),
    watched: bool = False,
) -> EvaluationFile:
    """Evaluate a model on `text` under every protocol of `plan`. `watched` shows progress on stderr."""
    name = run_id if watched else ""
    results = at_lengths(model, cfg, text, eot_id, plan, train_length=train_length, watched=name)
    device = model.embedding.weight.device.type
    scored = ScoredText(name=text.name, fingerprint=text.fingerprint, tokens=len(text.tokens), bytes=text.n_bytes)
    return EvaluationFile(
        run_id=run_id,
        text=scored,
        changes=list(changes),
        train_length=train_length,
        numerics={"device": device_name(device), "precision": cfg.trainer.precision},
        results=[WindowScores.model_validate(one) for one in results],
    )


def check_text(cfg: RunConfig, data: TokenData) -> None:
    """Raise ConfigError if the validation text is shorter than the longest requested window (runtime.evaluate_lengths)."""
    plan = requested_protocols(cfg)
    if plan and (longest := max(plan).length) > max(len(data.val), cfg.model.context_length):
        raise ConfigError(
            f"{KEY_PREFIX}lengths: the validation text has {len(data.val):,} tokens, fewer than one window of {longest:,}: raise "
            "data.val_bytes, or ask for shorter lengths"
        )


def evaluate_trained(model: TransformerLM, cfg: RunConfig, data: TokenData, directory: RunDirectory) -> Path:
    """Evaluate a trained model as `cfg` requests, and write the file. Returns its path."""
    content = evaluation(
        model,
        cfg,
        validation_text(data),
        data.eot_id,
        requested_protocols(cfg),
        run_id=directory.run_id,
        train_length=cfg.model.context_length,
    )
    return write_evaluation(directory.path, content)


def evaluate_from_checkpoint(run: PreparedRun) -> bool:
    """Evaluate a finished run from its last checkpoint, as its configuration requests. Returns False if there is none."""
    found = checkpoints(run.directory.checkpoint_dir)
    if not found:
        return False
    model = build_model(run.cfg)
    load_weights(found[0], model)
    evaluate_trained(ready(model, run.cfg, run.cfg.runtime.device), run.cfg, run.data, run.directory)
    return True


def evaluate_run(
    run_dir: Path,
    *,
    times: Sequence[float],
    stride: int | None,
    overrides: Sequence[str],
    paths: str | None,
    text_field: str,
    device: str,
) -> EvaluationFile:
    """Evaluate the finished run in `run_dir`. `overrides` change the model for evaluation, `paths` a glob of other text
    files, `times` multiples of the training length, `stride` tokens between windows. Raises ConfigError."""
    check_finished(run_dir)
    model, cfg, data = load_run(run_dir)
    train_length = cfg.model.context_length
    plan = protocols(times, stride, train_length)
    text = validation_text(data) if paths is None else read_text(paths, data, text_field)
    if not any(override.startswith("posemb") for override in overrides):
        check_lengths(cfg, plan)
    changes: list[str] = []
    if overrides:
        cfg, changes = changed(cfg, overrides, max(train_length, max(plan).length))
        model = rebuilt(model, cfg)
    return evaluation(
        ready(model, cfg, device),
        cfg,
        text,
        data.eot_id,
        plan,
        run_id=run_dir.absolute().name,
        train_length=train_length,
        changes=changes,
        watched=True,
    )


def check_finished(run_dir: Path, to: str = "evaluate") -> None:
    """Raise ConfigError for a run that did not complete."""
    directory = RunDirectory.at(run_dir)
    if not access.there(directory.config_path):
        return  # load_run raises the error for it
    row = directory.read_result()
    if row is None:
        raise ConfigError(f"{run_dir}: the run is not finished: train it first (the same command continues it)")
    if row.status != "completed":
        where = f" at step {row.diverged_at_step}" if row.diverged_at_step is not None else ""
        raise ConfigError(f"{run_dir}: the run {row.status}{where}, so that it has no weights to {to}")
