"""Lenses for where a token stands and what it reads: rotary positions with their scaling rules, and windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmablate.interop.config_mapping import Via, refuse
from lmablate.interop.model_spec import Facts, fraction


@dataclass(frozen=True)
class Rope:
    """Rotary positions in ``rope_parameters``. `layout` is the order of the channels that are turned together, `partial`
    whether the class can turn a part of them, and `scaled` whether it looks at scaling rules at all."""

    layout: str = "halves"
    partial: bool = False
    theirs: tuple[str, ...] = ("rope_parameters",)

    def read(self, config: Any) -> dict[str, Any]:
        given = dict(config.rope_parameters)
        kind = given.get("rope_type", "default")
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if self.partial:
            width = int(width * given.get("partial_rotary_factor", 1.0))
        elif given.get("partial_rotary_factor", 1.0) != 1.0:
            raise refuse(config, "rope_parameters", given, "no partial_rotary_factor, which this class does not apply")
        facts = {"posemb.rope_theta": float(given["rope_theta"]), "posemb.width": width, "posemb.layout": self.layout}
        if kind not in _SCALING:
            raise refuse(config, "rope_parameters", given, f"a rope_type of {', '.join(_SCALING)}")
        if kind in ("linear", "dynamic") and given["factor"] == 1.0:
            kind = "default"
        word, keys = _SCALING[kind]
        facts |= {"posemb": word, **{f"posemb.{ours}": given.get(theirs) for ours, theirs in keys.items()}}
        if kind == "dynamic":
            longest = config.max_position_embeddings
            facts |= {"posemb.original_length": longest, "model.context_length": int(longest * given["factor"])}
        if kind == "yarn":
            if given.get("truncate", True) is not True:
                raise refuse(config, "rope_parameters", given, "truncate=True")
            facts |= {"posemb.beta_fast": given.get("beta_fast") or 32.0}
            facts |= {"posemb.beta_slow": given.get("beta_slow") or 1.0, "posemb.attention_factor": _yarn_factor(given)}
        return facts

    def write(self, facts: Facts) -> dict[str, Any]:
        kind = next((kind for kind, (word, _) in _SCALING.items() if word == facts["posemb"]), None)
        if kind is None:
            return {}
        given = {"rope_type": kind, "rope_theta": facts["posemb.rope_theta"]}
        given |= {theirs: facts[f"posemb.{ours}"] for ours, theirs in _SCALING[kind][1].items()}
        out: dict[str, Any] = {"rope_parameters": given}
        if self.partial:
            given["partial_rotary_factor"] = fraction(facts["posemb.width"], facts["model.head_dim"])
        if kind == "dynamic":
            out["max_position_embeddings"] = facts["posemb.original_length"]
        return out


_ORIGINAL = {"factor": "factor", "original_length": "original_max_position_embeddings"}
# their rope_type: our option, and its keys in our words and theirs
_SCALING: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("rope", {}),
    "linear": ("rope_linear", {"factor": "factor"}),
    "dynamic": ("rope_dynamic", {"factor": "factor"}),
    "llama3": (
        "rope_llama3",
        {**_ORIGINAL, "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    ),
    "yarn": (
        "rope_yarn",
        {**_ORIGINAL, **{key: key for key in ("beta_fast", "beta_slow", "attention_factor")}},
    ),
}


@dataclass(frozen=True)
class LongRope(Rope):
    """Rotary positions of Phi-3: plain, or with a factor a pair for short text and one for long."""

    theirs: tuple[str, ...] = ("rope_parameters", "original_max_position_embeddings")

    def read(self, config: Any) -> dict[str, Any]:
        given = dict(config.rope_parameters)
        if given.get("rope_type") != "longrope":
            return super().read(config)
        length = config.original_max_position_embeddings
        stretch = given.get("factor") or config.max_position_embeddings / length
        amplitude = given.get("attention_factor")
        if amplitude is None:
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(length)) if stretch > 1 else 1.0
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        facts = {
            "posemb": "rope_longrope",
            "posemb.layout": self.layout,
            "posemb.rope_theta": float(given["rope_theta"]),
        }
        facts |= {
            "posemb.width": int(width * given.get("partial_rotary_factor", 1.0)),
            "posemb.original_length": length,
        }
        facts |= {f"posemb.{key}": list(map(float, given[key])) for key in ("short_factor", "long_factor")}
        return facts | {"posemb.attention_factor": amplitude}

    def write(self, facts: Facts) -> dict[str, Any]:
        if facts["posemb"] != "rope_longrope":
            return super().write(facts)
        given = {"rope_type": "longrope", "rope_theta": facts["posemb.rope_theta"]}
        given["partial_rotary_factor"] = fraction(facts["posemb.width"], facts["model.head_dim"])
        for key in ("short_factor", "long_factor"):
            number = facts[f"posemb.{key}"]
            given[key] = number if isinstance(number, list) else [number] * (facts["posemb.width"] // 2)
        given["attention_factor"] = facts["posemb.attention_factor"]
        return {"rope_parameters": given, "original_max_position_embeddings": facts["posemb.original_length"]}


def _yarn_factor(given: Mapping[str, Any]) -> float:
    """What the rotated channels are multiplied by: given, a ratio of two (DeepSeek), or the paper's."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    factor, top, bottom = given["factor"], given.get("mscale"), given.get("mscale_all_dim")
    if top and bottom:
        return yarn_scale(factor, top) / yarn_scale(factor, bottom)
    return yarn_scale(factor, 1.0)


def yarn_scale(factor: float, weight: float) -> float:
    """``0.1 weight ln(factor) + 1``, 1 where the text is not stretched (arXiv 2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def window_everywhere(attribute: str = "sliding_window") -> Via:
    """One window for all layers, None for none (Mistral)."""

    def read(config: Any) -> dict[str, Any]:
        window = getattr(config, attribute)
        letters = ("l" if window else "g") * config.num_hidden_layers
        return {"attention.window": window or None, "attention.pattern": letters}

    def write(facts: Facts) -> dict[str, Any]:
        local = set(facts.get("attention.pattern", "g")) == {"l"}
        return {attribute: facts["attention.window"] if local else None}

    return Via((attribute,), read, write)


_TYPES = {"g": "full_attention", "l": "sliding_attention"}


def layer_types(switch: str | None = None) -> Via:
    """A window in the layers that ``layer_types`` marks (Gemma 2, Qwen); `switch` must be on for it to count."""

    def read(config: Any) -> dict[str, Any]:
        if strange := set(config.layer_types) - set(_TYPES.values()):
            raise refuse(config, "layer_types", sorted(strange), " and ".join(_TYPES.values()))
        letters = "".join("l" if kind == _TYPES["l"] else "g" for kind in config.layer_types)
        window = config.sliding_window if "l" in letters else None
        if window is None:
            letters = "g" * len(letters)
        return {"attention.window": window, "attention.pattern": letters}

    def write(facts: Facts) -> dict[str, Any]:
        letters = facts.get("attention.pattern", "g" * facts["model.n_layers"])
        if not set(letters) <= set(_TYPES):
            return {}
        local = "l" in letters
        out: dict[str, Any] = {"layer_types": [_TYPES[letter] for letter in letters]}
        out |= {"sliding_window": facts["attention.window"]} if local else {}
        return out | ({switch: local} if switch else {})

    return Via(("layer_types", "sliding_window", "max_window_layers", *((switch,) if switch else ())), read, write)
