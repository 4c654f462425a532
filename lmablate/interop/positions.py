"""Lenses for positions and visible tokens: rotary positions with their scaling rules, and windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmablate.interop.config_mapping import Via, refuse
from lmablate.interop.model_spec import Spec, fraction


@dataclass(frozen=True)
class Rope:
    """Rotary positions in ``rope_parameters``.

    `layout` is the order of the channels that are turned together; `partial`: the class can turn only a part of them."""

    layout: str = "halves"
    partial: bool = False
    theirs: tuple[str, ...] = ("rope_parameters",)

    def read(self, config: Any) -> dict[str, Any]:
        rope = dict(config.rope_parameters)
        kind = rope.get("rope_type", "default")
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if self.partial:
            width = int(width * rope.get("partial_rotary_factor", 1.0))
        elif rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise refuse(config, "rope_parameters", rope, "no partial_rotary_factor, which this class does not apply")
        spec = {"posemb.rope_theta": float(rope["rope_theta"]), "posemb.width": width, "posemb.layout": self.layout}
        if kind not in _SCALING:
            raise refuse(config, "rope_parameters", rope, f"a rope_type of {', '.join(_SCALING)}")
        if (
            kind in ("linear", "dynamic", "yarn")
            and rope["factor"] == 1.0
            and (kind != "yarn" or _yarn_factor(rope) == 1.0)
        ):
            kind = "default"
        option, keys = _SCALING[kind]
        spec |= {"posemb": option, **{f"posemb.{ours}": rope.get(theirs) for ours, theirs in keys.items()}}
        if kind == "dynamic":
            longest = config.max_position_embeddings
            spec |= {"posemb.original_length": longest, "model.context_length": int(longest * rope["factor"])}
        if kind == "yarn":
            if rope.get("truncate", True) is not True:
                raise refuse(config, "rope_parameters", rope, "truncate=True")
            spec |= {"posemb.beta_fast": rope.get("beta_fast") or 32.0}
            spec |= {"posemb.beta_slow": rope.get("beta_slow") or 1.0, "posemb.attention_factor": _yarn_factor(rope)}
        return spec

    def write(self, spec: Spec) -> dict[str, Any]:
        kind = next((kind for kind, (option, _) in _SCALING.items() if option == spec["posemb"]), None)
        if kind is None:
            return {}
        rope = {"rope_type": kind, "rope_theta": spec["posemb.rope_theta"]}
        rope |= {theirs: spec[f"posemb.{ours}"] for ours, theirs in _SCALING[kind][1].items()}
        out: dict[str, Any] = {"rope_parameters": rope}
        if self.partial:
            rope["partial_rotary_factor"] = fraction(spec["posemb.width"], spec["model.head_dim"])
        if kind == "dynamic":
            out["max_position_embeddings"] = spec["posemb.original_length"]
        return out


_ORIGINAL = {"factor": "factor", "original_length": "original_max_position_embeddings"}
# by their rope_type: our option, and its keys under our and their names
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
    """Rotary positions of Phi-3: plain, or with one factor per pair for short texts and one for long texts."""

    theirs: tuple[str, ...] = ("rope_parameters", "original_max_position_embeddings", "partial_rotary_factor")

    def read(self, config: Any) -> dict[str, Any]:
        rope = dict(config.rope_parameters)
        if rope.get("rope_type") != "longrope":
            return super().read(config)
        length = config.original_max_position_embeddings
        stretch = rope.get("factor") or config.max_position_embeddings / length
        amplitude = rope.get("attention_factor")
        if amplitude is None:
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(length)) if stretch > 1 else 1.0
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        spec = {
            "posemb": "rope_longrope",
            "posemb.layout": self.layout,
            "posemb.rope_theta": float(rope["rope_theta"]),
        }
        spec |= {
            "posemb.width": int(width * rope.get("partial_rotary_factor", 1.0)),
            "posemb.original_length": length,
        }
        spec |= {f"posemb.{key}": list(map(float, rope[key])) for key in ("short_factor", "long_factor")}
        return spec | {"posemb.attention_factor": amplitude}

    def write(self, spec: Spec) -> dict[str, Any]:
        if spec["posemb"] != "rope_longrope":
            return super().write(spec)
        rope = {"rope_type": "longrope", "rope_theta": spec["posemb.rope_theta"]}
        rope["partial_rotary_factor"] = fraction(spec["posemb.width"], spec["model.head_dim"])
        for key in ("short_factor", "long_factor"):
            number = spec[f"posemb.{key}"]
            rope[key] = number if isinstance(number, list) else [number] * (spec["posemb.width"] // 2)
        rope["attention_factor"] = spec["posemb.attention_factor"]
        return {"rope_parameters": rope, "original_max_position_embeddings": spec["posemb.original_length"]}


def _yarn_factor(rope: Mapping[str, Any]) -> float:
    """Return the factor of the rotated channels: given, a ratio of two (DeepSeek), or the paper's."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor, top, bottom = rope["factor"], rope.get("mscale"), rope.get("mscale_all_dim")
    if top and bottom:
        return yarn_scale(factor, top) / yarn_scale(factor, bottom)
    return yarn_scale(factor, 1.0)


