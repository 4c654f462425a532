"""Hydra composes: from override strings to a checked RunConfig."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lmablate import secrets
from lmablate.config.matching import reference_words
from lmablate.config.preset import with_preset
from lmablate.config.resolve import choose_alternatives, choose_draws, resolve
from lmablate.config.schema import RunConfig, RunRequest
from lmablate.config.skills import without_tokenizer
from lmablate.data.skills.settings import SOURCES
from lmablate.errors import ConfigError
from lmablate.paths import CONF_DIR, ROOT, SWEEPS_DIR
from lmablate.protocols import check_asked
from lmablate.source import code_of


def register_resolvers() -> None:
    """Make ``${lmablate_root:}`` and ``${lmablate_here:...}`` known; train.yaml finds sweeps/ and a user's conf/ with them."""

    def here(name: str = "") -> str:
        folder = Path.cwd() / (name or "")
        return str(folder if folder.is_dir() else ROOT)

    OmegaConf.register_new_resolver("lmablate_root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("lmablate_here", here, replace=True)


def compose(overrides: Iterable[str] = ()) -> RunConfig:
    """The RunConfig of a command line such as ``["norm=rms", "model.d_model=64"]``.

    Raises ConfigError, in words, for an unknown group, option or key, a wrong type, or an impossible combination.
    """
    try:
        return to_run_config(_composed(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise in_words(error) from error


def request(words: Iterable[str]) -> dict[str, Any]:
    """What a command line asks for as plain values, in the shape of a RunRequest but not yet checked. Raises ConfigError."""
    try:
        return to_request(_composed(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise in_words(error) from error


def _composed(words: Iterable[str]) -> DictConfig:
    """What Hydra makes of override words, with its own node."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return hydra_compose("train", overrides=rewrite(list(words)), return_hydra_config=True)


def to_run_config(composed: DictConfig) -> RunConfig:
    """Check and resolve what Hydra composed (with its ``hydra`` node, which holds the chosen options)."""
    raw = to_request(composed)
    return from_request(raw, explicit(raw["overrides"]))


def to_request(composed: DictConfig) -> dict[str, Any]:
    """What Hydra composed as plain values, in the shape of a RunRequest but not yet checked."""
    try:
        words = list(composed.hydra.overrides.task)
        choices = dict(composed.hydra.runtime.choices)
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
    from lmablate.model.factory import check

    raw = without_tokenizer(with_preset(raw, given), given)
    choose_alternatives(raw, given)
    choose_draws(raw, given)
    try:
        request = RunRequest.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    cfg = resolve(request, given, lambda: _reference(raw))
    check(cfg)
    check_asked(cfg)
    return cfg.model_copy(update={"code": code_of(cfg)})


def _reference(raw: dict[str, Any]) -> RunConfig:
    """The run that the budget of `raw` matches."""
    return _reference_of(tuple(reference_words(raw["overrides"], raw["budget"]["reference"])))


@lru_cache(maxsize=64)
def _reference_of(words: tuple[str, ...]) -> RunConfig:
    try:
        raw = to_request(_composed(words))
        return from_request({**raw, "budget": None}, explicit(raw["overrides"]))
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        told = error if isinstance(error, ConfigError) else in_words(error)
        raise ConfigError(f"the reference of the budget, {' '.join(words) or 'the defaults'}: {told}") from error


def explicit(words: Sequence[str]) -> dict[str, Any]:
    """The keys set by override strings, with their values as text; a value of null counts as not set."""
    pairs = (word.lstrip("+").partition("=") for word in words if not word.startswith("~"))
    return {key: None if value in ("null", "") else value for key, _, value in pairs}


def rewrite(words: list[str]) -> list[str]:
    """The house's own grammar, before Hydra sees it: ``double`` is ``sandwich``, ``scale=`` picks a stored sweep's size."""
    keys = explicit(words)
    sweeps, scale = keys.get("sweeps"), keys.get("scale")
    if sweeps and re.search(r"[,(\[]", str(sweeps)):
        raise ConfigError(
            f"sweeps={sweeps}: one stored sweep at a time, since Hydra would drop the grids of all; run the command once for each"
        )
    for key in keys:
        if "_target_" in key or "_target_" in str(keys[key]):
            raise ConfigError(
                f"{key}: a class is chosen by an option, so that the option's name says what was run; add a YAML file to conf/ for yours"
            )
    out = [
        re.sub(r"\bdouble\b", "sandwich", word) if word.lstrip("+").startswith("norm_position=") else word
        for word in words
    ]
    out = [_quoted(word) if word.startswith("budget.reference=[") else word for word in out]
    out = [_as_text(word) if word.lstrip("+").startswith("trainer.init_from=") else word for word in out]
    if "scale" in keys:
        out = [word for word in out if not word.startswith("scale=")]
        # in front, so that what the user types has the last word
        out = _scale_overrides(sweeps, scale) + out
    return out


def _quoted(word: str) -> str:
    """``budget.reference=[norm=layer]`` with the quotes that Hydra wants around words with an equals sign."""
    key, _, value = word.partition("=")
    if "'" in value or '"' in value or not value.endswith("]"):
        return word
    return f"{key}=[{','.join(json.dumps(item.strip()) for item in value[1:-1].split(',') if item.strip())}]"


def _as_text(word: str) -> str:
    """``trainer.init_from=0123456789e1`` in quotes: a run's id may look like a number."""
    key, _, value = word.partition("=")
    ids = [item if item == "null" else json.dumps(item.strip().strip("'\"")) for item in value.split(",")]
    return f"{key}={','.join(ids)}"


def sweep_file(name: str) -> Path:
    """The YAML of a stored sweep, of this project or of the current folder."""
    for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"):
        inside = Path(os.path.normpath(folder / f"{name}.yaml")).is_relative_to(folder)
        if inside and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    stored = sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml"))
    raise ConfigError(f"sweeps={name}: no such stored sweep; there are {', '.join(stored) or 'none'}")


def _scale_overrides(sweeps: str | None, scale: str | None) -> list[str]:
    if not sweeps:
        raise ConfigError(
            f"scale={scale} picks the size of a stored sweep: add sweeps=<question>, or set model=, trainer.steps= yourself"
        )
    node = OmegaConf.load(sweep_file(sweeps))
    sizes = OmegaConf.select(node, "sweep.scales") or {}
    if scale not in sizes:
        raise ConfigError(f"scale={scale}: sweeps={sweeps} has the sizes {', '.join(map(str, sizes)) or '(none)'}")
    return [str(word) for word in sizes[scale]]


def explain(error: ValidationError) -> str:
    """All of pydantic's findings, one a line, with dotted keys."""
    lines = []
    for item in error.errors():
        place = ".".join(
            str(step)
            for step in item["loc"]
            if step not in ("kjv", "files", "hub", "synthetic", "bpe", "bytes", "pretrained", *SOURCES)
        )
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key{_similar(place)}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing")
        elif item["type"] == "value_error":
            lines.append(message if not place or message.startswith(place) else f"{place}: {message}")
        else:
            lines.append(f"{place}={item['input']}: {message[0].lower()}{message[1:]}")
    return "\n".join(lines)


def _similar(key: str) -> str:
    """ ", did you mean ...?" for a key that is nearly one of ours, or which options have it."""
    group, _, name = key.rpartition(".")
    if owners := [path.stem for path in sorted((CONF_DIR / group).glob("*.yaml")) if name in _keys_of(path, group)]:
        return f" in the option chosen; {group}={' or '.join(owners)} has it" if group else ""
    near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.75)
    return f", did you mean {near[0]}?" if near else "; see conf/ for the keys there are"


def _keys_of(path: Path, group: str) -> dict[str, Any]:
    """The keys an option's file sets in its own group."""
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    own = node.get(group, node) if isinstance(node, dict) else None
    return {str(name): value for name, value in own.items()} if isinstance(own, dict) else {}


def known_keys() -> list[str]:
    """Every dotted key in conf/, for suggestions."""
    keys: set[str] = set()
    for path in CONF_DIR.rglob("*.yaml"):
        group = path.parent.relative_to(CONF_DIR).as_posix()
        if group.startswith("hydra"):
            continue
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if isinstance(node, dict):
            keys.update(
                f"{group}.{name}".removeprefix("..") for name in map(str, node) if name not in ("defaults", "hydra")
            )
            keys.add(group)
    return sorted(keys - {"."})


def in_words(error: Exception) -> ConfigError:
    """Hydra's and OmegaConf's refusals, without search paths and without advice that would not help here."""
    chain = " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    if found := re.search(r"Could not override '([^']+)'", chain):
        return ConfigError(f"{found[1]}: no such key{_similar(found[1])}")
    if found := re.search(
        r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\s+\S+)*?)\s*(?:Config search path|$)", chain
    ):
        group, options = found[2], found[3].split()
        option = found[1].removeprefix(f"{group}/")
        return ConfigError(f"{group}={option}: no such option; {group} has {', '.join(options)}")
    if found := re.search(r"Could not find '([^']+)'", chain):
        return ConfigError(f"{found[1]}: no such group or option{_similar(found[1])}")
    if found := re.search(r"Missing mandatory value: (\S+)", chain):
        return ConfigError(f"{found[1]}: needs a value; give it on the command line")
    return ConfigError(str(error).split("Config search path")[0].split("See https://hydra")[0].strip())
