"""DeepSeek-V2 and V3, Kimi K2 and Mistral Small 4: latent attention in every layer, and experts in all but the first ones."""

from __future__ import annotations

from typing import Any

from lmablate.interop.config_mapping import Fixed, Keys, Lens, Via, refuse
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.families.expert_lenses import SIGMOID, grouped
from lmablate.interop.families.experts import BIAS
from lmablate.interop.families.llama import GATED, PRE, attention_bias
from lmablate.interop.model_spec import Spec, fraction
from lmablate.interop.positions import Rope, scaled_queries, yarn_scale
from lmablate.interop.tensors import Rule, ends, experts, linear, norm

SIZES = {**USUAL_SIZES, "model.head_dim": "qk_nope_head_dim"}
LATENT = {
    "attention.q_rank": "q_lora_rank",
    "attention.kv_rank": "kv_lora_rank",
    "attention.rope_head_dim": "qk_rope_head_dim",
    "attention.v_head_dim": "v_head_dim",
}
# The norms of the latent vectors always have this epsilon, whatever rms_norm_eps is.
_LATENT = Fixed({"attention": "mla", "attention.norm_eps": 1e-6}, ("qk_head_dim",))
# The second version never normalises, and has groups under one of its methods.
_SECOND = grouped({"ffn.normalise": False}, 1, is_limited=lambda config: config.topk_method == "group_limited_greedy")
_METHOD = Via(
    (),
    lambda config: {},
    lambda spec: {"topk_method": "group_limited_greedy" if spec.get("ffn.groups") else "greedy"},
)


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


class ShareRope(LatentRope):
    """Rotary positions of Mistral 4, which names the share of a head that carries them, and reads it for scaled angles alone."""

    def read(self, config: Any) -> dict[str, Any]:
        rope = dict(config.rope_parameters)
        if rope.get("rope_type", "default") == "default":
            usable = "a rope_type of yarn, with factor=1.0 for plain angles: with default the class turns more channels than it has"
            raise refuse(config, "rope_parameters", rope, usable)
        return super().read(config)

    def write(self, spec: Spec) -> dict[str, Any]:
        out = super().write(spec)
        if out:
            turned = spec.get("attention.rope_head_dim", 0)
            out["rope_parameters"]["partial_rotary_factor"] = fraction(turned, spec["model.head_dim"] + turned)
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
    return out + experts("blocks.{i}.ffn.branch", "model.layers.{i}.mlp", "shared_experts", BIAS)


def _family(name: str, *lenses: Lens) -> Family:
    scale = Via((), _read_scale, lambda spec: {})
    return Family(
        f"{name}ForCausalLM",
        [Keys({"norm.eps": "rms_norm_eps", **LATENT}), _LATENT, GATED, _HEADS, attention_bias(), scale, *lenses],
        _rules,
        SIZES,
    )


_LAYOUT = Via(
    ("rope_interleave",),
    lambda config: {"posemb.layout": "pairs" if config.rope_interleave else "halves"},
    lambda spec: {"rope_interleave": spec.get("posemb.layout", "halves") == "pairs"},
)
FAMILIES = (
    _family("DeepseekV3", LatentRope(), _LAYOUT, grouped(SIGMOID, 2)),
    _family("DeepseekV2", LatentRope("pairs"), Keys({"model.mlp_bias": "mlp_bias"}), _SECOND, _METHOD),
    _family("Mistral4", scaled_queries(ShareRope(partial=True)), _LAYOUT, grouped({}, 2)),
)
