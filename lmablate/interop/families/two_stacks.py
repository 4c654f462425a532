"""T5: an encoder and a decoder. Logits are compared for a pair of texts, ``model.hidden_of_pair(source, target)``."""

from __future__ import annotations

import math
from typing import Any

from lmablate.interop.config_mapping import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS, Fixed, Keys, Via, refuse
from lmablate.interop.families.base import Family
from lmablate.interop.model_spec import Spec
from lmablate.interop.tensors import Rule, linear

LENGTH = 512  # tokens of both texts together in our configuration; no weight depends on it
_NAMES = {"gelu_pytorch_tanh": "gelu_new"}  # the names that T5 uses


def _read_ffn(config: Any) -> dict[str, Any]:
    options = GATED_ACTIVATIONS if config.is_gated_act else PLAIN_ACTIVATIONS
    name = {theirs: ours for ours, theirs in _NAMES.items()}.get(config.dense_act_fn, config.dense_act_fn)
    for option, known in options.items():
        if known == name:
            return {"activation": option}
    raise refuse(config, "feed_forward_proj", config.feed_forward_proj, ", ".join(options.values()))


def _write_ffn(spec: Spec) -> dict[str, Any]:
    for options, gate in ((PLAIN_ACTIVATIONS, ""), (GATED_ACTIVATIONS, "gated-")):
        if name := options.get(spec["activation"]):
            return {"feed_forward_proj": gate + _NAMES.get(name, name)}
    return {}


def _scaled(spec: Spec) -> bool:
    return math.isclose(spec["model.logit_scale"], spec["model.d_model"] ** -0.5)


# Their `tie_word_embeddings` divides logits by the root of the width. A new model's head is tied either way; that of a checkpoint
# with other numbers for it (T5 v1.1) is not.
_SCALE = Via(
    ("scale_decoder_outputs", "tie_word_embeddings"),
    lambda config: {
        "model.tie_embeddings": True,
        "model.logit_scale": config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
    },
    lambda spec: {"tie_word_embeddings": _scaled(spec)},
)


def _t5(spec: Spec) -> list[Rule]:
    out = [Rule(("embedding.weight",), "shared.weight"), Rule(("head.proj.weight",), "lm_head.weight")]
    for ours, theirs, n in (
        ("encoder.reader.", "encoder", spec["model.n_encoder_layers"]),
        ("", "decoder", spec["model.n_layers"]),
    ):
        first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out += [Rule((f"{ours}posemb.table.weight",), first)]
        out += [Rule((f"{ours}final_norm.gain.weight",), f"{theirs}.final_layer_norm.weight")]
        for i in range(n):
            out += _block(f"{ours}blocks.{i}", f"{theirs}.block.{i}.layer", cross=theirs == "decoder", spec=spec)
    return out


def _block(ours: str, theirs: str, *, cross: bool, spec: Spec) -> list[Rule]:
    attends = {"attention.first": "0.SelfAttention", "attention.second": "1.EncDecAttention"}
    out: list[Rule] = []
    for i, (here, there) in enumerate(attends.items() if cross else [("attention", "0.SelfAttention")]):
        for mine, name in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}.items():
            out += linear(f"{ours}.{here}.branch.{mine}", f"{theirs}.{there}.{name}")
        out += [Rule((f"{ours}.{here}.norm.gain.weight",), f"{theirs}.{i}.layer_norm.weight")]
    at = 2 if cross else 1
    names = {"in_proj": "wi", "out_proj": "wo"}
    if spec["activation"] in GATED_ACTIVATIONS:
        names = {"gate_proj": "wi_0", "in_proj": "wi_1", "out_proj": "wo"}
    for mine, name in names.items():
        out += linear(f"{ours}.ffn.branch.{mine}", f"{theirs}.{at}.DenseReluDense.{name}")
    return [*out, Rule((f"{ours}.ffn.norm.gain.weight",), f"{theirs}.{at}.layer_norm.weight")]


FAMILIES = (
    Family(
        "T5ForConditionalGeneration",
        [
            Fixed(
                {
                    "objective": "span_corruption",
                    "posemb": "t5",
                    "attention.scale": 1.0,
                    "model.context_length": LENGTH,
                },
                ("dropout_rate", "initializer_factor", "is_encoder_decoder"),
            ),
            Keys({"norm.eps": "layer_norm_epsilon", "posemb.n_buckets": "relative_attention_num_buckets"}),
            Keys({"posemb.max_distance": "relative_attention_max_distance"}),
            Via(("feed_forward_proj", "dense_act_fn", "is_gated_act"), _read_ffn, _write_ffn),
            _SCALE,
        ],
        _t5,
        {
            "model.d_model": "d_model",
            "model.n_encoder_layers": "num_layers",
            "model.n_layers": "num_decoder_layers",
            "model.n_heads": "num_heads",
            "model.head_dim": "d_kv",
            "model.d_ff": "d_ff",
        },
        unties=True,
    ),
)
