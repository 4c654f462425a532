"""Llama-like classes with experts instead of a dense FFN: Mixtral and Qwen2-MoE."""

from __future__ import annotations

from typing import Any

from lmablate.interop.config_mapping import Keys, Via, refuse
from lmablate.interop.families.base import Family
from lmablate.interop.families.llama import GATED, NARROW, PRE, WIDE, rules
from lmablate.interop.model_spec import Spec
from lmablate.interop.positions import Rope, layer_types, window_everywhere
from lmablate.interop.tensors import Rule, experts


def _weights(shared: str | None) -> list[Rule]:
    return rules(PRE) + experts("blocks.{i}.ffn.branch", "model.layers.{i}.mlp", shared)


def _read_mixtral(config: Any) -> dict[str, Any]:
    return {
        "ffn": "tokens",
        "ffn.n_experts": config.num_local_experts,
        "ffn.k": config.num_experts_per_tok,
        "ffn.width": config.intermediate_size,
    }


def _write_mixtral(spec: Spec) -> dict[str, Any]:
    if spec["ffn"] != "tokens":
        return {}
    return {"num_local_experts": spec["ffn.n_experts"], "num_experts_per_tok": spec["ffn.k"]}


def _read_qwen(config: Any) -> dict[str, Any]:
    first = list(config.mlp_only_layers or [])
    if first != list(range(len(first))) or len(first) >= config.num_hidden_layers or not config.num_experts:
        raise refuse(config, "mlp_only_layers", first, "the first layers, and not all")
    if config.decoder_sparse_step != 1:
        raise refuse(config, "decoder_sparse_step", config.decoder_sparse_step, "1")
    shared, rest = divmod(config.shared_expert_intermediate_size, config.moe_intermediate_size)
    if rest or not shared:
        allowed = f"a multiple of moe_intermediate_size={config.moe_intermediate_size}"
        raise refuse(config, "shared_expert_intermediate_size", config.shared_expert_intermediate_size, allowed)
    return {
        "ffn": "tokens",
        "ffn.n_experts": config.num_experts,
        "ffn.k": config.num_experts_per_tok,
        "ffn.width": config.moe_intermediate_size,
        "ffn.normalise": config.norm_topk_prob,
        "ffn.shared": shared,
        "ffn.shared_gate": True,
        "ffn.first_dense": len(first),
    }


def _write_qwen(spec: Spec) -> dict[str, Any]:
    if spec["ffn"] != "tokens":
        return {}
    return {
        "num_experts": spec["ffn.n_experts"],
        "num_experts_per_tok": spec["ffn.k"],
        "moe_intermediate_size": spec["ffn.width"],
        "shared_expert_intermediate_size": spec["ffn.width"] * spec["ffn.shared"],
        "norm_topk_prob": spec["ffn.normalise"],
        "mlp_only_layers": list(range(spec["ffn.first_dense"])),
    }


_OF_QWEN = (
    *(
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "norm_topk_prob",
    ),
    *("mlp_only_layers", "decoder_sparse_step"),
)
FAMILIES = (
    Family(
        "MixtralForCausalLM",
        [
            Keys({"norm.eps": "rms_norm_eps"}),
            GATED,
            Rope(),
            window_everywhere(),
            Via(("num_local_experts", "num_experts_per_tok"), _read_mixtral, _write_mixtral),
        ],
        lambda spec: _weights(None),
        WIDE,
    ),
    Family(
        "Qwen2MoeForCausalLM",
        [
            Keys({"norm.eps": "rms_norm_eps", "model.qkv_bias": "qkv_bias"}),
            GATED,
            Rope(),
            layer_types("use_sliding_window"),
            Via(_OF_QWEN, _read_qwen, _write_qwen),
        ],
        lambda spec: _weights("shared_expert"),
        NARROW,
    ),
)
