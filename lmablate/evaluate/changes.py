"""Overrides allowed at evaluation: position embedding and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from lmablate.budget.agreement import check
from lmablate.core.axes import options
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.model import build_model, components
from lmablate.model.posemb import PosEmb

if TYPE_CHECKING:
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

GROUPS = ("posemb", "attention")


def changed(cfg: RunConfig, overrides: Sequence[str], longest: int) -> tuple[RunConfig, list[str]]:
    """Return `cfg` with `overrides` such as ``posemb=rope_yarn``, for texts of up to `longest` tokens, and the overrides with filled-in
    ones.

    A new option keeps the values of the keys it shares with the replaced one. By default `original_length` is the training length and
    `factor` scales it to `longest`. Raises ConfigError.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key.partition(".")[0] not in GROUPS:
            raise ConfigError(
                f"--set {override}: an evaluation can change {' and '.join(GROUPS)} and their keys, e.g. --set posemb=rope_yarn "
                "posemb.factor=4; anything else is another run"
            )
        given[key] = value if key in GROUPS else yaml.safe_load(value)
    updates: dict[str, Any] = {"choices": dict(cfg.choices)}
    filled: list[str] = []
    for group in GROUPS:
        keys = {key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{group}.")}
        part = dict(getattr(cfg, group))
        if group in given:
            updates["choices"][group] = given[group]
            lengths = {"original_length": cfg.model.context_length, "factor": longest / cfg.model.context_length}
            own, part = part, _option(group, given[group], part, lengths)
            filled += [f"{group}.{key}={part[key]:g}" for key in lengths if key in part and key not in {*own, *keys}]
        if unknown := [key for key in keys if key not in part or key.startswith("_")]:
            has = ", ".join(key for key in part if not key.startswith("_")) or "none"
            raise ConfigError(f"--set {group}.{unknown[0]}: no such key; {group}={updates['choices'][group]} has {has}")
        updates[group] = part | keys
    # Tables have the length of the longest text, as in a run of that length.
    updates["model"] = cfg.model.model_copy(update={"context_length": longest})
    other = cfg.model_copy(update=updates)
    _same_kind(cfg, other)
    return other, [*overrides, *filled]


def _same_kind(cfg: RunConfig, other: RunConfig) -> None:
    """Raise ConfigError unless positions are encoded as the weights have learned: rotations by rotations, or not at all."""
    mine, theirs = (components.target(each.posemb, "posemb") for each in (cfg, other))
    if theirs is not PosEmb and not any(
        kind is not PosEmb and issubclass(kind, PosEmb) and issubclass(theirs, kind) for kind in mine.__mro__
    ):
        raise ConfigError(
            f"--set posemb={other.choices['posemb']}: the run was trained with posemb={cfg.choices['posemb']}, which tells positions "
            "in another way; a rotary option can be read as another rotary one"
        )


def _option(group: str, name: str, own: dict[str, Any], lengths: dict[str, float]) -> dict[str, Any]:
    """The keys of another option, for a run that was trained with `own`."""
    if name not in options(group, shipped=True):
        raise ConfigError(
            f"--set {group}={name}: no such option; {group} has {', '.join(options(group, shipped=True))}"
        )
    raw = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())
    if "_target_" not in raw:
        raise ConfigError(f"--set {group}={name}: this option has sizes of its own, so that it needs a run of its own")
    shared = {key: value for key, value in {**lengths, **own}.items() if key in raw and key != "_target_"}
    return {**raw, **shared}


def rebuilt(model: TransformerLM, cfg: RunConfig) -> TransformerLM:
    """Return a model of `cfg` with the weights of `model`. Raises ConfigError if their shapes differ."""
    check(cfg)
    other = build_model(cfg, device="meta")
    mine = {name: tuple(p.shape) for name, p in model.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in other.named_parameters()}
    if mine != theirs:
        names = ", ".join(sorted({name for name, shape in mine.items() ^ theirs.items()})[:3])
        chosen = ", ".join(f"{group}={cfg.choices[group]}" for group in GROUPS)
        raise ConfigError(
            f"--set: with {chosen} the model has other weights than the run ({names}): choose an option without weights of its own, "
            "such as a scaled rope, or train a run with it (trainer.init_from)"
        )
    copy = build_model(cfg).to(model.embedding.weight.device)
    copy.load_state_dict(model.state_dict())
    return copy.eval()
