"""What a model computes, as flat facts: ``{"norm": "rms", "norm.eps": 1e-6, "model.d_model": 128, ...}``.

Every key is there and every number final, so that two configurations of one function have the same facts however they were
written: scores have the scale they are multiplied by, rotary positions the width they turn, layers a letter each for what
they read. Dropout and z-loss are of training and no fact. ``of(cfg)`` reads them off a configuration;
configure.py is the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from lmablate.paths import CONF_DIR

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig

Facts = Mapping[str, Any]
SIZES = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "context_length")
BIASES = ("model.qkv_bias", "model.out_bias", "model.mlp_bias", "model.head_bias")
# What holds where nothing else is said.
PLAIN: dict[str, Any] = {
    "objective": "causal",
    "model.readout": False,
    "model.tie_embeddings": False,
    **dict.fromkeys(BIASES, False),
    "model.embedding_scale": 1.0,
    "model.embedding_norm": False,
    "model.final_norm": True,
    "model.logit_scale": 1.0,
    "norm": "rms",
    "norm.gain": True,
    "norm.bias": False,
    "norm.unit_offset": False,
    "norm_position": "pre",
    "block_layout": "serial",
    "attention": "heads",
    "stability.attention_soft_cap": None,
    "stability.final_soft_cap": None,
    "stability.qk_norm": None,
    "stability.v_norm": None,
    "stability.qk_norm_over": None,
}
NORMS = {"RMSNorm": "rms", "LayerNorm": "layer", "NoNorm": "none"}


def complete(facts: Facts) -> dict[str, Any]:
    """`facts` with what follows from them, and what is plain, filled in."""
    out = PLAIN | dict(facts)
    out.setdefault("model.head_dim", out["model.d_model"] // out["model.n_heads"])
    out.setdefault("model.n_kv_heads", out["model.n_heads"])
    out.setdefault("attention.scale", out["model.head_dim"] ** -0.5)
    if out["attention"] == "heads":
        out.setdefault("attention.pattern", "g" * out["model.n_layers"])
        out.setdefault("attention.window", None)
    return out


def of(cfg: RunConfig) -> dict[str, Any]:
    """The facts of a configuration."""
    from lmablate.model.shapes import has_final_norm, has_readout

    m, s = cfg.model, cfg.stability
    facts: dict[str, Any] = {"objective": cfg.objective.kind}  # a class of transformers reads from left to right
    facts["model.readout"] = has_readout(cfg)
    facts |= {f"model.{size}": getattr(m, size) for size in SIZES}
    facts |= {"model.tie_embeddings": m.tie_embeddings, **dict(zip(BIASES, m.biases, strict=True))}
    scale = m.d_model**0.5 if m.embedding_scale == "sqrt_d_model" else m.embedding_scale
    facts |= {"model.embedding_scale": scale or 1.0, "model.embedding_norm": bool(m.embedding_norm)}
    facts |= {"model.final_norm": has_final_norm(cfg), "model.logit_scale": m.logit_scale or 1.0}
    facts |= _norm("norm", cfg.norm) | _norm("stability.qk_norm", s.qk_norm) | _norm("stability.v_norm", s.v_norm)
    facts |= {f"stability.{key}": getattr(s, key) for key in ("qk_norm_over", "attention_soft_cap", "final_soft_cap")}
    facts["activation"] = _activation(cfg)
    for group in ("norm_position", "block_layout"):
        facts[group] = cfg.choices[group]
        facts |= _settings(group, getattr(cfg, group))
    return complete(facts | _attention(cfg) | _posemb(cfg))


def _settings(group: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for key, value in part.items() if key != "_target_"}


def _norm(place: str, part: Mapping[str, Any] | None) -> dict[str, Any]:
    if part is None:
        return {}
    given = {key: value for key, value in part.items() if key != "_target_"}
    given |= {"gain": given.get("gain") is None, "unit_offset": bool(given.get("unit_offset"))}
    name = part["_target_"].rpartition(".")[2]
    return {place: NORMS.get(name, name), f"{place}.bias": False} | {f"{place}.{k}": v for k, v in given.items()}


@cache
def activations() -> dict[str, dict[str, Any]]:
    """The options of the axis and what their files say."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF_DIR / "activation").glob("*.yaml"))}


def _activation(cfg: RunConfig) -> str:
    """The word of the option that computes this, whatever word was typed."""
    own = cfg.activation.model_dump()
    word = cfg.choices["activation"]
    return next(
        (name for name, option in activations().items() if option == own),
        word + "".join(f" activation.fn.{k}={v}" for k, v in own["fn"].items() if k != "_target_"),
    )


def _attention(cfg: RunConfig) -> dict[str, Any]:
    from lmablate.model import parts
    from lmablate.model.attention import HeadAttention, LatentAttention

    option, settings = parts.resolve(cfg.attention, "attention")
    given = _settings("attention", settings)
    width = cfg.model.head_dim
    if issubclass(option, LatentAttention):
        width += settings["rope_head_dim"]
        given |= {"attention": "mla", "attention.v_head_dim": settings["v_head_dim"] or cfg.model.head_dim}
    elif issubclass(option, HeadAttention):
        reach = [option.reach(layer, settings) for layer in range(cfg.model.n_layers)]
        spans = {r.window or r.stride for r in reach} - {None}
        letters = "".join("l" if r.window else "s" if r.stride else "g" for r in reach)
        given = {"attention": "heads", "attention.pattern": letters, "attention.window": max(spans, default=None)}
    else:
        given["attention"] = cfg.choices["attention"]
    return given | {"attention.scale": settings.get("scale") or width**-0.5}


def _posemb(cfg: RunConfig) -> dict[str, Any]:
    from lmablate.model import parts
    from lmablate.model.posemb import Rotary
    from lmablate.model.shapes import position_shape

    option, settings = parts.resolve(cfg.posemb, "posemb")
    word = cfg.choices["posemb"]
    facts = {"posemb": word, **_settings("posemb", settings)}
    if not issubclass(option, Rotary):
        return facts
    fraction = facts.pop("posemb.rotary_fraction")
    turned = position_shape(cfg).head_dim
    facts |= {"posemb.width": int(turned * (fraction or 1)), "posemb.layout": settings["layout"] or "halves"}
    for key in ("short_factor", "long_factor"):  # one number for all pairs, or one a pair
        if isinstance(number := settings.get(key), int | float):
            facts[f"posemb.{key}"] = [float(number)] * (facts["posemb.width"] // 2)
    if "attention_factor" in settings:
        facts["posemb.attention_factor"] = settings["attention_factor"] or amplitude(facts, cfg.model.context_length)
    return facts


def amplitude(facts: Facts, context_length: int) -> float:
    """What YaRN and LongRoPE multiply the rotated channels by where no number is given (see model/posemb/scaled.py)."""
    if "posemb.factor" in facts:
        return 0.1 * math.log(facts["posemb.factor"]) + 1.0 if facts["posemb.factor"] > 1 else 1.0
    length = facts["posemb.original_length"]
    return math.sqrt(1 + math.log(max(1.0, context_length / length)) / math.log(length))


def fraction(width: int, whole: int) -> float:
    """A share of `whole` channels that ``int`` brings back to `width`."""
    share = width / whole
    return share if int(whole * share) == width else math.nextafter(share, 1.0)
