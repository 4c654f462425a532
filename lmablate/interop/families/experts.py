"""Llama-like classes with experts instead of a dense FFN, from Mixtral to GLM-4.5 and Hy3."""

from __future__ import annotations

from collections.abc import Mapping

from lmablate.interop.config_mapping import Fixed, Keys, Lens, Only, Via
from lmablate.interop.families.base import Family
from lmablate.interop.families.expert_lenses import (
    LAYER_KINDS,
    LAYER_RANGE,
    ONLY_DENSE,
    QWEN,
    SIGMOID,
    USUAL,
    grouped,
    mixture,
    shared_of_qwen,
)
from lmablate.interop.families.llama import GATED, NARROW, PRE, WIDE, attention_bias, qk_norm, rules
from lmablate.interop.positions import Rope, layer_types, window_everywhere
from lmablate.interop.tensors import FIRST_ROW, SAME, Form, experts

BIAS = "gate.e_score_correction_bias"
# Read by the modelling code though some configurations do not declare it.
_HEAD_DIM = Via(
    ("head_dim",),
    lambda config: {} if (width := getattr(config, "head_dim", None)) is None else {"model.head_dim": width},
    lambda spec: {"head_dim": spec["model.head_dim"]},
)
_USES_QK_NORM = Via(
    ("use_qk_norm",),
    lambda config: qk_norm(None).read(config) if config.use_qk_norm else {},
    lambda spec: {"use_qk_norm": spec["stability.qk_norm"] is not None},
)


def _family(
    name: str,
    *lenses: Lens,
    sizes: Mapping[str, str] = WIDE,
    rope: Rope | None = None,
    shared: str | None = "shared_experts",
    bias: str = BIAS,
    bias_form: Form = SAME,
) -> Family:
    """Return a family of Llama's attention and names. `shared` and `bias` are the names of the shared experts and of the bias."""
    weights = rules(PRE) + experts("blocks.{i}.ffn.branch", "model.layers.{i}.mlp", shared, bias, bias_form)
    return Family(
        f"{name}ForCausalLM",
        [Keys({"norm.eps": "rms_norm_eps"}), GATED, rope or Rope(), *lenses],
        lambda spec: weights,
        sizes,
    )


_LOCAL = {"num_local_experts": "ffn.n_experts", "num_experts_per_tok": "ffn.k", "intermediate_size": "ffn.width"}
FAMILIES = (
    _family("Mixtral", window_everywhere(), mixture(_LOCAL, {}), shared=None),
    _family(
        "Qwen2Moe",
        Keys({"model.qkv_bias": "qkv_bias"}),
        layer_types("use_sliding_window"),
        mixture(QWEN, {}, ONLY_DENSE),
        shared_of_qwen(),
        sizes=NARROW,
        shared="shared_expert",
    ),
    _family(
        "Qwen3Moe",
        _HEAD_DIM,
        attention_bias(),
        qk_norm(None),
        window_everywhere(switch="use_sliding_window"),
        mixture(QWEN, {}, ONLY_DENSE),
        sizes=NARROW,
        shared=None,
    ),
    _family(
        "Glm4Moe",
        _HEAD_DIM,
        attention_bias(out=False),
        _USES_QK_NORM,
        grouped(SIGMOID, 2),
        sizes=NARROW,
        rope=Rope(partial=True),
    ),
    _family("Dots1", _HEAD_DIM, attention_bias(), qk_norm(None), layer_types(), grouped(SIGMOID, 2), sizes=NARROW),
    _family(
        "MiniMaxM2",
        qk_norm("all_heads"),
        mixture(_LOCAL, SIGMOID),
        rope=Rope(partial=True),
        shared=None,
        bias="e_score_correction_bias",
    ),
    _family(
        "HYV3",
        attention_bias(),
        qk_norm(None),
        Keys({"model.mlp_bias": "mlp_bias"}),
        Fixed({}, ("enable_moe_fp32_combine",)),
        mixture(
            {
                **USUAL,
                "num_experts": "ffn.n_experts",
                "num_shared_experts": "ffn.shared",
                "router_scaling_factor": "ffn.scale",
            },
            SIGMOID,
            LAYER_KINDS,
            always="num_shared_experts",
        ),
        bias="e_score_correction_bias",
    ),
    _family(
        "Ernie4_5_Moe",
        _HEAD_DIM,
        Only({"use_bias": False, "moe_norm_min": 1e-12}),
        mixture(
            {
                "moe_k": "ffn.k",
                "moe_intermediate_size": "ffn.width",
                "moe_num_experts": "ffn.n_experts",
                "moe_num_shared_experts": "ffn.shared",
            },
            {"ffn.biased": True},
            LAYER_RANGE,
        ),
        sizes=NARROW,
        rope=Rope("pairs"),
        bias="gate.moe_statics.e_score_correction_bias",
        bias_form=FIRST_ROW,
    ),
)
