"""The flat spec of a model's computation: ``{"norm": "rms", "norm.eps": 1e-6, "model.d_model": 128, ...}``.

Every key is present and every number final, so that two configurations of one function have the same spec: scores have their
scale, rotary positions the width they turn, layers a letter each for the span they read. Dropout and z-loss affect training
only and are not compared. ``spec_of(cfg)`` reads the spec of a configuration; configure.py is the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.model import components
from lmablate.model.attention import HeadAttention, LatentAttention
from lmablate.model.dims import ffn_option, ffn_shape, has_final_norm, has_readout, logit_scale, position_shape
from lmablate.model.ffn import TokenChoice
from lmablate.model.own_code import own_parts
from lmablate.model.posemb import Rotary
from lmablate.schema.run_config import RunConfig

Spec = Mapping[str, Any]
SIZES = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "context_length")
BIASES = ("model.qkv_bias", "model.out_bias", "model.mlp_bias", "model.head_bias")
STACKS = tuple(f"model.{key}" for key in ("n_encoder_layers", "n_distinct_layers", "embedding_dim", "segments"))
# Default entries.
PLAIN: dict[str, Any] = {
    "objective": "causal",
    "model.readout": False,
    "model.tie_embeddings": False,
    **dict.fromkeys(BIASES, False),
    "model.embedding_scale": 1.0,
    "model.embedding_norm": False,
    "model.final_norm": True,
    "model.logit_scale": 1.0,
    **dict.fromkeys(STACKS),
    "model.head_transform": False,
    "norm": "rms",
    "norm.gain": True,
    "norm.bias": False,
    "norm.unit_offset": False,
    "norm_position": "pre",
    "block_layout": "serial",
    "ffn": "dense",
    "attention": "heads",
    "stability.attention_soft_cap": None,
    "stability.final_soft_cap": None,
    "stability.qk_norm": None,
    "stability.v_norm": None,
    "stability.qk_norm_over": None,
}
# Default entries of a token-choice mixture. `width` is that of an expert. Balancing affects training only and is left out.
PLAIN_EXPERTS: dict[str, Any] = {
    "ffn.scores": "softmax",
    "ffn.normalise": True,
    "ffn.scale": 1.0,
    "ffn.noise": False,
    "ffn.shared": 0,
    "ffn.shared_gate": False,
    "ffn.first_dense": 0,
    "ffn.groups": None,
    "ffn.group_k": None,
    "ffn.group_best": None,
    "ffn.capacity_factor": None,
    "ffn.biased": False,
}
NORMS = {"RMSNorm": "rms", "LayerNorm": "layer", "NoNorm": "none"}


def complete(spec: Spec) -> dict[str, Any]:
    """Return `spec` with derived and default entries filled in."""
    out = PLAIN | dict(spec)
    out.setdefault("model.head_dim", out["model.d_model"] // out["model.n_heads"])
    out.setdefault("model.n_kv_heads", out["model.n_heads"])
    out.setdefault("attention.scale", out["model.head_dim"] ** -0.5)
    if out["ffn"] == "tokens":
        out = PLAIN_EXPERTS | out
        if not out["ffn.first_dense"]:  # no layer has the width of a dense network
            out["model.d_ff"] = out["ffn.width"]
    if out["attention"] == "heads":
        out.setdefault("attention.pattern", "g" * out["model.n_layers"])
        out.setdefault("attention.window", None)
    return out


def spec_of(cfg: RunConfig) -> dict[str, Any]:
    """Return the spec of a configuration. Raises ConfigError for a user's own components, which no transformers class has."""
    if own := own_parts(cfg):
        raise ConfigError(f"{', '.join(own)}: a part of your own, which no class of transformers computes")
    m, s = cfg.model, cfg.stability
    # The objective decides the visible tokens and the head's output; with two stacks it does not matter how texts are split.
    spec: dict[str, Any] = {"objective": "span_corruption" if m.n_encoder_layers else cfg.objective.kind}
    spec |= {key: getattr(m, key.removeprefix("model.")) for key in STACKS}
    spec["model.head_transform"] = bool(m.head_transform)
    spec["model.readout"] = has_readout(cfg)
    spec |= {f"model.{size}": getattr(m, size) for size in SIZES}
    spec |= {"model.tie_embeddings": m.tie_embeddings, **dict(zip(BIASES, m.biases, strict=True))}
    scale = m.d_model**0.5 if m.embedding_scale == "sqrt_d_model" else m.embedding_scale
    spec |= {"model.embedding_scale": scale or 1.0, "model.embedding_norm": bool(m.embedding_norm)}
    spec |= {"model.final_norm": has_final_norm(cfg), "model.logit_scale": logit_scale(cfg) or 1.0}
    spec |= _norm("norm", cfg.norm) | _norm("stability.qk_norm", s.qk_norm) | _norm("stability.v_norm", s.v_norm)
    spec |= {f"stability.{key}": getattr(s, key) for key in ("qk_norm_over", "attention_soft_cap", "final_soft_cap")}
    spec["activation"] = _activation(cfg)
    for group in ("norm_position", "block_layout"):
        spec[group] = cfg.choices[group]
        spec |= _settings(group, getattr(cfg, group))
    return complete(spec | _attention(cfg) | _posemb(cfg) | _experts(cfg))