def yarn_scale(factor: float, weight: float) -> float:
    """Return ``0.1 weight ln(factor) + 1``, or 1 if the text is not stretched (arXiv 2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaled_queries(rope: Rope) -> Via:
    """Return the lens of `rope` in a class whose queries grow with the log of their position (Ministral 3, from Llama 4).

    They start to grow at ``original_max_position_embeddings``. We do not have that, so our context ends there."""

    def read(config: Any) -> dict[str, Any]:
        given = config.rope_parameters
        growth, length = given.get("llama_4_scaling_beta"), given.get("original_max_position_embeddings")
        if growth is None or length is None:
            needed = (
                "a llama_4_scaling_beta (0 for none) and an original_max_position_embeddings, which the class reads"
            )
            raise refuse(config, "rope_parameters", dict(given), needed)
        context = {"model.context_length": min(length, config.max_position_embeddings)} if growth else {}
        return rope.read(config) | context

    def write(spec: Spec) -> dict[str, Any]:
        out = rope.write(spec)
        given = out.get("rope_parameters", {})
        if given.get("rope_type") == "default":  # plain angles are YaRN's with a factor of 1, which has that length
            given |= {
                "rope_type": "yarn",
                "factor": 1.0,
                "original_max_position_embeddings": spec["model.context_length"],
            }
        if "original_max_position_embeddings" not in given:
            return {}
        given["llama_4_scaling_beta"] = 0.0
        return out

    return Via(rope.theirs, read, write)


def window_everywhere(attribute: str = "sliding_window", switch: str | None = None) -> Via:
    """Return the lens of one window for all layers, None for none (Mistral), and of the `switch` that it needs."""

    def read(config: Any) -> dict[str, Any]:
        window = getattr(config, attribute)
        letters = ("l" if window else "g") * config.num_hidden_layers
        return {"attention.window": window or None, "attention.pattern": letters}

    def write(spec: Spec) -> dict[str, Any]:
        local = set(spec.get("attention.pattern", "g")) == {"l"}
        out: dict[str, Any] = {attribute: spec["attention.window"] if local else None}
        return out | ({switch: local} if switch else {})

    return Via((attribute, *((switch,) if switch else ())), read, write)


_TYPES = {"g": "full_attention", "l": "sliding_attention"}


def layer_types(switch: str | None = None) -> Via:
    """Return the lens of a window in the layers that ``layer_types`` marks (Gemma 2, Qwen), if `switch` is on."""

    def read(config: Any) -> dict[str, Any]:
        if strange := set(config.layer_types) - set(_TYPES.values()):
            raise refuse(config, "layer_types", sorted(strange), " and ".join(_TYPES.values()))
        letters = "".join("l" if kind == _TYPES["l"] else "g" for kind in config.layer_types)
        window = config.sliding_window if "l" in letters else None
        if window is None:
            letters = "g" * len(letters)
        return {"attention.window": window, "attention.pattern": letters}

    def write(spec: Spec) -> dict[str, Any]:
        letters = spec.get("attention.pattern", "g" * spec["model.n_layers"])
        if not set(letters) <= set(_TYPES):
            return {}
        local = "l" in letters
        out: dict[str, Any] = {"layer_types": [_TYPES[letter] for letter in letters]}
        out |= {"sliding_window": spec["attention.window"]} if local else {}
        return out | ({switch: local} if switch else {})

    return Via(("layer_types", "sliding_window", "max_window_layers", *((switch,) if switch else ())), read, write)
