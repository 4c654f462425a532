"""Check that every key, changed alone, changes the training record or is refused.

A dead key gives the same numbers to the bit, so any difference counts, on weights scaled until it shows.
"""

from __future__ import annotations

import copy
import typing
from typing import Any, get_type_hints

from lmablate.check.finding import Finding, check, fails, holds
from lmablate.check.small import config, differs, request, training_record
from lmablate.check.subject import Subject, get, put
from lmablate.check.training import SCALES
from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.schema.run_config import RunConfig, RunRequest

# Keys of the run that need other keys to act: the definition of divergence needs a run that diverges. An option lists
# those of its own keys in `acts_with` of its class.
_WILD = {"optim.lr": 0.3, "optim.grad_clip": None, "trainer.steps": 24, "schedule.warmup_fraction": 0.8}
_SCENES: dict[str, dict[str, Any]] = {
    "trainer.divergence_patience": {**_WILD, "trainer.divergence_patience": 3, "trainer.divergence_smoothing": 0.0},
    "trainer.divergence_smoothing": {**_WILD, "trainer.divergence_patience": 3, "trainer.divergence_smoothing": 0.3},
    **{f"schedule.{name}_fraction": {"trainer.steps": 12} for name in ("warmup", "final", "decay")},
}
# Values of keys that hold free text, or where true is what most options do by default.
_TEXTS: dict[str, list[Any]] = {"attention.pattern": ["ls", "sg"], "model.final_norm": [True, False]}
_WHEN_NULL: dict[type, tuple[Any, ...]] = {int: (1, 2, 3, 48), float: (0.37, 3.0), bool: (True,)}


def leaves(node: Any, path: str) -> list[str]:
    """Return the dotted paths of all values below `node`, without class paths."""
    if not isinstance(node, dict):
        return [path]
    return [leaf for key, value in node.items() if not key.startswith("_") for leaf in leaves(value, f"{path}.{key}")]


def _types_in(annotation: Any) -> list[Any]:
    """Return the types and literals of an annotation, however nested."""
    inner = typing.get_args(annotation)
    return [annotation] if not inner else [kind for part in inner for kind in _types_in(part)]


def _part_of(raw: dict[str, Any], path: str) -> Any:
    """Return the class or function that a key belongs to, or None."""
    parent = path.rpartition(".")[0]
    part = get(raw, parent) if parent else {}
    return components.target(part, parent.rpartition(".")[2]) if "_target_" in part else None


def _scene(raw: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the values of other keys that a key needs in order to act."""
    return getattr(_part_of(raw, path), "acts_with", {}).get(path.rpartition(".")[2]) or _SCENES.get(path, {})


def _declared(raw: dict[str, Any], path: str) -> list[Any]:
    """Return the types and literals of a key, from the schema or from the signature of its component."""
    if (target := _part_of(raw, path)) is not None:
        return _types_in(get_type_hints(getattr(target, "__init__", target)).get(path.rpartition(".")[2]))
    kind: Any = RunRequest
    for key in path.split("."):
        fields = getattr(kind, "model_fields", {})
        if key not in fields:
            return []
        kind = fields[key].annotation
    return _types_in(kind)


def other_values(raw: dict[str, Any], path: str) -> list[Any]:
    """Return values to try instead of a key's own."""
    value = get(raw, path)
    if path in _TEXTS:
        return _TEXTS[path]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [v for v in (value + 1, value * 2, value // 2) if v != value]
    if isinstance(value, float):
        return [v for v in (value * 30, value * 3, value / 2, 0.3) if v != value]
    declared = _declared(raw, path)
    if isinstance(value, str):
        return [option for option in declared if isinstance(option, str) and option != value] or [f"not {value}"]
    if path in ("stability.qk_norm", "stability.v_norm"):
        return [request("stability=qk_norm")["stability"]["qk_norm"]]
    options = [option for option in declared if isinstance(option, str | bool)]
    return options + [v for kind in (int, float, bool) if kind in declared for v in _WHEN_NULL[kind]]


class Records:
    """The training records of one request with a key changed, by the scale of the weights. Its own are trained once."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw, self._own = raw, {}  # type: ignore[var-annotated]

    def own(self, scale: float) -> Any:
        """Return the record of the unchanged request at one scale of the weights."""
        if scale not in self._own:
            self._own[scale] = training_record(config(raw=copy.deepcopy(self.raw)), scale)
        return self._own[scale]

    def changed(self, path: str, value: Any) -> RunConfig:
        """Return the configuration with another value of a key. Raises ConfigError for a refused value."""
        raw = copy.deepcopy(self.raw)
        put(raw, path, value)
        return config(raw=raw, given={path: value})


def dead(records: Records, path: str) -> list[Any]:
    """Return the values that a key accepts without any effect; empty if one acts, or all are refused."""
    raw = records.raw
    if scene := _scene(raw, path):
        raw = copy.deepcopy(raw)
        for key, value in scene.items():
            put(raw, key, value)
        records = Records(raw)
    accepted = other_values(raw, path)
    for scale in SCALES:
        left = []
        for value in accepted:
            try:
                cfg = records.changed(path, value)
            except ConfigError:
                continue
            if differs(cfg, records.own(scale), scale):
                return []
            left.append(value)
        if not left:
            return []
        accepted = left
    return accepted


@check(
    "keys",
    asks="each key of the option and of the model changes the training record, or is refused",
    cost="an experiment that varies the key compares a model with itself",
    mend="use the key, drop it, or raise ConfigError for values that mean nothing",
)
def keys(subject: Subject) -> Finding:
    raw = subject.raw
    records = Records(raw)
    paths = [*leaves(raw[subject.axis], subject.axis), *leaves(raw["model"], "model")]
    idle = {path: values for path in paths if (values := dead(records, path))}
    if not idle:
        return holds(f"{len(paths)} of them")
    lines = [f"{path} accepts {', '.join(map(str, values))} and changes nothing" for path, values in idle.items()]
    return fails("; ".join(lines))
