"""Build our configuration from a model spec."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from lmablate.budget.agreement import check
from lmablate.config.resolve import resolve
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.interop.model_spec import BIASES, NORMS, PLAIN_EXPERTS, SIZES, STACKS, Spec, amplitude, fraction
from lmablate.schema.run_config import RunConfig, RunRequest

BIAS_RATE = (
    0.001  # of a bias on the choice of experts, where training goes on (DeepSeek-V3, arXiv 2412.19437, section 4.2)
)


@cache
def _defaults() -> dict[str, Any]:
    from lmablate.config.composition import request

    return request(["trainer.precision=fp32", "runtime.device=cpu"])


def configure(spec: Spec) -> RunConfig:
    """Return the fp32 configuration of a spec, with defaults elsewhere. Raises ConfigError for sizes that do not fit."""
    raw = copy.deepcopy(_defaults())
    chosen = {group: spec[group] for group in ("norm", "norm_position", "block_layout", "activation", "posemb")}
    chosen |= {"attention": _attention_option(spec), "stability": _stability_option(spec)}
    chosen["ffn"] = "token_choice" if spec["ffn"] == "tokens" else spec["ffn"]
    chosen |= {"objective": spec["objective"]}
    raw["choices"] |= chosen
    for group, option in chosen.items():
        file = yaml.safe_load((CONF_DIR / group / f"{option}.yaml").read_text())
        raw[group] = file.get(group, file)
        raw["model"] |= file.get("model", {})
        if group not in ("activation", "stability", "objective"):
            raw[group] |= _own(group, spec, raw[group])
    raw["stability"] |= _stability(spec)
    raw["model"] |= _model(spec)
    request = RunRequest.model_validate({k: v for k, v in raw.items() if k != "preset"})

    def reference() -> RunConfig:
        raise ConfigError("a model from elsewhere matches no budget")

    cfg = resolve(request, {}, reference)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": spec["model.vocab_size"]})})
    check(cfg)
    return cfg


def _own(group: str, spec: Spec, option: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an option, under its own keys."""
    if group == "ffn":
        return _experts(spec)
    out = {key: spec[f"{group}.{key}"] for key in option if f"{group}.{key}" in spec}
    if group == "norm":
        return out | _gain(spec, "norm")
    if group == "posemb" and "posemb.width" in spec:
        turned = spec.get("attention.rope_head_dim") or spec["model.head_dim"]
        out["rotary_fraction"] = None if spec["posemb.width"] == turned else fraction(spec["posemb.width"], turned)
        out["layout"] = None if spec["posemb.layout"] == "halves" else spec["posemb.layout"]
        if "attention_factor" in out and math.isclose(
            out["attention_factor"], amplitude(spec, spec["model.context_length"])
        ):
            out["attention_factor"] = None
    if group == "attention":
        if "pattern" in out:
            out["pattern"] = _period(spec["attention.pattern"])
        if out.get("v_head_dim") == spec["model.head_dim"]:
            out["v_head_dim"] = None
        width = spec["model.head_dim"] + spec.get("attention.rope_head_dim", 0)
        out["scale"] = None if math.isclose(spec["attention.scale"], width**-0.5) else spec["attention.scale"]
    return out


def _experts(spec: Spec) -> dict[str, Any]:
    """Return the settings of a mixture without the losses that balance it, which belong to training."""
    if spec["ffn"] != "tokens":
        return {}
    losses = ("balance_loss", "balance_over", "device_loss", "communication_loss", "router_z_loss")
    off = dict.fromkeys(losses)
    same = {
        key.removeprefix("ffn."): spec[key] for key in (*PLAIN_EXPERTS, "ffn.n_experts", "ffn.k") if key != "ffn.biased"
    }
    for key in ("noise", "shared", "shared_gate", "first_dense"):
        same[key] = same[key] or None
    scale = None if spec["ffn.scale"] == 1.0 else spec["ffn.scale"]
    ratio = spec["ffn.width"] / spec["model.d_ff"]
    return same | off | {"scale": scale, "expert_ratio": ratio, "bias_rate": BIAS_RATE if spec["ffn.biased"] else None}


def _period(letters: str) -> str:
    """Return the shortest pattern that gives `letters` when repeated."""
    lengths = range(1, len(letters) + 1)
    return next(letters[:n] for n in lengths if (letters[:n] * len(letters))[: len(letters)] == letters)


def _gain(spec: Spec, prefix: str) -> dict[str, Any]:
    if spec[prefix] == "none":
        return {}
    return {
        "gain": None if spec[f"{prefix}.gain"] else False,
        "unit_offset": True if spec[f"{prefix}.unit_offset"] else None,
    }


def _attention_option(spec: Spec) -> str:
    if spec["attention"] != "heads":
        return spec["attention"]
    letters = set(spec["attention.pattern"])
    if letters != {"g"}:
        return "sliding_window" if letters == {"l"} else "pattern"
    n_kv = spec["model.n_kv_heads"]
    return "mha" if n_kv == spec["model.n_heads"] else "mqa" if n_kv == 1 else "gqa"


def _stability_option(spec: Spec) -> str:
    norms = "qkv_norm" if spec["stability.v_norm"] else "qk_norm" if spec["stability.qk_norm"] else None
    caps = spec["stability.attention_soft_cap"] or spec["stability.final_soft_cap"]
    return "all" if norms and caps else norms or ("soft_cap" if caps else "none")


def _stability(spec: Spec) -> dict[str, Any]:
    out: dict[str, Any] = {"z_loss": None}
    for key in ("qk_norm_over", "attention_soft_cap", "final_soft_cap"):
        out[key] = spec[f"stability.{key}"]
    classes = {norm: name for name, norm in NORMS.items()}
    for key in ("qk_norm", "v_norm"):
        prefix = f"stability.{key}"
        if spec[prefix] is None:
            out[key] = None
            continue
        out[key] = {"_target_": f"lmablate.model.norm.{classes[spec[prefix]]}", "eps": spec[f"{prefix}.eps"]}
        out[key] |= _gain(spec, prefix) | ({"bias": spec[f"{prefix}.bias"]} if spec[prefix] == "layer" else {})
    return out


def _model(spec: Spec) -> dict[str, Any]:
    sizes = {size: spec[f"model.{size}"] for size in SIZES if size != "vocab_size"}
    same = {key.removeprefix("model."): spec[key] for key in (*BIASES, "model.tie_embeddings")}
    root = math.isclose(spec["model.embedding_scale"], spec["model.d_model"] ** 0.5)
    scale = "sqrt_d_model" if root else spec["model.embedding_scale"]
    has_norm = spec["norm"] != "none"
    needs_final = has_norm and spec["norm_position"] not in ("post", "deepnorm")
    return {
        **sizes,
        **same,
        "bias": False,
        "ff_ratio": None,
        "gated_scale": None,
        "dropout": 0.0,
        "embedding_scale": None if scale == 1.0 else scale,
        "embedding_norm": spec["model.embedding_norm"] or None,
        "final_norm": None if spec["model.final_norm"] == needs_final else spec["model.final_norm"],
        "logit_scale": None if spec["model.logit_scale"] == 1.0 else spec["model.logit_scale"],
        **{key.removeprefix("model."): spec[key] for key in STACKS},
        "head_transform": spec["model.head_transform"] or None,
    }