def _settings(group: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for key, value in part.items() if key != "_target_"}


def _norm(prefix: str, part: Mapping[str, Any] | None) -> dict[str, Any]:
    if part is None:
        return {}
    given = {key: value for key, value in part.items() if key != "_target_"}
    given |= {"gain": given.get("gain") is None, "unit_offset": bool(given.get("unit_offset"))}
    name = part["_target_"].rpartition(".")[2]
    return {prefix: NORMS.get(name, name), f"{prefix}.bias": False} | {f"{prefix}.{k}": v for k, v in given.items()}


@cache
def activations() -> dict[str, dict[str, Any]]:
    """Return the options of the axis and the content of their files."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF_DIR / "activation").glob("*.yaml"))}


def _activation(cfg: RunConfig) -> str:
    """Return the option that computes this activation, whatever name was used."""
    own = cfg.activation.model_dump()
    option = cfg.choices["activation"]
    return next(
        (name for name, content in activations().items() if content == own),
        option + "".join(f" activation.fn.{k}={v}" for k, v in own["fn"].items() if k != "_target_"),
    )


def _attention(cfg: RunConfig) -> dict[str, Any]:
    option, settings = components.resolve(cfg.attention, "attention")
    given = _settings("attention", settings)
    width = cfg.model.head_dim
    if issubclass(option, LatentAttention) and option.forward is LatentAttention.forward:
        width += settings["rope_head_dim"]
        given |= {"attention": "mla", "attention.v_head_dim": settings["v_head_dim"] or cfg.model.head_dim}
    elif issubclass(option, HeadAttention) and option.forward is HeadAttention.forward:
        layer_spans = [option.layer_span(layer, settings) for layer in range(cfg.model.n_layers)]
        sizes = {r.window or r.stride for r in layer_spans} - {None}
        letters = "".join("l" if r.window else "s" if r.stride else "g" for r in layer_spans)
        given = {"attention": "heads", "attention.pattern": letters, "attention.window": max(sizes, default=None)}
    else:
        given["attention"] = cfg.choices["attention"]
    return given | {"attention.scale": settings.get("scale") or width**-0.5}


def _experts(cfg: RunConfig) -> dict[str, Any]:
    if cfg.ffn is None:
        return {}
    option = ffn_option(cfg)
    if not isinstance(option, TokenChoice):
        return {} if option.is_dense else {"ffn": cfg.choices["ffn"]}
    given = components.resolve(cfg.ffn, "ffn")[1]
    spec = {key: given[key.partition(".")[2]] for key in PLAIN_EXPERTS if key != "ffn.biased"}
    spec = {key: PLAIN_EXPERTS[key] if value is None else value for key, value in spec.items()}
    if given["group_k"] is None:
        spec["ffn.groups"] = None
    elif given["group_best"] is None:
        spec["ffn.group_best"] = 1
    spec |= {f"ffn.{key}": given[key] for key in ("n_experts", "k")}
    return spec | {"ffn": "tokens", "ffn.width": option.width(ffn_shape(cfg)), "ffn.biased": bool(given["bias_rate"])}


def _posemb(cfg: RunConfig) -> dict[str, Any]:
    option, settings = components.resolve(cfg.posemb, "posemb")
    spec = {"posemb": cfg.choices["posemb"], **_settings("posemb", settings)}
    if not issubclass(option, Rotary):
        return spec
    fraction = spec.pop("posemb.rotary_fraction")
    turned = position_shape(cfg).head_dim
    spec |= {"posemb.width": int(turned * (fraction or 1)), "posemb.layout": settings["layout"] or "halves"}
    for key in ("short_factor", "long_factor"):  # one number for all pairs, or one a pair
        if isinstance(number := settings.get(key), int | float):
            spec[f"posemb.{key}"] = [float(number)] * (spec["posemb.width"] // 2)
    if "attention_factor" in settings:
        spec["posemb.attention_factor"] = settings["attention_factor"] or amplitude(spec, cfg.model.context_length)
    return spec


def amplitude(spec: Spec, context_length: int) -> float:
    """Return the default factor of the rotated channels in YaRN and LongRoPE (see model/posemb/scaled.py)."""
    if "posemb.factor" in spec:
        return 0.1 * math.log(spec["posemb.factor"]) + 1.0 if spec["posemb.factor"] > 1 else 1.0
    length = spec["posemb.original_length"]
    return math.sqrt(1 + math.log(max(1.0, context_length / length)) / math.log(length))


def fraction(width: int, whole: int) -> float:
    """Return a share of `whole` channels that ``int`` maps back to `width`."""
    share = width / whole
    return share if int(whole * share) == width else math.nextafter(share, 1.0)
