"""BLOOM, MPT and Falcon: ALiBi or rotary positions, and one fused matrix for queries, keys and values."""

from __future__ import annotations

from typing import Any

from lmablate.interop.config_mapping import Activation, Fixed, Only, Via, refuse
from lmablate.interop.families.base import Family
from lmablate.interop.families.gpt import BIASED, NORM_EPS, four_times
from lmablate.interop.model_spec import Spec
from lmablate.interop.positions import Rope
from lmablate.interop.tensors import GROUPS, ROWS, Form, Rule, ends, linear, norm

SIZES = {"model.d_model": "hidden_size", "model.n_layers": "n_layer", "model.n_heads": "n_head"}


def _branches(attention: str, ffn: str, there: str, names: tuple[str, str, str, str], form: Form) -> list[Rule]:
    """Return the rules of a block's linear layers: the fused matrix, attention's output and the two of the FFN."""
    out = linear(tuple(f"{attention}.{letter}_proj" for letter in "qkv"), f"{there}.{names[0]}", form)
    out += linear(f"{attention}.out_proj", f"{there}.{names[1]}")
    return out + linear(f"{ffn}.in_proj", f"{there}.{names[2]}") + linear(f"{ffn}.out_proj", f"{there}.{names[3]}")


_SERIAL = ("blocks.{i}.attention.branch", "blocks.{i}.ffn.branch")
_MEGATRON = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


def _bloom(spec: Spec) -> list[Rule]:
    there = "transformer.h.{i}"
    out = ends("transformer.word_embeddings.weight", "lm_head") + norm("final_norm", "transformer.ln_f")
    out += norm("embedding_norm", "transformer.word_embeddings_layernorm")
    out += norm("blocks.{i}.attention.norm", f"{there}.input_layernorm")
    out += norm("blocks.{i}.ffn.norm", f"{there}.post_attention_layernorm")
    return out + _branches(*_SERIAL, there, _MEGATRON, GROUPS)


def _mpt(spec: Spec) -> list[Rule]:
    there = "transformer.blocks.{i}"
    out = ends("transformer.wte.weight", "lm_head") + norm("final_norm", "transformer.norm_f")
    out += norm("blocks.{i}.attention.norm", f"{there}.norm_1") + norm("blocks.{i}.ffn.norm", f"{there}.norm_2")
    names = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")
    return out + _branches(*_SERIAL, there, names, ROWS)


def _falcon(spec: Spec) -> list[Rule]:
    there = "transformer.h.{i}"
    out = ends("transformer.word_embeddings.weight", "lm_head") + norm("final_norm", "transformer.ln_f")
    if spec["block_layout"] == "parallel":
        out += norm("blocks.{i}.both.norm", f"{there}.input_layernorm")
        branches = ("blocks.{i}.both.branch.attention", "blocks.{i}.both.branch.ffn")
        return out + _branches(*branches, there, _MEGATRON, GROUPS)
    serial = spec["block_layout"] == "serial"
    names = ("input_layernorm", "post_attention_layernorm") if serial else ("ln_attn", "ln_mlp")
    for ours, theirs in zip(("attention.norm", "ffn.norm"), names, strict=True):
        out += norm(f"blocks.{{i}}.{ours}", f"{there}.{theirs}")
    return out + _branches(*_SERIAL, there, _MEGATRON, GROUPS)


def _read_mpt(config: Any) -> dict[str, Any]:
    inner = config.attn_config
    for name, only in (("clip_qkv", None), ("prefix_lm", False), ("alibi", True), ("alibi_bias_max", 8)):
        if getattr(inner, name) != only:
            raise refuse(config, f"attn_config.{name}", getattr(inner, name), repr(only))
    return {} if inner.softmax_scale is None else {"attention.scale": inner.softmax_scale}


def _write_mpt(spec: Spec) -> dict[str, Any]:
    plain = spec["model.head_dim"] ** -0.5
    scale = None if abs(spec["attention.scale"] / plain - 1) < 1e-9 else spec["attention.scale"]
    return {"attn_config": {"softmax_scale": scale}}


def _read_falcon(config: Any) -> dict[str, Any]:
    if config.alibi:
        raise refuse(
            config, "alibi", True, "False (its biases are divided by the root of the head's width and rounded to bf16)"
        )
    new, n_heads = config.new_decoder_architecture, config.num_attention_heads
    norms = config.num_ln_in_parallel_attn or (2 if new else 1)
    parallel = "parallel2" if norms == 2 else "parallel"
    return {
        "block_layout": parallel if config.parallel_attn else "serial",
        "model.n_kv_heads": config.num_kv_heads if new else 1 if config.multi_query else n_heads,
        **dict.fromkeys(BIASED, config.bias),
    }


def _write_falcon(spec: Spec) -> dict[str, Any]:
    """Write the layout of the 7B if possible, that of the 40B for groups of heads or two norms."""
    n_kv, layout = spec["model.n_kv_heads"], spec["block_layout"]
    new = layout == "parallel2" or n_kv not in (1, spec["model.n_heads"])
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if layout == "parallel2" else 1,
        "parallel_attn": layout != "serial",
        "multi_query": n_kv == 1,
        "num_kv_heads": n_kv,
        "bias": any(spec[key] for key in BIASED),
        "alibi": False,
    }


_FALCON_SIZES = {
    "model.d_model": "hidden_size",
    "model.n_layers": "num_hidden_layers",
    "model.n_heads": "num_attention_heads",
    "model.d_ff": "ffn_hidden_size",
    "model.context_length": "max_position_embeddings",
}
_FALCON_KEYS = (
    *("new_decoder_architecture", "num_ln_in_parallel_attn", "parallel_attn", "multi_query", "num_kv_heads"),
    *("bias", "alibi"),
)
# BLOOM's configuration has no maximum length. A `seq_length` in older files is the length of training texts.
_BLOOM_LENGTH = Via(
    ("seq_length",),
    lambda config: {"model.context_length": getattr(config, "seq_length", None) or 2048},
    lambda spec: {"seq_length": spec["model.context_length"]},
)

FAMILIES = (
    Family(
        "MptForCausalLM",
        [
            Fixed({"norm": "layer", "posemb": "alibi", "activation": "gelu"}),
            *(NORM_EPS, Only({"embedding_fraction": 1.0, "no_bias": True, "logit_scale": None})),
            Fixed({}, ("learned_pos_emb", "expansion_ratio")),  # never read there
            *(four_times(), Via(("attn_config",), _read_mpt, _write_mpt)),
        ],
        _mpt,
        {
            "model.d_model": "d_model",
            "model.n_layers": "n_layers",
            "model.n_heads": "n_heads",
            "model.context_length": "max_seq_len",
        },
    ),
    Family(
        "BloomForCausalLM",
        [
            Fixed({"norm": "layer", "norm.bias": True, "posemb": "alibi", "activation": "gelu_tanh", **BIASED}),
            Fixed({"model.embedding_norm": True}),
            *(NORM_EPS, four_times(), _BLOOM_LENGTH, Only({"apply_residual_connection_post_layernorm": False})),
        ],
        _bloom,
        SIZES,
    ),
    Family(
        "FalconForCausalLM",
        [
            Fixed({"norm": "layer", "norm.bias": True}),
            *(NORM_EPS, Activation("activation"), Rope(), Via(_FALCON_KEYS, _read_falcon, _write_falcon)),
        ],
        _falcon,
        _FALCON_SIZES,
    ),
)
