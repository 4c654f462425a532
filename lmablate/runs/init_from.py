"""Start a run from the weights of a finished one, its parent (``trainer.init_from=RUN_ID``).

The parent is in the same results_dir, and its id is part of the run's own id. All weights are the parent's, even if the
run uses them differently (``posemb=rope_yarn``, a longer context, another text). Optimizer, schedule and steps start
afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.runs.config_file import read_config
from lmablate.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

# Settings that decide nothing but initial draws, and so only the parent's weights.
DRAWS = ("init_std", "head_std", "embedding_std", "depth_scaled_init", "init")
SIZES = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size")


def with_parent(cfg: RunConfig, data: TokenData) -> RunConfig:
    """Return `cfg` with the init seed and the init settings of its parent, or `cfg` itself without a parent.

    Raises ConfigError for a parent that is missing or unfinished, has other sizes, another tokenizer or other weights.
    Raises it too for an explicit init setting, which would have no effect.
    """
    if cfg.trainer.init_from is None:
        return cfg
    directory, row = _finished(cfg)
    parent = read_config(directory.config_path)
    setting = f"trainer.init_from={directory.run_id}"
    if row.data.get("tokenizer") != data.tokenizer_fingerprint:
        raise ConfigError(
            f"{setting}: that run reads text with another tokenizer, so its token rows mean other tokens: use its text "
            f"({_word(parent, 'data')} {_word(parent, 'tokenizer')}), or one tokenizer for both (tokenizer=bytes or pretrained)"
        )
    for size in SIZES:
        mine, theirs = getattr(cfg.model, size), getattr(parent.model, size)
        if mine != theirs:
            raise ConfigError(
                f"{setting}: that run has model.{size}={theirs}, and this one would have {mine}: give both the same"
            )
    _check_weights(cfg, directory, setting)
    given = {override.lstrip("+").partition("=")[0] for override in cfg.overrides} if cfg.stage is None else set()
    draws = {key: getattr(parent.model, key) for key in DRAWS}
    for key, theirs in [("init_seed", parent.init_seed), *((f"model.{key}", draws[key]) for key in DRAWS)]:
        mine = getattr(cfg.model, key.removeprefix("model.")) if key in map("model.{}".format, DRAWS) else cfg.init_seed
        if key in given and mine != theirs:
            raise ConfigError(
                f"{key}={mine} has no effect beside {setting}, since all weights are that run's (its own is {theirs}): leave it out; "
                "data_seed moves the order of the data"
            )
    return cfg.model_copy(
        update={"init_seed": parent.init_seed, "model": cfg.model.model_copy(update=draws)},
    )


def _finished(cfg: RunConfig) -> tuple[RunDirectory, RunResult]:
    """Return the folder and the row of the parent. Raises ConfigError if it did not complete."""
    name, folder = str(cfg.trainer.init_from), Path(cfg.results_dir)
    directory = RunDirectory(folder, name)
    setting = f"trainer.init_from={name}"
    if access.there(directory.config_path) is None:
        raise ConfigError(f"{setting}: {access.closed(directory.path)}")
    if not directory.config_path.is_file():
        if directory.is_done:
            raise ConfigError(
                f"{setting}: of that run only the row is there, as from an archive, and no weights: train it first, with --again"
            )
        there = sorted(path.parent.name for path in folder.glob("*/result.json"))
        known = (
            f"finished runs there: {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}"
            if there
            else "no finished run is there"
        )
        raise ConfigError(f"{setting}: there is no such run in results_dir={cfg.results_dir} ({known})")
    row = directory.read_result()
    if row is None:
        raise ConfigError(f"{setting}: that run is not finished: train it first (the same command continues it)")
    if row.status != "completed":
        raise ConfigError(f"{setting}: that run {row.status}, so it has no weights to start from: choose another")
    _checkpoint(directory)
    return directory, row


def _checkpoint(directory: RunDirectory) -> Path:
    from lmablate.training.checkpoint import checkpoints

    found = checkpoints(directory.checkpoint_dir)
    if not found:
        raise ConfigError(
            f"trainer.init_from={directory.run_id}: that run has no checkpoint any more: delete {directory.path} and train it again"
        )
    return found[0]


def _check_weights(cfg: RunConfig, directory: RunDirectory, setting: str) -> None:
    """Raise ConfigError unless names and shapes of the weights are equal. The comparison loads no weights."""
    from safetensors import safe_open

    from lmablate.model import build_model

    with safe_open(_checkpoint(directory), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 - not a dict
        theirs = {name.removeprefix("model."): tuple(file.get_slice(name).get_shape()) for name in names}
    mine = {name: tuple(p.shape) for name, p in build_model(cfg, device="meta").named_parameters()}
    if mine == theirs:
        return
    findings = [
        f"{name} is {list(theirs[name])} there and {list(mine[name])} here"
        for name in mine
        if name in theirs and mine[name] != theirs[name]
    ]
    findings += _listed("only here", [name for name in mine if name not in theirs])
    findings += _listed("only there", [name for name in theirs if name not in mine])
    raise ConfigError(f"{setting}: the weights of that run do not fit: {'; '.join(findings[:3])}. {_mend(cfg)}")


def _listed(where: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return [f"{where}: {', '.join(names[:2])}{more}"] if names else []


def _mend(cfg: RunConfig) -> str:
    from lmablate.model import components

    if components.target(cfg.posemb, "posemb").bounded:
        return (
            f"posemb={cfg.choices['posemb']} has a row for each position, so that the context cannot change: keep "
            "model.context_length, or start from a run with other positions"
        )
    return "Use options with the same weights, such as a scaled rope for a run with rope"


def _word(cfg: RunConfig, group: str) -> str:
    return f"{group}={cfg.choices.get(group)}"
