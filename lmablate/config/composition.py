"""Compose override strings into a checked RunConfig with Hydra."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
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
from lmablate.config.budget_matching import reference_overrides
from lmablate.config.hints import explain, to_config_error
from lmablate.config.overrides import SKIP, ZIP, explicit, rewrite, sized
from lmablate.config.presets import with_preset
from lmablate.config.resolve import Counted, by_steps, choose_alternatives, choose_draws, resolve
from lmablate.config.reuse import CachedComposer, Loader
from lmablate.config.task_constraints import without_tokenizer
from lmablate.config.untrusted_yaml import refuse_hidden
from lmablate.core import secrets
from lmablate.core.errors import ConfigError, explained
from lmablate.core.paths import CONF_DIR, ROOT
from lmablate.evaluate.reach import check_requested
from lmablate.model.own_code import code_of
from lmablate.schema.run_config import RunConfig, RunRequest

_ONE_AT_A_TIME = threading.RLock()  # Hydra and OmegaConf keep state in globals


def register_resolvers() -> None:
    """Register ``${lmablate_root:}`` and ``${lmablate_here:...}``, by which train.yaml finds sweeps/ and a user's conf/."""
    OmegaConf.register_new_resolver("lmablate_root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("lmablate_here", _here, replace=True)


def _here(name: str = "") -> str:
    folder = Path.cwd() / (name or "")
    return str(folder if folder.is_dir() else ROOT)


def compose(overrides: Iterable[str] = ()) -> RunConfig:
    """Return the RunConfig of overrides such as ``["norm=rms", "model.d_model=64"]``.

    Raises ConfigError for an unknown group, option or key, a wrong type, or an impossible combination."""
    return to_run_config(_composed(_of_one_run(overrides)))


def request(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the values that overrides set, in the shape of a RunRequest but not yet checked. Raises ConfigError."""
    try:
        return to_request(_composed(_of_one_run(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise to_config_error(error) from error


def _of_one_run(overrides: Iterable[str]) -> list[str]:
    """Return overrides with what a stored sweep says of its scale, but not of its arms: they are those of one run."""
    given = list(overrides)
    added = sized(given)[: -len(given) or None]
    return [*(one for one in added if not one.startswith("sweep.")), *given]


def _composed(overrides: Iterable[str]) -> DictConfig:
    """Return Hydra's configuration of `overrides`, with its ``hydra`` node. Raises ConfigError.

    Hydra's own `compose` works through one global object, which another program may hold. The loader below it needs none."""
    with _ONE_AT_A_TIME, _hydra_1_3():
        register_resolvers()
        rewritten = rewrite(list(overrides))
        try:
            return _composer()(rewritten)
        except (HydraException, OmegaConfBaseException) as error:
            raise to_config_error(error, rewritten) from error
        except Exception as error:  # a YAML error, or a plain exception from Hydra
            if (message := explained(error)) is None:
                raise
            raise ConfigError(message) from error


def _composer() -> CachedComposer:
    """Return the composer of the current folder, with its cache unless a file has changed."""
    loader, composer = _composer_in(str(CONF_DIR), _here(), _here("conf"))
    if not loader.is_current():
        _composer_in.cache_clear()
        _, composer = _composer_in(str(CONF_DIR), _here(), _here("conf"))
    return composer


@lru_cache(maxsize=4)
def _composer_in(*folders: str) -> tuple[Loader, CachedComposer]:
    """Return the loader and composer of `folders`, which Hydra searches in this order."""
    loader = Loader(create_config_search_path(folders[0]))

    def whole(overrides: list[str]) -> DictConfig:
        return loader.load_configuration("train", overrides, RunMode.RUN, from_shell=False)

    return loader, CachedComposer(loader, whole)


@contextmanager
def _hydra_1_3() -> Iterator[None]:
    """Let Hydra behave as version 1.3 inside the block, and restore the caller's version after it."""
    version = VersionBase.instance()
    before = version.version_base
    setbase("1.3")
    try:
        yield
    finally:
        version.version_base = before


def to_run_config(composed: DictConfig, counted: Counted | None = None) -> RunConfig:
    """Return the checked and resolved RunConfig of what Hydra composed, which includes its ``hydra`` node. Raises ConfigError.

    `counted` as in resolve: for the runs of one command, the parameters that trainer.tokens_per_param counts."""
    raw = to_request(composed)
    return from_request(raw, explicit(raw["overrides"]), counted)


def counted_in(*candidates: Callable[[], RunConfig]) -> Counted:
    """Return what trainer.tokens_per_param counts in the first of the `candidates` that is a run, composed where it is needed."""

    @cache
    def counted() -> int | None:
        for candidate in candidates:
            with suppress(ConfigError, HydraException, OmegaConfBaseException):
                return candidate().counted_params
        return None

    return counted


def grid_configs(
    composed: Sequence[DictConfig], bases: Sequence[tuple[str, ...]], compose: Callable[[tuple[str, ...]], DictConfig]
) -> list[RunConfig]:
    """Return the runs of a grid. In each, trainer.tokens_per_param counts the parameters of the job's base (sweeper/grid.py).

    If a base is no run (a key needs an option that varies), the first of its jobs stands for it."""
    counted: dict[tuple[str, ...], Counted] = {}
    configs = []
    for job, base in zip(composed, bases, strict=True):
        if base not in counted:
            counted[base] = counted_in(partial(_base, compose, base), partial(to_run_config, job))
        configs.append(by_steps(to_run_config(job, counted[base])))
    return configs


def _base(compose: Callable[[tuple[str, ...]], DictConfig], overrides: tuple[str, ...]) -> RunConfig:
    return to_run_config(compose(overrides))


def to_request(composed: DictConfig) -> dict[str, Any]:
    """Return what Hydra composed as plain values, in the shape of a RunRequest but not yet checked. Raises ConfigError."""
    try:
        overrides = list(composed.hydra.overrides.task)
        refuse_hidden(explicit(overrides))
        choices = dict(composed.hydra.runtime.choices)
        if stray := {ZIP, SKIP} & explicit(overrides).keys():  # a grid removes these before its jobs are composed
            raise ConfigError(
                f"{min(stray)} arranges a grid, and this is one run: add -m and several values, or leave it out"
            )
        if choices.get("tune", "none") != "none" and choices.get("hydra/sweeper") != "study":
            raise ConfigError(
                f"tune={choices['tune']} tunes the arms of a study, and this command has none: choose a stored sweep with arms "
                "(sweeps=<question>), or set optim.lr"
            )
        if choices.get("ladder") and choices.get("hydra/sweeper") != "study":
            raise ConfigError(
                f"ladder={choices['ladder']} sizes the arms of a study, and this command has none: choose a stored sweep with arms "
                "(sweeps=<question>)"
            )
        ours = OmegaConf.masked_copy(
            composed, [key for key in map(str, composed) if key not in ("hydra", "sweep", "tune")]
        )
        raw = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise to_config_error(error) from error
    assert isinstance(raw, dict)
    secrets.refuse([raw, overrides])
    groups = {
        group: option
        for group, option in choices.items()
        if option and "/" not in group and group not in ("sweeps", "scale", "tune", "ladder", "diagnostics")
    }
    return {**raw, "choices": groups, "sweep": choices.get("sweeps"), "overrides": overrides}


def from_request(raw: dict[str, Any], given: dict[str, Any], counted: Counted | None = None) -> RunConfig:
    """Return the RunConfig of `raw`: check it, resolve its numbers, and build the model without weights.

    `given` maps the keys of the command line to their values; `counted` as in resolve. Raises ConfigError."""
    raw = without_tokenizer(with_preset(raw, given), given)
    choose_alternatives(raw, given)
    choose_draws(raw, given)
    try:
        request = RunRequest.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    cfg = resolve(request, given, lambda: _reference(raw), counted)
    check(cfg)
    check_requested(cfg)
    return cfg.model_copy(update={"code": code_of(cfg)})


def _reference(raw: dict[str, Any]) -> RunConfig:
    """Return the run that the budget of `raw` matches."""
    return _reference_of(tuple(reference_overrides(raw["overrides"], raw["budget"]["reference"])))


@lru_cache(maxsize=64)
def _reference_of(overrides: tuple[str, ...]) -> RunConfig:
    try:
        raw = to_request(_composed(overrides))
        return from_request({**raw, "budget": None}, explicit(raw["overrides"]))
    except ConfigError as error:
        raise ConfigError(f"the reference of the budget, {' '.join(overrides) or 'the defaults'}: {error}") from error
