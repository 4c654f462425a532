"""Hydra composes: from override strings to a checked RunConfig."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lmablate.budget.agreement import check
from lmablate.config.budget_matching import reference_words
from lmablate.config.hints import explain, in_words
from lmablate.config.overrides import SKIP, ZIP, explicit, rewrite
from lmablate.config.presets import with_preset
from lmablate.config.resolve import choose_alternatives, choose_draws, resolve
from lmablate.config.reuse import Loader, Reuse
from lmablate.config.task_constraints import without_tokenizer
from lmablate.config.untrusted_yaml import refuse_hidden
from lmablate.core import secrets
from lmablate.core.errors import ConfigError, explained
from lmablate.core.paths import CONF_DIR, ROOT
from lmablate.evaluate.reach import check_requested
from lmablate.model.own_code import code_of
from lmablate.schema.run_config import RunConfig, RunRequest

_ONE_AT_A_TIME = threading.RLock()  # Hydra and OmegaConf keep what they know in globals


def register_resolvers() -> None:
    """Make ``${lmablate_root:}`` and ``${lmablate_here:...}`` known; train.yaml finds sweeps/ and a user's conf/ with them."""
    OmegaConf.register_new_resolver("lmablate_root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("lmablate_here", _here, replace=True)


def _here(name: str = "") -> str:
    folder = Path.cwd() / (name or "")
    return str(folder if folder.is_dir() else ROOT)


def compose(overrides: Iterable[str] = ()) -> RunConfig:
    """The RunConfig of a command line such as ``["norm=rms", "model.d_model=64"]``.

    Raises ConfigError, in words, for an unknown group, option or key, a wrong type, or an impossible combination.
    """
    return to_run_config(_composed(overrides))


def request(words: Iterable[str]) -> dict[str, Any]:
    """What a command line asks for as plain values, in the shape of a RunRequest but not yet checked. Raises ConfigError."""
    try:
        return to_request(_composed(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise in_words(error) from error


def _composed(words: Iterable[str]) -> DictConfig:
    """What Hydra makes of override words, with its own node. Raises ConfigError.

    Hydra's own `compose` works through one global object, which another program may hold; the loader below it needs none.
    """
    with _ONE_AT_A_TIME, _our_version():
        register_resolvers()
        overrides = rewrite(list(words))
        try:
            return _reuse()(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise in_words(error, overrides) from error
        except Exception as error:  # of the YAML that was read, or a plain one of Hydra's
            if (said := explained(error)) is None:
                raise
            raise ConfigError(said) from error


def _reuse() -> Reuse:
    """What composes in the current folder, with what it has composed before as long as no file has changed."""
    loader, reuse = _reuse_in(str(CONF_DIR), _here(), _here("conf"))
    if not loader.is_current():
        _reuse_in.cache_clear()
        _, reuse = _reuse_in(str(CONF_DIR), _here(), _here("conf"))
    return reuse


@lru_cache(maxsize=4)
def _reuse_in(*folders: str) -> tuple[Loader, Reuse]:
    """`folders` are those that Hydra searches, the project's own first."""
    loader = Loader(create_config_search_path(folders[0]))

    def whole(overrides: list[str]) -> DictConfig:
        return loader.load_configuration("train", overrides, RunMode.RUN, from_shell=False)

    return loader, Reuse(loader, whole)


@contextmanager
def _our_version() -> Iterator[None]:
    """Hydra behaves as in 1.3 inside the block, and afterwards as whoever else uses it has asked for."""
    version = VersionBase.instance()
    before = version.version_base
    setbase("1.3")
    try:
        yield
    finally:
        version.version_base = before


def to_run_config(composed: DictConfig) -> RunConfig:
    """Check and resolve what Hydra composed (with its ``hydra`` node, which holds the chosen options)."""
    raw = to_request(composed)
    return from_request(raw, explicit(raw["overrides"]))


def to_request(composed: DictConfig) -> dict[str, Any]:
    """What Hydra composed as plain values, in the shape of a RunRequest but not yet checked."""
    try:
        words = list(composed.hydra.overrides.task)
        refuse_hidden(explicit(words))
        choices = dict(composed.hydra.runtime.choices)
        if stray := {ZIP, SKIP} & explicit(words).keys():  # a grid has taken out its own
            raise ConfigError(
                f"{min(stray)} arranges a grid, and this is one run: add -m and several values, or leave it out"
            )
        if choices.get("tune", "none") != "none" and choices.get("hydra/sweeper") != "study":
            raise ConfigError(
                f"tune={choices['tune']} tunes the arms of a study, and this command has none: choose a stored sweep with arms "
                "(sweeps=<question>), or set optim.lr"
            )
        ours = OmegaConf.masked_copy(
            composed, [key for key in map(str, composed) if key not in ("hydra", "sweep", "tune")]
        )
        raw = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise in_words(error) from error
    assert isinstance(raw, dict)
    secrets.refuse([raw, words])
    groups = {
        group: option
        for group, option in choices.items()
        if option and "/" not in group and group not in ("sweeps", "tune", "diagnostics")
    }
    return {**raw, "choices": groups, "sweep": choices.get("sweeps"), "overrides": words}


def from_request(raw: dict[str, Any], given: dict[str, Any]) -> RunConfig:
    """Check, resolve, and try the model without its weights; `given` are the keys that were asked for explicitly."""

    raw = without_tokenizer(with_preset(raw, given), given)
    choose_alternatives(raw, given)
    choose_draws(raw, given)
    try:
        request = RunRequest.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    cfg = resolve(request, given, lambda: _reference(raw))
    check(cfg)
    check_requested(cfg)
    return cfg.model_copy(update={"code": code_of(cfg)})


def _reference(raw: dict[str, Any]) -> RunConfig:
    """The run that the budget of `raw` matches."""
    return _reference_of(tuple(reference_words(raw["overrides"], raw["budget"]["reference"])))


@lru_cache(maxsize=64)
def _reference_of(words: tuple[str, ...]) -> RunConfig:
    try:
        raw = to_request(_composed(words))
        return from_request({**raw, "budget": None}, explicit(raw["overrides"]))
    except ConfigError as error:
        raise ConfigError(f"the reference of the budget, {' '.join(words) or 'the defaults'}: {error}") from error
