"""The GPT family: LayerNorm with biases, learned positions, a plain FFN."""

from __future__ import annotations

from typing import Any

from lmablate.core.errors import ConfigError
from lmablate.interop.config_mapping import Activation, Fixed, Keys, Only, Via
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.model_spec import Spec
from lmablate.interop.tensors import (
    CONV1D,
    CONV1D_ROWS,
    GROUPS,
    SAME,
    Form,
    Rule,
    ends,
    linear,
    norm,
    rows_before,
)

SIZES = {
    "model.d_model": "n_embd",
    "model.n_layers": "n_layer",
    "model.n_heads": "n_head",
    "model.context_length": "n_positions",
}
LEARNED = {"norm": "layer", "norm.bias": True, "posemb": "learned"}
BIASED = {"model.qkv_bias": True, "model.out_bias": True, "model.mlp_bias": True}
NORM_EPS = Keys({"norm.eps": "layer_norm_epsilon"})
PRE = ("attention.norm", "ffn.norm")
ATTENTION, FFN = "blocks.{i}.attention.branch", "blocks.{i}.ffn.branch"
QKV = tuple(f"{ATTENTION}.{letter}_proj" for letter in "qkv")


def inner(attribute: str) -> Via:
    """Return the lens of the FFN's width, with None for four times the model's."""
    return Via(
        (attribute,),
        lambda config: {"model.d_ff": getattr(config, attribute) or 4 * config.hidden_size},
        lambda spec: {attribute: spec["model.d_ff"]},
    )


def four_times() -> Via:
    """Return the lens of an FFN that is always four times as wide as the model."""
    return Via((), lambda config: {"model.d_ff": 4 * config.hidden_size}, lambda spec: {})


def scaled_scores() -> Via:
    """Return the lens of scores that are divided by the root of the head's width, or not."""

    def read(config: Any) -> dict[str, Any]:
        return {} if config.scale_attn_weights else {"attention.scale": 1.0}

    return Via(("scale_attn_weights",), read, lambda spec: {"scale_attn_weights": spec["attention.scale"] != 1.0})


def stack(
    there: str,
    fused: str,
    names: tuple[str, str, str],
    *,
    form: Form,
    plain: Form = SAME,
    norms: tuple[str, str] = ("ln_1", "ln_2"),
) -> list[Rule]:
    """Return the rules of blocks with one matrix for queries, keys and values; `names`: attention output, FFN in, FFN out."""
    out = linear(QKV, f"{there}.{fused}", form) + linear(f"{ATTENTION}.out_proj", f"{there}.{names[0]}", plain)
    out += linear(f"{FFN}.in_proj", f"{there}.{names[1]}", plain)
    out += linear(f"{FFN}.out_proj", f"{there}.{names[2]}", plain)
    for ours, theirs in zip(PRE, norms, strict=True):
        out += norm(f"blocks.{{i}}.{ours}", f"{there}.{theirs}")
    return out


def _positions(theirs: str, form: Form = SAME) -> Rule:
    return Rule(("posemb.table.weight",), theirs, form)


def _gpt1(spec: Spec) -> list[Rule]:
    names = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    blocks = stack("transformer.h.{i}", "attn.c_attn", names, form=CONV1D_ROWS, plain=CONV1D)
    return ends("transformer.tokens_embed.weight", "lm_head", _positions("transformer.positions_embed.weight")) + blocks


def _gpt2(spec: Spec) -> list[Rule]:
    names = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    blocks = stack("transformer.h.{i}", "attn.c_attn", names, form=CONV1D_ROWS, plain=CONV1D)
    table = ends("transformer.wte.weight", "lm_head", _positions("transformer.wpe.weight"))
    return table + norm("final_norm", "transformer.ln_f") + blocks


def _bigcode(spec: Spec) -> list[Rule]:
    names = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    blocks = stack("transformer.h.{i}", "attn.c_attn", names, form=GROUPS)
    table = ends("transformer.wte.weight", "lm_head", _positions("transformer.wpe.weight"))
    return table + norm("final_norm", "transformer.ln_f") + blocks


def _neo(spec: Spec) -> list[Rule]:
    there = "transformer.h.{i}"
    out = ends("transformer.wte.weight", "lm_head", _positions("transformer.wpe.weight"))
    out += norm("final_norm", "transformer.ln_f")
    for letter in ("q", "k", "v", "out"):
        out += linear(f"{ATTENTION}.{letter}_proj", f"{there}.attn.attention.{letter}_proj")
    out += linear(f"{FFN}.in_proj", f"{there}.mlp.c_fc") + linear(f"{FFN}.out_proj", f"{there}.mlp.c_proj")
    return out + norm("blocks.{i}.attention.norm", f"{there}.ln_1") + norm("blocks.{i}.ffn.norm", f"{there}.ln_2")


