"""Lenses on the experts of a class: their sizes and routing, and which layers have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmablate.interop.config_mapping import Via, refuse
from lmablate.interop.model_spec import Spec

SIGMOID = {"ffn.scores": "sigmoid", "ffn.biased": True}
USUAL = {"num_experts_per_tok": "ffn.k", "moe_intermediate_size": "ffn.width"}
QWEN = {**USUAL, "num_experts": "ffn.n_experts", "norm_topk_prob": "ffn.normalise"}
_GROUPED = {
    **USUAL,
    "n_routed_experts": "ffn.n_experts",
    "n_shared_experts": "ffn.shared",
    "routed_scaling_factor": "ffn.scale",
    "norm_topk_prob": "ffn.normalise",
}
# Read by no class in evaluation mode, or by DeepSeek-V2 alone (deepseek.py).
_UNREAD = ("num_nextn_predict_layers", "topk_method")


def mixture(names: Mapping[str, str], fixed: Spec, first: Via | None = None, always: str | None = None) -> Via:
    """Return the lens of the experts of a class.

    `names` are our entries by their attribute, and `fixed` those that every model of the class has. `first` is the lens of
    `ffn.first_dense`; without it every layer has experts. `always` is the attribute of what the class computes even if it is 0."""

    def read(config: Any) -> dict[str, Any]:
        dense = first.read(config) if first else {}
        if dense.get("ffn.first_dense", 0) >= config.num_hidden_layers:
            return {}
        if getattr(config, "mlp_bias", False):
            raise refuse(
                config, "mlp_bias", True, "False: the routed experts of the class have no biases, and ours would"
            )
        if always and not getattr(config, always):
            raise refuse(config, always, getattr(config, always), "1 or more, which the class always computes")
        return {"ffn": "tokens", **dense, **{ours: getattr(config, theirs) for theirs, ours in names.items()}, **fixed}

    def write(spec: Spec) -> dict[str, Any]:
        if spec["ffn"] == "tokens":
            return {theirs: spec[ours] for theirs, ours in names.items()} | (first.write(spec) if first else {})
        return first.write({**spec, "ffn.first_dense": spec["model.n_layers"]}) if first else {}

    return Via((*names, *(first.theirs if first else ())), read, write)


def grouped(fixed: Spec, group_best: int, is_limited: Callable[[Any], bool] = lambda config: True) -> Via:
    """Return the lens of the experts of DeepSeek and its followers: shared ones, and groups that limit the choice.

    Groups are ranked by their `group_best` highest scores; `is_limited(config)` says whether they have an effect."""
    first = Via(
        ("first_k_dense_replace",),
        lambda config: {"ffn.first_dense": config.first_k_dense_replace},
        lambda spec: {"first_k_dense_replace": spec["ffn.first_dense"]},
    )
    plain = mixture(_GROUPED, fixed, first, always="n_shared_experts")

    def read(config: Any) -> dict[str, Any]:
        spec = plain.read(config)
        if not spec:
            return {}
        spec |= {"ffn.scale": float(spec["ffn.scale"]), "ffn.normalise": bool(spec["ffn.normalise"])}
        if is_limited(config) and (config.n_group or 1) > (config.topk_group or 1):
            spec |= {"ffn.groups": config.n_group, "ffn.group_k": config.topk_group, "ffn.group_best": group_best}
        return spec

    def write(spec: Spec) -> dict[str, Any]:
        groups = {"n_group": spec.get("ffn.groups") or 1, "topk_group": spec.get("ffn.group_k") or 1}
        return plain.write(spec) | (groups if spec["ffn"] == "tokens" else {})

    return Via((*plain.theirs, "n_group", "topk_group", *_UNREAD), read, write)


def _first_of(attribute: str, marked: Sequence[int], config: Any) -> dict[str, Any]:
    """Return how many layers are dense if `marked`, those without experts, are the first ones. Raises ConfigError."""
    if list(marked) != list(range(len(marked))):
        raise refuse(config, attribute, getattr(config, attribute), "experts in all layers but the first ones")
    return {"ffn.first_dense": len(marked)}


def _read_sparse(config: Any) -> dict[str, Any]:
    if config.decoder_sparse_step != 1:
        raise refuse(config, "decoder_sparse_step", config.decoder_sparse_step, "1")
    if not config.num_experts:
        raise refuse(config, "num_experts", config.num_experts, "1 or more")
    return _first_of("mlp_only_layers", config.mlp_only_layers or [], config)


ONLY_DENSE = Via(
    ("mlp_only_layers", "decoder_sparse_step"),
    _read_sparse,
    lambda spec: {"mlp_only_layers": list(range(spec["ffn.first_dense"]))},
)
LAYER_KINDS = Via(
    ("mlp_layer_types",),
    lambda config: _first_of(
        "mlp_layer_types", [i for i, kind in enumerate(config.mlp_layer_types) if kind != "sparse"], config
    ),
    lambda spec: {
        "mlp_layer_types": [
            "sparse" if i >= spec["ffn.first_dense"] else "dense" for i in range(spec["model.n_layers"])
        ]
    },
)


def _read_range(config: Any) -> dict[str, Any]:
    last = config.num_hidden_layers - 1
    for key, value in (("moe_layer_interval", 1), ("moe_layer_end_index", last)):
        if getattr(config, key) != value:
            raise refuse(config, key, getattr(config, key), str(value))
    return {"ffn.first_dense": config.moe_layer_start_index}


LAYER_RANGE = Via(
    ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
    _read_range,
    lambda spec: {"moe_layer_start_index": spec["ffn.first_dense"]},
)


def shared_of_qwen() -> Via:
    """Return the lens of Qwen 2's gated shared expert, which is some routed ones wide."""

    def read(config: Any) -> dict[str, Any]:
        shared, rest = divmod(config.shared_expert_intermediate_size, config.moe_intermediate_size)
        if rest or not shared:
            allowed = f"a multiple of moe_intermediate_size={config.moe_intermediate_size}"
            raise refuse(config, "shared_expert_intermediate_size", config.shared_expert_intermediate_size, allowed)
        return {"ffn.shared": shared, "ffn.shared_gate": True}

    def write(spec: Spec) -> dict[str, Any]:
        if spec["ffn"] != "tokens":
            return {}
        return {"shared_expert_intermediate_size": spec["ffn.width"] * spec["ffn.shared"]}

    return Via(("shared_expert_intermediate_size",), read, write)
