"""The BERT family: masked models, which read in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmablate.interop.config_mapping import Activation, Fixed, Keys, Only, Via
from lmablate.interop.families.base import USUAL_SIZES, Family
from lmablate.interop.model_spec import Spec
from lmablate.interop.tensors import SAME, Form, Rule, linear, norm, rows_before

BIASED = {f"model.{place}_bias": True for place in ("qkv", "out", "mlp", "head")}
BERT = {
    **BIASED,
    "objective": "mlm",
    "norm": "layer",
    "norm.bias": True,
    "norm_position": "post",
    "model.final_norm": False,
    "model.embedding_norm": True,
    "model.head_transform": True,
    "posemb": "learned",
}
OWN = Keys({"norm.eps": "layer_norm_eps", "model.segments": "type_vocab_size"})
ENCODER = Only({"is_decoder": False, "add_cross_attention": False})
IDLE = Fixed(
    {}, ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout_prob", "summary_last_dropout")
)
EXACT = {"gelu": "gelu"}  # the activation of the head, which is fixed by the class
FIRST = 2  # position row of RoBERTa's first token; earlier rows are for padding


def _embedded(there: str, positions: Form = SAME) -> list[Rule]:
    return [
        Rule(("embedding.weight",), f"{there}.word_embeddings.weight"),
        Rule(("posemb.table.weight",), f"{there}.position_embeddings.weight", positions),
        Rule(("segments.weight",), f"{there}.token_type_embeddings.weight"),
        *norm("embedding_norm", f"{there}.LayerNorm"),
    ]


def _head(transform: str, norms: str, weight: str, bias: str) -> list[Rule]:
    return [
        *linear("readout.proj", transform),
        *norm("readout.norm", norms),
        Rule(("head.proj.weight",), weight),
        Rule(("head.bias.weight",), bias),
    ]


def layers(there: str) -> list[Rule]:
    """Return the rules of BERT's blocks."""
    out: list[Rule] = []
    for letter, name in {"q": "query", "k": "key", "v": "value"}.items():
        out += linear(f"blocks.{{i}}.attention.branch.{letter}_proj", f"{there}.attention.self.{name}")
    out += linear("blocks.{i}.attention.branch.out_proj", f"{there}.attention.output.dense")
    out += norm("blocks.{i}.attention.norm", f"{there}.attention.output.LayerNorm")
    out += linear("blocks.{i}.ffn.branch.in_proj", f"{there}.intermediate.dense")
    out += linear("blocks.{i}.ffn.branch.out_proj", f"{there}.output.dense")
    return out + norm("blocks.{i}.ffn.norm", f"{there}.output.LayerNorm")


def _bert(spec: Spec) -> list[Rule]:
    at = "cls.predictions"
    head = _head(f"{at}.transform.dense", f"{at}.transform.LayerNorm", f"{at}.decoder.weight", f"{at}.bias")
    return _embedded("bert.embeddings") + layers("bert.encoder.layer.{i}") + head


def _roberta(spec: Spec) -> list[Rule]:
    head = _head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias")
    return _embedded("roberta.embeddings", rows_before(FIRST)) + layers("roberta.encoder.layer.{i}") + head


def _albert(spec: Spec) -> list[Rule]:
    out = _embedded("albert.embeddings")
    out += linear("embedding_map", "albert.encoder.embedding_hidden_mapping_in")
    for group in range(spec["model.n_distinct_layers"] or spec["model.n_layers"]):
        here, there = f"blocks.{group}", f"albert.encoder.albert_layer_groups.{group}.albert_layers.0"
        for letter, name in {"q": "query", "k": "key", "v": "value"}.items():
            out += linear(f"{here}.attention.branch.{letter}_proj", f"{there}.attention.{name}")
        out += linear(f"{here}.attention.branch.out_proj", f"{there}.attention.dense")
        out += norm(f"{here}.attention.norm", f"{there}.attention.LayerNorm")
        out += linear(f"{here}.ffn.branch.in_proj", f"{there}.ffn")
        out += linear(f"{here}.ffn.branch.out_proj", f"{there}.ffn_output")
        out += norm(f"{here}.ffn.norm", f"{there}.full_layer_layer_norm")
    return out + _head("predictions.dense", "predictions.LayerNorm", "predictions.decoder.weight", "predictions.bias")


def electra_stack(spec: Spec) -> list[Rule]:
    """Return the rules that generator and discriminator share."""
    out = _embedded("electra.embeddings") + layers("electra.encoder.layer.{i}")
    return out + (linear("embedding_map", "electra.embeddings_project") if spec["model.embedding_dim"] else [])


def _electra(spec: Spec) -> list[Rule]:
    at = "generator_predictions"
    head = _head(f"{at}.dense", f"{at}.LayerNorm", "generator_lm_head.weight", "generator_lm_head.bias")
    return electra_stack(spec) + head


def factorised(always: bool) -> Via:
    """Return the lens of the width of token rows; with `always`, a map to the model's width exists even if both are equal."""

    def read(config: Any) -> dict[str, Any]:
        same = not always and config.embedding_size == config.hidden_size
        return {"model.embedding_dim": None if same else config.embedding_size}

    def write(spec: Spec) -> dict[str, Any]:
        return {"embedding_size": spec["model.embedding_dim"] or spec["model.d_model"]}

    return Via(("embedding_size",), read, write)


def _groups() -> Via:
    def read(config: Any) -> dict[str, Any]:
        n = config.num_hidden_groups
        return {"model.n_distinct_layers": None if n == config.num_hidden_layers else n}

    def write(spec: Spec) -> dict[str, Any]:
        return {"num_hidden_groups": spec["model.n_distinct_layers"] or spec["model.n_layers"]}

    return Via(("num_hidden_groups",), read, write)


_PADDED = Via(
    ("max_position_embeddings", "pad_token_id"),
    lambda config: {"model.context_length": config.max_position_embeddings - FIRST},
    # Their positions skip padding, which is token 1: a text with that token is read differently there.
    lambda spec: {"max_position_embeddings": spec["model.context_length"] + FIRST, "pad_token_id": FIRST - 1},
)


def _family(name: str, rules: Any, *more: Any, sizes: Sequence[str] = tuple(USUAL_SIZES)) -> Family:
    return Family(name, [Fixed(BERT), OWN, IDLE, *more], rules, {key: USUAL_SIZES[key] for key in sizes})


FAMILIES = (
    _family("BertForMaskedLM", _bert, Activation("hidden_act"), ENCODER),
    _family(
        "ElectraForMaskedLM",
        _electra,
        *(Activation("hidden_act", EXACT), ENCODER, factorised(always=False)),
    ),
    _family(
        "AlbertForMaskedLM",
        _albert,
        *(Activation("hidden_act"), factorised(always=True), _groups(), Only({"inner_group_num": 1})),
    ),
    _family(
        "RobertaForMaskedLM",
        _roberta,
        *(Activation("hidden_act", EXACT), ENCODER, _PADDED),
        sizes=[key for key in USUAL_SIZES if key != "model.context_length"],
    ),
)