def _opt(spec: Spec) -> list[Rule]:
    there = "model.decoder.layers.{i}"
    out = ends("model.decoder.embed_tokens.weight", "lm_head")
    out += [_positions("model.decoder.embed_positions.weight", rows_before(2))]
    out += norm("final_norm", "model.decoder.final_layer_norm")
    for ours, theirs in {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "out_proj"}.items():
        out += linear(f"{ATTENTION}.{ours}", f"{there}.self_attn.{theirs}")
    out += linear(f"{FFN}.in_proj", f"{there}.fc1") + linear(f"{FFN}.out_proj", f"{there}.fc2")
    out += norm("blocks.{i}.attention.norm", f"{there}.self_attn_layer_norm")
    return out + norm("blocks.{i}.ffn.norm", f"{there}.final_layer_norm")


def _read_layers(config: Any) -> dict[str, Any]:
    letters = "".join("l" if kind == "local" else "g" for kind in config.attention_layers)
    # GPT-Neo does not scale its scores
    return {
        "attention.pattern": letters,
        "attention.window": config.window_size if "l" in letters else None,
        "attention.scale": 1.0,
    }


def _write_layers(spec: Spec) -> dict[str, Any]:
    letters = spec.get("attention.pattern", "g" * spec["model.n_layers"])
    kinds = [[[{"g": "global"}.get(letter, "local")], 1] for letter in letters]
    return {"attention_types": kinds} | ({"window_size": spec["attention.window"]} if "l" in letters else {})


def _read_opt(config: Any) -> dict[str, Any]:
    if config.word_embed_proj_dim != config.hidden_size:
        raise ConfigError(
            f"from_hf: OPTConfig.word_embed_proj_dim={config.word_embed_proj_dim} projects the token rows to "
            f"hidden_size={config.hidden_size}, which cannot be expressed here: allowed is {config.hidden_size}"
        )
    pre, affine = config.do_layer_norm_before, config.layer_norm_elementwise_affine
    return {
        "norm_position": "pre" if pre else "post",
        "model.final_norm": pre and not config._remove_final_layer_norm,
        "norm.gain": affine,
        "norm.bias": affine,
        "norm.eps": 1e-5,
        **dict.fromkeys(("model.qkv_bias", "model.out_bias", "model.mlp_bias"), config.enable_bias),
    }


def _write_opt(spec: Spec) -> dict[str, Any]:
    pre = spec["norm_position"] == "pre"
    return {
        "do_layer_norm_before": pre,
        "_remove_final_layer_norm": pre and not spec["model.final_norm"],
        "layer_norm_elementwise_affine": bool(spec["norm.gain"] or spec["norm.bias"]),
        "enable_bias": any(spec[f"model.{place}_bias"] for place in ("qkv", "out", "mlp")),
        "word_embed_proj_dim": spec["model.d_model"],
    }


_OPT = Via(
    (
        *("do_layer_norm_before", "_remove_final_layer_norm", "layer_norm_elementwise_affine", "enable_bias"),
        "word_embed_proj_dim",
    ),
    _read_opt,
    _write_opt,
)
_GPT1_ACTIVATIONS = {"relu": "relu", "gelu_tanh": "gelu", "silu": "silu"}  # its gelu is the tanh form
_KV_SWITCH = Via(
    ("multi_query", "num_key_value_heads"),
    lambda config: {"model.n_kv_heads": 1 if config.multi_query else config.n_head},
    lambda spec: {"multi_query": spec["model.n_kv_heads"] == 1},
)

FAMILIES = (
    Family(
        "GPT2LMHeadModel",
        [
            *(Fixed({**LEARNED, **BIASED}), NORM_EPS, inner("n_inner"), Activation("activation_function")),
            *(scaled_scores(), Only({"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})),
        ],
        _gpt2,
        SIZES,
    ),
    Family(
        "OpenAIGPTLMHeadModel",
        [
            Fixed({**LEARNED, **BIASED, "norm_position": "post", "model.final_norm": False}),
            *(NORM_EPS, four_times(), Activation("afn", _GPT1_ACTIVATIONS, {"swish": "silu"})),
        ],
        _gpt1,
        SIZES,
    ),
    Family(
        "GPTBigCodeForCausalLM",
        [
            *(Fixed({**LEARNED, **BIASED}), NORM_EPS, inner("n_inner"), Activation("activation_function")),
            *(scaled_scores(), _KV_SWITCH, Only({"add_cross_attention": False})),
        ],
        _bigcode,
        SIZES,
    ),
    Family(
        "GPTNeoForCausalLM",
        [
            Fixed({**LEARNED, "model.out_bias": True, "model.mlp_bias": True}),
            *(NORM_EPS, inner("intermediate_size"), Activation("activation_function")),
            Via(("attention_types", "attention_layers", "window_size"), _read_layers, _write_layers),
        ],
        _neo,
        {**{k: v for k, v in USUAL_SIZES.items() if k != "model.d_ff"}, "model.n_layers": "num_layers"}
        | {"model.n_heads": "num_heads"},
    ),
    Family(
        "OPTForCausalLM",
        [Fixed(LEARNED), _OPT, Activation("activation_function")],
        _opt,
        {**USUAL_SIZES, "model.d_ff": "ffn_dim"},
    ),
)
