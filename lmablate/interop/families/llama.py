"""The Llama family: RMSNorm or LayerNorm, rotary halves, separate projections, a gated FFN (Nemotron: a plain one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmablate.interop.config_mapping import (
    GATED_ACTIVATIONS,
    PLAIN_ACTIVATIONS,
    Activation,
    Fixed,
    Keys,
    Lens,
    Only,
    Via,
)
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.model_spec import Spec
from lmablate.interop.positions import LongRope, Rope, layer_types, scaled_queries, window_everywhere
from lmablate.interop.tensors import HALVES, ROWS, Rule, ends, linear, norm

PRE = {"attention.norm": "input_layernorm", "ffn.norm": "post_attention_layernorm"}
SANDWICH = {
    "attention.norm_in": "input_layernorm",
    "attention.norm_out": "post_attention_layernorm",
    "ffn.norm_in": "pre_feedforward_layernorm",
    "ffn.norm_out": "post_feedforward_layernorm",
}
OUTPUT = {"attention.norm": "post_attention_layernorm", "ffn.norm": "post_feedforward_layernorm"}
SANDWICH_GLM = {
    "attention.norm_in": "input_layernorm",
    "attention.norm_out": "post_self_attn_layernorm",
    "ffn.norm_in": "post_attention_layernorm",
    "ffn.norm_out": "post_mlp_layernorm",
}
WIDE = {**USUAL_SIZES, "model.head_dim": "head_dim", "model.n_kv_heads": "num_key_value_heads"}
NARROW = {**USUAL_SIZES, "model.n_kv_heads": "num_key_value_heads"}
GATED = Activation("hidden_act", GATED_ACTIVATIONS)


def attention_bias(out: bool = True) -> Via:
    """Return the lens of one switch for the biases of attention; with `out`, of its output projection too."""
    keys = ("model.qkv_bias", "model.out_bias") if out else ("model.qkv_bias",)
    return Via(
        ("attention_bias",),
        lambda config: dict.fromkeys(keys, config.attention_bias),
        lambda spec: {"attention_bias": any(spec[key] for key in keys)},
    )


def qk_norm(over: str | None, eps: str = "rms_norm_eps") -> Via:
    """Return the lens of an RMSNorm of queries and keys, with the epsilon of the other norms."""

    def read(config: Any) -> dict[str, Any]:
        plain = {"gain": True, "bias": False, "unit_offset": False, "eps": getattr(config, eps)}
        spec: dict[str, Any] = {"stability.qk_norm": "rms", "stability.qk_norm_over": over}
        return spec | {f"stability.qk_norm.{key}": value for key, value in plain.items()}

    return Via((), read, lambda spec: {})


def embedding_root() -> Via:
    """Return the lens of token rows scaled by the root of the width (Gemma)."""
    return Via((), lambda config: {"model.embedding_scale": config.hidden_size**0.5}, lambda spec: {})


def rules(
    norms: Mapping[str, str],
    fused_ffn: bool = False,
    attention: str = "attention.branch",
    ffn: str = "ffn.branch",
    fused_qkv: bool = False,
) -> list[Rule]:
    """Return the rules of the usual weight names; `norms`, `attention` and `ffn` differ between classes."""
    there = "model.layers.{i}"
    out = ends("model.embed_tokens.weight", "lm_head") + norm("final_norm", "model.norm")
    for ours, theirs in norms.items():
        out += norm(f"blocks.{{i}}.{ours}", f"{there}.{theirs}")
    here = f"blocks.{{i}}.{attention}"
    if fused_qkv:
        out += linear(tuple(f"{here}.{letter}_proj" for letter in "qkv"), f"{there}.self_attn.qkv_proj", ROWS)
    for letter, theirs in {"out": "o"}.items() if fused_qkv else {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
        out += linear(f"{here}.{letter}_proj", f"{there}.self_attn.{theirs}_proj")
    for letter in "qk":
        out += norm(f"{here}.{letter}_norm", f"{there}.self_attn.{letter}_norm")
    gate, up = f"blocks.{{i}}.{ffn}.gate_proj", f"blocks.{{i}}.{ffn}.in_proj"
    if fused_ffn:
        out += linear((gate, up), f"{there}.mlp.gate_up_proj", HALVES)
    else:
        out += linear(gate, f"{there}.mlp.gate_proj") + linear(up, f"{there}.mlp.up_proj")
    return out + linear(f"blocks.{{i}}.{ffn}.out_proj", f"{there}.mlp.down_proj")


def like_llama(
    name: str,
    *lenses: Lens,
    norms: Mapping[str, str] = PRE,
    sizes: Mapping[str, str] = WIDE,
    eps: str = "rms_norm_eps",
    activation: Activation = GATED,
    rope: Lens | None = None,
    fused_ffn: bool = False,
    fused_qkv: bool = False,
    branches: Mapping[str, str] | None = None,
) -> Family:
    """Return a family that differs from Llama in the given arguments; `branches` are the names of the branches in our blocks."""
    weights = rules(norms, fused_ffn, fused_qkv=fused_qkv, **(branches or {}))

    def of(spec: Spec) -> list[Rule]:
        return weights

    return Family(
        f"{name}ForCausalLM",
        [Keys({"norm.eps": eps}), activation, rope or Rope(), *lenses],
        of,
        sizes,
    )


_GEMMA = Fixed({"norm.unit_offset": True})
FAMILIES = (
    like_llama("Llama", attention_bias(), Keys({"model.mlp_bias": "mlp_bias"})),
    like_llama("Mistral", window_everywhere()),
    like_llama("Ministral3", window_everywhere(), rope=scaled_queries(Rope())),
    like_llama("Qwen2", Fixed({"model.qkv_bias": True}), layer_types("use_sliding_window"), sizes=NARROW),
    like_llama("Qwen3", attention_bias(), qk_norm(None), layer_types("use_sliding_window")),
    like_llama("Gemma", _GEMMA, embedding_root(), attention_bias(), Only({"use_bidirectional_attention": None})),
    like_llama(
        "Gemma2",
        Fixed({"norm.unit_offset": True, "norm_position": "sandwich"}),
        embedding_root(),
        attention_bias(),
        layer_types(),
        Only({"use_bidirectional_attention": None}),
        Keys(
            {
                "stability.attention_soft_cap": "attn_logit_softcapping",
                "stability.final_soft_cap": "final_logit_softcapping",
            }
        ),
        Via(
            ("query_pre_attn_scalar",),
            lambda config: {"attention.scale": config.query_pre_attn_scalar**-0.5},
            lambda spec: {"query_pre_attn_scalar": _whole(spec["attention.scale"] ** -2)},
        ),
        norms=SANDWICH,
        activation=Activation("hidden_activation", GATED_ACTIVATIONS),
    ),
    like_llama(
        "Olmo2",
        Fixed({"norm_position": "output"}),
        attention_bias(),
        qk_norm("all_heads"),
        norms=OUTPUT,
        sizes=NARROW,
    ),
    like_llama(
        "Cohere",
        Fixed({"norm": "layer", "block_layout": "parallel"}),
        attention_bias(),
        Keys({"model.logit_scale": "logit_scale"}),
        Only({"use_qk_norm": False}),
        norms={"both.norm": "input_layernorm"},
        sizes=NARROW,
        eps="layer_norm_eps",
        rope=Rope("pairs"),
        branches={"attention": "both.branch.attention", "ffn": "both.branch.ffn"},
    ),
    like_llama(
        "Glm4",
        Fixed({"norm_position": "sandwich"}),
        attention_bias(out=False),
        norms=SANDWICH_GLM,
        rope=Rope("pairs", partial=True),
        fused_ffn=True,
    ),
    like_llama(
        "Glm",
        attention_bias(out=False),
        rope=Rope("pairs", partial=True),
        fused_ffn=True,
    ),
    like_llama(
        "Nemotron",
        Fixed({"norm": "layer", "norm.bias": True, "norm.unit_offset": True}),
        attention_bias(),
        Keys({"model.mlp_bias": "mlp_bias"}),
        eps="norm_eps",
        activation=Activation("hidden_act", PLAIN_ACTIVATIONS),
        rope=Rope(partial=True),
    ),
    like_llama(
        "Arcee",
        attention_bias(),
        Keys({"model.mlp_bias": "mlp_bias"}),
        activation=Activation("hidden_act", PLAIN_ACTIVATIONS),
    ),
    like_llama(
        "SeedOss",
        Keys(
            {"model.qkv_bias": "attention_bias", "model.out_bias": "attention_out_bias", "model.mlp_bias": "mlp_bias"}
        ),
    ),
    like_llama("Phi3", window_everywhere(), sizes=NARROW, rope=LongRope(partial=True), fused_ffn=True, fused_qkv=True),
    like_llama(
        "StableLm",
        Fixed({"norm": "layer", "norm.bias": True}),
        Keys({"model.qkv_bias": "use_qkv_bias"}),
        Only({"use_parallel_residual": False, "qk_layernorm": False}),
        sizes=NARROW,
        eps="layer_norm_eps",
        rope=Rope(partial=True),
    ),
    like_llama(
        "Granite",
        attention_bias(),
        Keys(
            {
                "model.mlp_bias": "mlp_bias",
                "model.embedding_scale": "embedding_multiplier",
                "attention.scale": "attention_multiplier",
            }
        ),
        Only({"residual_multiplier": 1.0}),
        Via(
            ("logits_scaling",),
            lambda config: {"model.logit_scale": 1.0 / config.logits_scaling},
            lambda spec: {"logits_scaling": 1.0 / spec["model.logit_scale"]},
        ),
        sizes=NARROW,
    ),
)


def _whole(number: float) -> float | int:
    """Return a number as int if it is whole up to rounding."""
    return round(number) if abs(number - round(number)) < 1e-9 * abs(number) else number
