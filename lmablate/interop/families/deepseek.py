"""DeepSeek-V2 and V3: latent attention in every layer, and experts in all but the first ones."""

from __future__ import annotations

from typing import Any

from lmablate.interop.config_mapping import Keys, Lens, Via, refuse
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.families.llama import GATED, PRE, attention_bias
from lmablate.interop.model_spec import Spec
from lmablate.interop.positions import Rope, yarn_scale
from lmablate.interop.tensors import Rule, ends, experts, linear, norm

SIZES = {**USUAL_SIZES, "model.head_dim": "qk_nope_head_dim"}
LATENT = {
    "attention.q_rank": "q_lora_rank",
    "attention.kv_rank": "kv_lora_rank",
    "attention.rope_head_dim": "qk_rope_head_dim",
    "attention.v_head_dim": "v_head_dim",
}
_EXPERTS = (
    *("first_k_dense_replace", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("n_group", "topk_group", "topk_method", "norm_topk_prob", "routed_scaling_factor", "moe_layer_freq"),
    *("num_local_experts", "num_mtp_layers", "num_nextn_predict_layers", "qk_head_dim"),
)


def _read_experts(config: Any, third: bool) -> dict[str, Any]:
    # the norms of the latent vectors always have this epsilon, whatever rms_norm_eps is
    spec = {"attention": "mla", "attention.norm_eps": 1e-6}
    if config.first_k_dense_replace >= config.num_hidden_layers:
        return spec
    if not config.n_shared_experts:
        raise refuse(config, "n_shared_experts", config.n_shared_experts, "1 or more, which the class always computes")
    if getattr(config, "mlp_bias", False):
        raise refuse(config, "mlp_bias", True, "False: the routed experts of the class have no biases, and ours would")
    spec |= {
        "ffn": "tokens",
        "ffn.n_experts": config.n_routed_experts,
        "ffn.k": config.num_experts_per_tok,
        "ffn.width": config.moe_intermediate_size,
        "ffn.shared": config.n_shared_experts,
        "ffn.first_dense": config.first_k_dense_replace,
        "ffn.scale": float(config.routed_scaling_factor),
        "ffn.normalise": bool(config.norm_topk_prob) if third else False,
        "ffn.scores": "sigmoid" if third else "softmax",
        "ffn.biased": third,
    }
    limited = third or config.topk_method == "group_limited_greedy"
    if limited and (config.n_group or 1) > (config.topk_group or 1):
        spec |= {"ffn.groups": config.n_group, "ffn.group_k": config.topk_group, "ffn.group_best": 2 if third else 1}
    return spec


def _write_experts(spec: Spec, third: bool) -> dict[str, Any]:
    if spec["ffn"] != "tokens":
        return {"first_k_dense_replace": spec["model.n_layers"]}
    groups, group_k = spec["ffn.groups"] or 1, spec["ffn.group_k"] or 1
    out = {
        "first_k_dense_replace": spec["ffn.first_dense"],
        "n_routed_experts": spec["ffn.n_experts"],
        "num_experts_per_tok": spec["ffn.k"],
        "moe_intermediate_size": spec["ffn.width"],
        "n_shared_experts": spec["ffn.shared"],
        "routed_scaling_factor": spec["ffn.scale"],
        "norm_topk_prob": spec["ffn.normalise"],
        "n_group": groups,
        "topk_group": group_k,
    }
    return out if third else out | {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _experts(third: bool) -> Via:
    return Via(_EXPERTS, lambda config: _read_experts(config, third), lambda spec: _write_experts(spec, third))


def _read_scale(config: Any) -> dict[str, Any]:
    """Read the scale of scores from the head's width, times YaRN's factor squared if ``mscale_all_dim`` is given."""
    rope = config.rope_parameters
    scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    if rope.get("rope_type", "default") != "default" and rope.get("mscale_all_dim"):
        scale *= yarn_scale(rope["factor"], rope["mscale_all_dim"]) ** 2
    return {"attention.scale": scale}


class LatentRope(Rope):
    """Rotary positions, with the weight of YaRN's factor in the scores that gives `attention.scale`."""

    def write(self, spec: Spec) -> dict[str, Any]:
        out = super().write(spec)
        plain = (spec["model.head_dim"] + spec.get("attention.rope_head_dim", 0)) ** -0.5
        factor = spec.get("posemb.factor") or 1.0
        if factor > 1 and out and spec["posemb"] == "rope_yarn":
            ratio = (spec["attention.scale"] / plain) ** 0.5
            weight = (ratio - 1) / (yarn_scale(factor, 1.0) - 1)
            out["rope_parameters"] |= {"mscale_all_dim": weight} if abs(weight) > 1e-12 else {}
        return out


def _read_heads(config: Any) -> dict[str, Any]:
    if config.num_key_value_heads != config.num_attention_heads:
        raise refuse(config, "num_key_value_heads", config.num_key_value_heads, str(config.num_attention_heads))
    return {"model.n_kv_heads": config.num_attention_heads}


_HEADS = Via(
    ("num_key_value_heads", "head_dim"),  # head_dim is the rotary width there, and follows from other keys
    _read_heads,
    lambda spec: {"num_key_value_heads": spec["model.n_heads"]},
)


def _rules(spec: Spec) -> list[Rule]:
    here, there = "blocks.{i}.attention.branch", "model.layers.{i}.self_attn"
    out = ends("model.embed_tokens.weight", "lm_head") + norm("final_norm", "model.norm")
    for ours, theirs in PRE.items():
        out += norm(f"blocks.{{i}}.{ours}", f"model.layers.{{i}}.{theirs}")
    if spec.get("attention.q_rank"):
        out += linear(f"{here}.q_down", f"{there}.q_a_proj") + linear(f"{here}.q_proj", f"{there}.q_b_proj")
        out += norm(f"{here}.q_norm", f"{there}.q_a_layernorm")
    else:
        out += linear(f"{here}.q_proj", f"{there}.q_proj")
    out += linear(f"{here}.kv_down", f"{there}.kv_a_proj_with_mqa") + norm(f"{here}.kv_norm", f"{there}.kv_a_layernorm")
    out += linear(f"{here}.kv_proj", f"{there}.kv_b_proj") + linear(f"{here}.out_proj", f"{there}.o_proj")
    for ours, theirs in {"gate": "gate", "in": "up", "out": "down"}.items():
        out += linear(f"blocks.{{i}}.ffn.branch.{ours}_proj", f"model.layers.{{i}}.mlp.{theirs}_proj")
    return out + experts("blocks.{i}.ffn.branch", "model.layers.{i}.mlp", "shared_experts")


def _family(name: str, *lenses: Lens, third: bool = False) -> Family:
    scale = Via((), _read_scale, lambda spec: {})
    return Family(
        f"{name}ForCausalLM",
        [
            Keys({"norm.eps": "rms_norm_eps", **LATENT}),
            GATED,
            _experts(third),
            _HEADS,
            attention_bias(),
            scale,
            *lenses,
        ],
        _rules,
        SIZES,
    )


def _read_layout(config: Any) -> dict[str, Any]:
    return {"posemb.layout": "pairs" if config.rope_interleave else "halves"}


FAMILIES = (
    _family(
        "DeepseekV3",
        LatentRope(),
        Via(
            ("rope_interleave",),
            _read_layout,
            lambda spec: {"rope_interleave": spec.get("posemb.layout", "halves") == "pairs"},
        ),
        third=True,
    ),
    _family("DeepseekV2", LatentRope("pairs"), Keys({"model.mlp_bias": "mlp_bias"})),
)
