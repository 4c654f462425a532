"""The GPT family with rotary positions: GPT-J, GPT-NeoX and Pythia, StarCoder2."""

from __future__ import annotations

from typing import Any

from lmablate.interop.config_mapping import Activation, Fixed, Keys, Only, Via
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.families.gpt import ATTENTION, BIASED, FFN, NORM_EPS, SIZES, inner, stack
from lmablate.interop.families.llama import NARROW, attention_bias
from lmablate.interop.model_spec import Spec
from lmablate.interop.positions import Rope, window_everywhere
from lmablate.interop.tensors import GROUPS, Rule, ends, linear, norm


def _gptj(spec: Spec) -> list[Rule]:
    here, there = "blocks.{i}.both", "transformer.h.{i}"
    out = ends("transformer.wte.weight", "lm_head") + norm("final_norm", "transformer.ln_f")
    out += norm(f"{here}.norm", f"{there}.ln_1")
    for letter in ("q", "k", "v", "out"):
        out += linear(f"{here}.branch.attention.{letter}_proj", f"{there}.attn.{letter}_proj")
    out += linear(f"{here}.branch.ffn.in_proj", f"{there}.mlp.fc_in")
    return out + linear(f"{here}.branch.ffn.out_proj", f"{there}.mlp.fc_out")


def _neox(spec: Spec) -> list[Rule]:
    names = ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    norms = ("input_layernorm", "post_attention_layernorm")
    blocks = stack("gpt_neox.layers.{i}", "attention.query_key_value", names, form=GROUPS, norms=norms)
    return ends("gpt_neox.embed_in.weight", "lm_head") + norm("final_norm", "gpt_neox.final_layer_norm") + blocks


def _starcoder2(spec: Spec) -> list[Rule]:
    there = "model.layers.{i}"
    out = ends("model.embed_tokens.weight", "lm_head") + norm("final_norm", "model.norm")
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
        out += linear(f"{ATTENTION}.{ours}_proj", f"{there}.self_attn.{theirs}_proj")
    out += linear(f"{FFN}.in_proj", f"{there}.mlp.c_fc") + linear(f"{FFN}.out_proj", f"{there}.mlp.c_proj")
    out += norm("blocks.{i}.attention.norm", f"{there}.input_layernorm")
    return out + norm("blocks.{i}.ffn.norm", f"{there}.post_attention_layernorm")


def _rotary_dim() -> Via:
    def read(config: Any) -> dict[str, Any]:
        width = config.rotary_dim or config.n_embd // config.n_head
        rope = {"posemb": "rope", "posemb.rope_theta": 10000.0, "posemb.layout": "pairs"}
        return {**rope, "posemb.width": width}

    def write(spec: Spec) -> dict[str, Any]:
        return {"rotary_dim": spec["posemb.width"]} if "posemb.width" in spec else {}

    return Via(("rotary_dim",), read, write)


def _parallel_or_serial() -> Via:
    return Via(
        ("use_parallel_residual",),
        lambda config: {"block_layout": "parallel2" if config.use_parallel_residual else "serial"},
        lambda spec: {"use_parallel_residual": spec["block_layout"] == "parallel2"},
    )


FAMILIES = (
    Family(
        "GPTJForCausalLM",
        [
            Fixed({"norm": "layer", "norm.bias": True, "block_layout": "parallel", "model.mlp_bias": True}),
            Fixed({"model.head_bias": True}),
            *(NORM_EPS, inner("n_inner"), Activation("activation_function"), _rotary_dim()),
        ],
        _gptj,
        SIZES,
    ),
    Family(
        "GPTNeoXForCausalLM",
        [
            Fixed({"norm": "layer", "norm.bias": True, "model.mlp_bias": True}),
            *(Keys({"norm.eps": "layer_norm_eps"}), Activation("hidden_act"), Rope(partial=True), attention_bias()),
            *(_parallel_or_serial(), Only({"is_decoder": False})),
        ],
        _neox,
        USUAL_SIZES,
    ),
    Family(
        "Starcoder2ForCausalLM",
        [
            Fixed({"norm": "layer", "norm.bias": True}),
            *(Keys({"norm.eps": "norm_epsilon"}), Activation("hidden_act"), Rope(), window_everywhere()),
            Via(
                ("use_bias",),
                lambda config: dict.fromkeys(BIASED, config.use_bias),
                lambda spec: {"use_bias": any(spec[key] for key in BIASED)},
            ),
        ],
        _starcoder2,
        NARROW,
    ),
)
