"""Whole published models that differ in positions, windows, scale and norms of attention: logits and gradients with copied
weights, in a text longer than every window and every original length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_models import (
    D_FF,
    D_MODEL,
    HEAD_DIM,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    VOCAB,
    WINDOW,
    close,
    copy_weights,
    fused,
    hf,
    hf_config,
    randomise,
    same_gradients,
)
from tiny import config, tokens_for
from twins import _GPT2, _LLAMA, _LLAMA_NAMES, _NEOX, _SIZES, TWINS, _norm_pair, _pair

from lmablate.model import build_model

ORIGINAL = 10  # what tiny.py gives to options with an original length
THETA = {"rope_theta": 10000.0}


def llama(kind, longest=LENGTH, **rope):
    rope = {"rope_type": kind, "original_max_position_embeddings": ORIGINAL, **THETA, **rope}
    return {**_LLAMA, "max_position_embeddings": longest, "rope_parameters": rope}


def qkv(part, sizes=(D_MODEL, D_MODEL, D_MODEL)):
    return lambda w: w.split(sizes)[part]


def half(part):
    return lambda w: w.chunk(2)[part]


_ATT = "blocks.{i}.attention.branch"
_FFN = "blocks.{i}.ffn.branch"
_PHI3 = {
    **{k: v for k, v in _LLAMA_NAMES.items() if "q_proj" not in k and "k_proj" not in k and "v_proj" not in k},
    **{
        f"{_ATT}.{x}_proj.weight": ("model.layers.{i}.self_attn.qkv_proj.weight", qkv(part))
        for part, x in enumerate("qkv")
    },
    f"{_FFN}.gate_proj.weight": ("model.layers.{i}.mlp.gate_up_proj.weight", half(0)),
    f"{_FFN}.in_proj.weight": ("model.layers.{i}.mlp.gate_up_proj.weight", half(1)),
}
_BOTH = "blocks.{i}.both"
_GPTJ = {
    "embedding.weight": "transformer.wte.weight",
    **_norm_pair("final_norm", "transformer.ln_f"),
    **_norm_pair(f"{_BOTH}.norm", "transformer.h.{i}.ln_1"),
    **{
        f"{_BOTH}.branch.attention.{x}_proj.weight": f"transformer.h.{{i}}.attn.{x}_proj.weight"
        for x in ("q", "k", "v", "out")
    },
    **_pair(f"{_BOTH}.branch.ffn.in_proj", "transformer.h.{i}.mlp.fc_in"),
    **_pair(f"{_BOTH}.branch.ffn.out_proj", "transformer.h.{i}.mlp.fc_out"),
    "head.proj.weight": "lm_head.weight",
    "head.bias.weight": "lm_head.bias",
}
_NEO = {
    **{k: v for k, v in _GPT2.items() if ".attention.branch." not in k and ".ffn.branch." not in k},
    **{
        f"{_ATT}.{x}_proj.weight": f"transformer.h.{{i}}.attn.attention.{x}_proj.weight" for x in ("q", "k", "v", "out")
    },
    f"{_ATT}.out_proj.bias.weight": "transformer.h.{i}.attn.attention.out_proj.bias",
    **_pair(f"{_FFN}.in_proj", "transformer.h.{i}.mlp.c_fc"),
    **_pair(f"{_FFN}.out_proj", "transformer.h.{i}.mlp.c_proj"),
}
_BLOOM = {
    "embedding.weight": "transformer.word_embeddings.weight",
    **_norm_pair("embedding_norm", "transformer.word_embeddings_layernorm"),
    **_norm_pair("final_norm", "transformer.ln_f"),
    **_norm_pair("blocks.{i}.attention.norm", "transformer.h.{i}.input_layernorm"),
    **_norm_pair("blocks.{i}.ffn.norm", "transformer.h.{i}.post_attention_layernorm"),
    **{
        f"{_ATT}.{x}_proj{end}.weight": (f"transformer.h.{{i}}.self_attention.query_key_value.{kind}", fused(part))
        for part, x in enumerate("qkv")
        for end, kind in (("", "weight"), (".bias", "bias"))
    },
    **_pair(f"{_ATT}.out_proj", "transformer.h.{i}.self_attention.dense"),
    **_pair(f"{_FFN}.in_proj", "transformer.h.{i}.mlp.dense_h_to_4h"),
    **_pair(f"{_FFN}.out_proj", "transformer.h.{i}.mlp.dense_4h_to_h"),
}
_MPT = {
    "embedding.weight": "transformer.wte.weight",
    "final_norm.gain.weight": "transformer.norm_f.weight",
    "blocks.{i}.attention.norm.gain.weight": "transformer.blocks.{i}.norm_1.weight",
    "blocks.{i}.ffn.norm.gain.weight": "transformer.blocks.{i}.norm_2.weight",
    **{
        f"{_ATT}.{x}_proj.weight": ("transformer.blocks.{i}.attn.Wqkv.weight", qkv(part))
        for part, x in enumerate("qkv")
    },
    f"{_ATT}.out_proj.weight": "transformer.blocks.{i}.attn.out_proj.weight",
    f"{_FFN}.in_proj.weight": "transformer.blocks.{i}.ffn.up_proj.weight",
    f"{_FFN}.out_proj.weight": "transformer.blocks.{i}.ffn.down_proj.weight",
}
_LAYER = ("norm=layer", "model.tie_embeddings=true")
FACTORS = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.0, 3.0, 9.0, 20.0]}
# words here; configuration, class and keys there; names
CASES: dict[str, tuple[tuple[str, ...], str, str, dict[str, Any], Any]] = {
    "llama_linear": (("posemb=rope_linear",), "Llama", "llama", llama("linear", factor=2.0), _LLAMA_NAMES),
    "llama_dynamic": (
        ("posemb=rope_dynamic",),
        "Llama",
        "llama",
        llama("dynamic", longest=ORIGINAL, factor=2.0),
        _LLAMA_NAMES,
    ),
    "llama_yarn": (("posemb=rope_yarn",), "Llama", "llama", llama("yarn", factor=2.0), _LLAMA_NAMES),
    "llama_3_1": (
        ("posemb=rope_llama3", "attention=gqa"),
        "Llama",
        "llama",
        {
            **llama("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
            "num_key_value_heads": 2,
        },
        _LLAMA_NAMES,
    ),
    "phi3": (
        (
            "posemb=rope_longrope",
            *(f"posemb.{name}=[{','.join(map(str, factors))}]" for name, factors in FACTORS.items()),
        ),
        "Phi3",
        "phi3",
        {
            **llama("longrope", **FACTORS),
            "pad_token_id": 0,
            "original_max_position_embeddings": ORIGINAL,
            "num_key_value_heads": N_HEADS,
        },
        _PHI3,
    ),
    "pythia": (
        ("norm=layer", "model.bias=true", "activation=gelu", "block_layout=parallel2", "posemb.rotary_fraction=0.25"),
        "GPTNeoX",
        "gpt_neox",
        {
            **_SIZES,
            "use_parallel_residual": True,
            "rope_parameters": {"rope_type": "default", **THETA, "partial_rotary_factor": 0.25},
        },
        _NEOX,
    ),
    "gptj": (
        (
            *("norm=layer", "activation=gelu_tanh", "block_layout=parallel", "model.mlp_bias=true"),
            *("model.head_bias=true", "posemb.rotary_fraction=0.5", "posemb.layout=pairs"),
        ),
        "GPTJ",
        "gptj",
        {
            "vocab_size": VOCAB,
            "n_positions": LENGTH,
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_inner": D_FF,
            "rotary_dim": HEAD_DIM // 2,
        },
        _GPTJ,
    ),
    "gpt_neo": (
        (
            *(*_LAYER, "activation=gelu_tanh", "posemb=learned", "attention=pattern", "attention.pattern=gl"),
            *("attention.scale=1.0", "model.out_bias=true", "model.mlp_bias=true"),
        ),
        "GPTNeo",
        "gpt_neo",
        {
            "vocab_size": VOCAB,
            "hidden_size": D_MODEL,
            "num_layers": N_LAYERS,
            "num_heads": N_HEADS,
            "intermediate_size": D_FF,
            "attention_types": [[["global", "local"], N_LAYERS // 2]],
            "window_size": WINDOW,
            "max_position_embeddings": LENGTH,
        },
        _NEO,
    ),
    "gemma2_27b": (
        (*TWINS["gemma2"].words, f"attention.scale={5**-0.5}"),
        "Gemma2",
        "gemma2",
        {**TWINS["gemma2"].keys, "query_pre_attn_scalar": 5},
        TWINS["gemma2"].names,
    ),
    "olmo2": (
        ("norm_position=output", "stability=qk_norm", "stability.qk_norm_over=all_heads", "attention=gqa"),
        "Olmo2",
        "olmo2",
        {**TWINS["olmo2"].keys, "num_key_value_heads": 2},
        {
            **TWINS["olmo2"].names,
            **{f"{_ATT}.{x}_norm.gain.weight": f"model.layers.{{i}}.self_attn.{x}_norm.weight" for x in "qk"},
        },
    ),
    "bloom": (
        (
            *_LAYER,
            "model.bias=true",
            "activation=gelu_tanh",
            "posemb=alibi",
            "model.embedding_norm=true",
            "model.d_ff=128",
        ),
        "Bloom",
        "bloom",
        {"vocab_size": VOCAB, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS},
        _BLOOM,
    ),
    "mpt": (
        (*_LAYER, "norm.bias=false", "activation=gelu", "posemb=alibi", "model.d_ff=128"),
        "Mpt",
        "mpt",
        {"vocab_size": VOCAB, "d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS, "max_seq_len": LENGTH},
        _MPT,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_model(name):
    words, theirs_config, family, keys, names = CASES[name]
    width = () if any("model.d_ff" in word for word in words) else (f"model.d_ff={D_FF}",)
    cfg = config(*words, *width)
    ours = build_model(cfg).eval()
    theirs = randomise(hf(family, f"{theirs_config}ForCausalLM")(hf_config(theirs_config, **keys)))
    copy_weights(ours, theirs, names)
    tokens = tokens_for(cfg)[:, :-1]
    expected = theirs(input_ids=tokens, labels=tokens)
    logits = ours(tokens)
    close(logits, expected.logits)
    # angles may depend on the length of the text, so the loss is that of the whole text, shifted
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    same_gradients(ours, theirs, names, 1e-4)
    with torch.no_grad():  # a text within the original length and the window
        close(ours(tokens[:, :6]), theirs(input_ids=tokens[:, :6]).logits)
