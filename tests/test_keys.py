"""Rule 11 for keys: every science key of every composed option, changed alone, changes the training record or is refused.

A dead key gives the same numbers to the bit, so "changes" means any difference at all.
"""

import copy
import typing
from typing import Any, get_type_hints

import pytest
from tiny import config, distance, option_cases, options, request, training_record

from lmablate.config import compose
from lmablate.config.schema import RunRequest
from lmablate.errors import ConfigError
from lmablate.model import parts
from lmablate.model.norm import RMSNorm

SCIENCE = ("init_seed", "data_seed", "model", "stability", "objective", "optim", "schedule", "trainer", "aspect_ratio")
# Keys that act in a scene of their own: the definition of divergence needs a run that diverges.
WILD = {"optim.lr": 0.3, "optim.grad_clip": None, "trainer.steps": 24, "schedule.warmup_fraction": 0.8}
SCENES = {
    "trainer.divergence_smoothing": {**WILD, "trainer.divergence_patience": 3, "trainer.divergence_smoothing": 0.3},
    "schedule.warmup_fraction": {"trainer.steps": 12},
    # the ramp between fast and slow pairs moves by whole pairs; a short text is one that is not long
    "posemb.original_length": {"posemb.rope_theta": 100.0},
    "posemb.beta_fast": {"posemb.original_length": 2000},
    "posemb.short_factor": {"posemb.original_length": 100, "posemb.short_factor": 2.0},
    "schedule.final_fraction": {"trainer.steps": 12},
    "schedule.decay_fraction": {"trainer.steps": 12},
    # 1 + w is the same function; w near 0 is only rounded more finely, which takes some steps to show
    "norm.unit_offset": {"trainer.steps": 40},
    "trainer.divergence_patience": {**WILD, "trainer.divergence_patience": 3, "trainer.divergence_smoothing": 0.0},
}
# Values of keys that hold free text, or where true is what most options do anyway.
WORDS = {"attention.pattern": ["ls", "sg"], "model.final_norm": [True, False]}
WHEN_NULL = {int: (1, 2, 3, 48), float: (0.37, 3.0), bool: (True,)}


def leaves(node: Any, path: str) -> list[str]:
    """Dotted paths of all values below `node`, class paths left out."""
    if not isinstance(node, dict):
        return [path]
    return [leaf for key, value in node.items() if not key.startswith("_") for leaf in leaves(value, f"{path}.{key}")]


def get(raw: dict, path: str) -> Any:
    for key in path.split("."):
        raw = raw[key]
    return raw


def put(raw: dict, path: str, value: Any) -> None:
    *way, last = path.split(".")
    node = get(raw, ".".join(way)) if way else raw
    node[last] = value


def words_in(annotation: Any) -> list[Any]:
    """The types and literals of an annotation, however nested."""
    inner = typing.get_args(annotation)
    return [annotation] if not inner else [word for part in inner for word in words_in(part)]


def declared(raw: dict, path: str) -> list[Any]:
    """What the schema says of a key, or the signature of the part that it belongs to."""
    *way, key = path.split(".")
    if "_target_" in (part := get(raw, ".".join(way)) if way else {}):
        return words_in(get_type_hints(parts.target(part, way[-1]).__init__).get(key))
    kind: Any = RunRequest
    for key in path.split("."):
        fields = getattr(kind, "model_fields", {})
        if key not in fields:
            return []
        kind = fields[key].annotation
    return words_in(kind)


def other_values(raw: dict, path: str) -> list[Any]:
    value = get(raw, path)
    if path in WORDS:
        return WORDS[path]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [v for v in (value + 1, value * 2, value // 2) if v != value]
    if isinstance(value, float):
        return [v for v in (value * 30, value * 3, value / 2, 0.3) if v != value]
    said = declared(raw, path)
    if isinstance(value, str):
        return [word for word in said if isinstance(word, str) and word != value] or [f"not {value}"]
    if path in ("stability.qk_norm", "stability.v_norm"):
        return [request("stability=qk_norm")["stability"]["qk_norm"]]
    words = [word for word in said if isinstance(word, str | bool)]
    return words + [v for kind in (int, float, bool) if kind in said for v in WHEN_NULL[kind]]


def outcome(raw: dict, path: str, value: Any):
    return training_record(config(raw=raw, given={path: value}))


def check(raw: dict, path: str, base: Any = None) -> None:
    """`base` is the record of `raw` itself, where the key acts without a scene of its own."""
    raw = copy.deepcopy(raw)
    for key, value in SCENES.get(path, {}).items():
        put(raw, key, value)
    if base is None or path in SCENES:
        base = training_record(config(raw=copy.deepcopy(raw)))
    accepted = []
    for value in other_values(raw, path):
        changed = copy.deepcopy(raw)
        put(changed, path, value)
        try:
            record = outcome(changed, path, value)
        except ConfigError:
            continue
        if distance(record, base) > 0:
            return
        accepted.append(value)
    assert not accepted, f"{path} accepts {accepted} and changes nothing"


@pytest.mark.parametrize(("axis", "option"), option_cases(), ids=lambda word: word)
def test_keys_of_the_option_and_of_the_model(axis, option):
    raw = request(f"{axis}={option}")
    base = training_record(config(raw=copy.deepcopy(raw)))
    for path in [*leaves(raw[axis], axis), *leaves(raw["model"], "model")]:
        check(raw, path, base)


@pytest.mark.parametrize(
    "extra",
    [(), ("schedule=wsd",), ("schedule=linear",), ("schedule=constant",)],
    ids=lambda words: "-".join(words) or "default",
)
def test_every_science_key(extra):
    raw = request(*extra)
    base = training_record(config(raw=copy.deepcopy(raw)))
    for path in [leaf for group in SCIENCE for leaf in leaves(raw[group], group)]:
        check(raw, path, base)


@pytest.mark.parametrize("option", options("objective"))
def test_keys_of_an_objective(option):
    raw = request(f"objective={option}")
    base = training_record(config(raw=copy.deepcopy(raw)))
    for path in leaves(raw["objective"], "objective"):
        check(raw, path, base)


class DeadKey(RMSNorm):
    """A variant with a key that is accepted and read nowhere: the disease this file is for."""

    def __init__(self, d_model: int, *, eps: float, strength: float) -> None:
        super().__init__(d_model, eps=eps, gain=None, unit_offset=None)


def test_a_dead_key_is_caught(monkeypatch):
    monkeypatch.setattr(parts, "_trusted", {__name__})
    raw = request()
    raw["norm"] = {"_target_": f"{__name__}.DeadKey", "eps": 1e-6, "strength": 1.0}
    check(raw, "norm.eps")
    with pytest.raises(AssertionError, match=r"norm.strength accepts .* and changes nothing"):
        check(raw, "norm.strength")


@pytest.mark.parametrize("first", ["model.d_ff=64", "trainer.steps=3", "schedule.warmup_steps=1"])
@pytest.mark.parametrize("second", ["model.ff_ratio=2.0", "trainer.tokens=10_000", "schedule.warmup_fraction=0.5"])
def test_two_words_for_one_thing_are_refused_together(first, second):
    same_thing = first.split(".")[0] == second.split(".")[0]
    if same_thing:
        with pytest.raises(ConfigError, match="not both"):
            compose([first, second])
    else:  # each alone replaces the default of the other word
        compose([first, second])
