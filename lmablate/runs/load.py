"""Open a finished run: its configuration, its tokens, and its model with the last weights."""

from __future__ import annotations

from pathlib import Path

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.source_code import describe
from lmablate.data import TokenData
from lmablate.model import build_model
from lmablate.model.own_code import code_of
from lmablate.model.transformer import TransformerLM
from lmablate.runs.config_file import read_config
from lmablate.runs.prepared import load_data
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.result import RunResult
from lmablate.schema.run_config import RunConfig
from lmablate.training.checkpoint import checkpoints, load_weights


def existing_run(run_dir: Path) -> RunDirectory:
    """Return the directory of a run named by the user. Raises ConfigError for a folder that is no run."""
    directory = RunDirectory.at(run_dir)
    if access.there(directory.config_path) is None:
        raise ConfigError(f"{run_dir}: {access.closed(directory.path)}")
    if not directory.config_path.is_file():
        raise ConfigError(
            f"{run_dir}: no run is there; give the folder of one, RESULTS_DIR/<run_id>, which holds config.yaml and checkpoint/"
        )
    return directory


def load_run(run_dir: Path) -> tuple[TransformerLM, RunConfig, TokenData]:
    """Return the model of a run with its last weights in eval mode, its configuration, and its tokens. Raises
    ConfigError for a folder without a run or a checkpoint, and for code or text that has changed since."""
    directory = existing_run(run_dir)
    found = checkpoints(directory.checkpoint_dir)
    if not found:
        raise ConfigError(
            f"{run_dir}: there is no checkpoint in {directory.checkpoint_dir}: train the run first, or again if it was deleted"
        )
    cfg = read_config(directory.config_path)
    _same_code(run_dir, cfg)
    data = load_data(cfg)
    _same_text(run_dir, directory.read_result(), data)
    model = build_model(cfg)
    try:
        load_weights(found[0], model)
    except PermissionError:
        raise ConfigError(f"{found[0]}: {access.closed(found[0])}") from None
    return model.eval(), cfg, data


def _same_code(run_dir: Path, cfg: RunConfig) -> None:
    """Raise ConfigError if the code of a component has changed since training."""
    now, then = code_of(cfg) or {}, cfg.code or {}
    if other := {module: digest for module, digest in {**then, **now}.items() if now.get(module) != then.get(module)}:
        raise ConfigError(
            f"{run_dir}: it was trained with other code than stands here now: {describe(other)}. Put that code back, or train it again"
        )


def _same_text(run_dir: Path, row: RunResult | None, data: TokenData) -> None:
    """Raise ConfigError if the tokenizer is no longer the one of training: the text it is made from may have changed."""
    trained = None if row is None else row.data.get("tokenizer")
    if trained is not None and trained != data.tokenizer_fingerprint:
        raise ConfigError(
            f"{run_dir}: its tokenizer was made from a text that is not there any more (data.paths has changed since the run): "
            "put the text back, or train again"
        )
