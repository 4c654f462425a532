"""From facts to a configuration of ours that has them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from lmablate.budget.agreement import check
from lmablate.config.resolve import resolve
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.interop.model_spec import BIASES, NORMS, PLAIN_EXPERTS, SIZES, STACKS, Facts, amplitude, fraction
from lmablate.schema.run_config import RunRequest

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


BIAS_RATE = (
    0.001  # of a bias on the choice of experts, where training goes on (DeepSeek-V3, arXiv 2412.19437, section 4.2)
)


@cache
def _defaults() -> dict[str, Any]:
    from lmablate.config.composition import request

    return request(["trainer.precision=fp32", "runtime.device=cpu"])


def configure(facts: Facts) -> RunConfig:
    """A configuration of these facts, in fp32, otherwise the default one. Raises ConfigError for sizes that do not fit."""
    raw = copy.deepcopy(_defaults())
    chosen = {group: facts[group] for group in ("norm", "norm_position", "block_layout", "activation", "posemb")}
    chosen |= {"attention": _attention_option(facts), "stability": _stability_option(facts)}
    chosen["ffn"] = "token_choice" if facts["ffn"] == "tokens" else facts["ffn"]
    chosen |= {"objective": facts["objective"]}
    raw["choices"] |= chosen
    for group, option in chosen.items():
        file = yaml.safe_load((CONF_DIR / group / f"{option}.yaml").read_text())
        raw[group] = file.get(group, file)
        raw["model"] |= file.get("model", {})
        if group not in ("activation", "stability", "objective"):
            raw[group] |= _own(group, facts, raw[group])
    raw["stability"] |= _stability(facts)
    raw["model"] |= _model(facts)
    request = RunRequest.model_validate({k: v for k, v in raw.items() if k != "preset"})

    def reference() -> RunConfig:
        raise ConfigError("a model from elsewhere matches no budget")

    cfg = resolve(request, {}, reference)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": facts["model.vocab_size"]})})
    check(cfg)
    return cfg


def _own(group: str, facts: Facts, option: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an option, in its own words."""
    if group == "ffn":
        return _experts(facts)
    out = {key: facts[f"{group}.{key}"] for key in option if f"{group}.{key}" in facts}
    if group == "norm":
        return out | _gain(facts, "norm")
    if group == "posemb" and "posemb.width" in facts:
        turned = facts.get("attention.rope_head_dim") or facts["model.head_dim"]
        out["rotary_fraction"] = None if facts["posemb.width"] == turned else fraction(facts["posemb.width"], turned)
        out["layout"] = None if facts["posemb.layout"] == "halves" else facts["posemb.layout"]
        if "attention_factor" in out and math.isclose(
            out["attention_factor"], amplitude(facts, facts["model.context_length"])
        ):
            out["attention_factor"] = None
    if group == "attention":
        if "pattern" in out:
            out["pattern"] = _period(facts["attention.pattern"])
        if out.get("v_head_dim") == facts["model.head_dim"]:
            out["v_head_dim"] = None
        width = facts["model.head_dim"] + facts.get("attention.rope_head_dim", 0)
        out["scale"] = None if math.isclose(facts["attention.scale"], width**-0.5) else facts["attention.scale"]
    return out


def _experts(facts: Facts) -> dict[str, Any]:
    """The settings of a mixture. What balances the load is of training and left out, but for a bias that the weights have."""
    if facts["ffn"] != "tokens":
        return {}
    losses = ("balance_loss", "balance_over", "device_loss", "communication_loss", "router_z_loss")
    off = dict.fromkeys(losses)
    same = {
        key.removeprefix("ffn."): facts[key]
        for key in (*PLAIN_EXPERTS, "ffn.n_experts", "ffn.k")
        if key != "ffn.biased"
    }
    for key in ("noise", "shared", "shared_gate", "first_dense"):
        same[key] = same[key] or None
    scale = None if facts["ffn.scale"] == 1.0 else facts["ffn.scale"]
    ratio = facts["ffn.width"] / facts["model.d_ff"]
    return same | off | {"scale": scale, "expert_ratio": ratio, "bias_rate": BIAS_RATE if facts["ffn.biased"] else None}


def _period(letters: str) -> str:
    """The shortest pattern that gives `letters` when it is repeated."""
    lengths = range(1, len(letters) + 1)
    return next(letters[:n] for n in lengths if (letters[:n] * len(letters))[: len(letters)] == letters)


def _gain(facts: Facts, place: str) -> dict[str, Any]:
    if facts[place] == "none":
        return {}
    return {
        "gain": None if facts[f"{place}.gain"] else False,
        "unit_offset": True if facts[f"{place}.unit_offset"] else None,
    }


def _attention_option(facts: Facts) -> str:
    if facts["attention"] != "heads":
        return facts["attention"]
    letters = set(facts["attention.pattern"])
    if letters != {"g"}:
        return "sliding_window" if letters == {"l"} else "pattern"
    n_kv = facts["model.n_kv_heads"]
    return "mha" if n_kv == facts["model.n_heads"] else "mqa" if n_kv == 1 else "gqa"


def _stability_option(facts: Facts) -> str:
    norms = "qkv_norm" if facts["stability.v_norm"] else "qk_norm" if facts["stability.qk_norm"] else None
    caps = facts["stability.attention_soft_cap"] or facts["stability.final_soft_cap"]
    return "all" if norms and caps else norms or ("soft_cap" if caps else "none")


def _stability(facts: Facts) -> dict[str, Any]:
    out: dict[str, Any] = {"z_loss": None}
    for key in ("qk_norm_over", "attention_soft_cap", "final_soft_cap"):
        out[key] = facts[f"stability.{key}"]
    classes = {word: name for name, word in NORMS.items()}
    for key in ("qk_norm", "v_norm"):
        place = f"stability.{key}"
        if facts[place] is None:
            out[key] = None
            continue
        out[key] = {"_target_": f"lmablate.model.norm.{classes[facts[place]]}", "eps": facts[f"{place}.eps"]}
        out[key] |= _gain(facts, place) | ({"bias": facts[f"{place}.bias"]} if facts[place] == "layer" else {})
    return out


def _model(facts: Facts) -> dict[str, Any]:
    sizes = {size: facts[f"model.{size}"] for size in SIZES if size != "vocab_size"}
    same = {key.removeprefix("model."): facts[key] for key in (*BIASES, "model.tie_embeddings")}
    root = math.isclose(facts["model.embedding_scale"], facts["model.d_model"] ** 0.5)
    scale = "sqrt_d_model" if root else facts["model.embedding_scale"]
    has_norm = facts["norm"] != "none"
    needs_final = has_norm and facts["norm_position"] not in ("post", "deepnorm")
    return {
        **sizes,
        **same,
        "bias": False,
        "ff_ratio": None,
        "gated_scale": None,
        "dropout": 0.0,
        "embedding_scale": None if scale == 1.0 else scale,
        "embedding_norm": facts["model.embedding_norm"] or None,
        "final_norm": None if facts["model.final_norm"] == needs_final else facts["model.final_norm"],
        "logit_scale": None if facts["model.logit_scale"] == 1.0 else facts["model.logit_scale"],
        **{key.removeprefix("model."): facts[key] for key in STACKS},
        "head_transform": facts["model.head_transform"] or None,
    }
