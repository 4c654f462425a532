"""Published architectures in transformers: how each is chosen here, built there, and where its weights belong in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reference_models import (
    D_FF,
    D_MODEL,
    HEAD_DIM,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    VOCAB,
    WINDOW,
    Names,
    fused,
    hf,
    hf_config,
    randomise,
)
from torch import Tensor, nn


def _halves(w: Tensor) -> Tensor:
    """Rows of heads that rotate neighbouring channels (Cohere), in the order of heads that rotate halves."""
    return w.unflatten(0, (-1, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2)


def _conv1d(w: Tensor) -> Tensor:
    """GPT-2 stores weights as [in, out]."""
    return w.T if w.ndim == 2 else w


def _third(part: int) -> Callable[[Tensor], Tensor]:
    return lambda w: w.chunk(3, -1)[part].T if w.ndim == 2 else w.chunk(3)[part]


def _pair(ours: str, theirs: str, piece: Callable[[Tensor], Tensor] | None = None) -> Names:
    """Weight and bias of a linear layer."""
    sources = [f"{theirs}.{kind}" for kind in ("weight", "bias")]
    return {f"{ours}{end}.weight": (s, piece) if piece else s for end, s in zip(("", ".bias"), sources, strict=True)}


def _norm_pair(ours: str, theirs: str) -> Names:
    """Gain and bias of a LayerNorm."""
    return {f"{ours}.gain.weight": f"{theirs}.weight", f"{ours}.bias.weight": f"{theirs}.bias"}


def _llama_like(norms: Mapping[str, str], attention: str, ffn: str, **pieces: Callable[[Tensor], Tensor]) -> Names:
    """Tables, final norm, linear layers without bias; `norms` and the places of the two branches differ by family."""
    names: dict[str, Any] = {
        "embedding.weight": "model.embed_tokens.weight",
        "final_norm.gain.weight": "model.norm.weight",
    }
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
        source = f"model.layers.{{i}}.self_attn.{theirs}_proj.weight"
        names[f"blocks.{{i}}.{attention}.{ours}_proj.weight"] = (source, pieces[ours]) if ours in pieces else source
    for ours, theirs in {"gate": "gate", "in": "up", "out": "down"}.items():
        names[f"blocks.{{i}}.{ffn}.{ours}_proj.weight"] = f"model.layers.{{i}}.mlp.{theirs}_proj.weight"
    return names | {f"blocks.{{i}}.{o}.gain.weight": f"model.layers.{{i}}.{t}.weight" for o, t in norms.items()}


_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
}
_LLAMA = {**_SIZES, "rms_norm_eps": 1e-6, "head_dim": HEAD_DIM, "tie_word_embeddings": False}
_SERIAL = ("attention.branch", "ffn.branch")
_PRE = {"attention.norm": "input_layernorm", "ffn.norm": "post_attention_layernorm"}
_UNTIED: Names = {"head.proj.weight": "lm_head.weight"}
_LLAMA_NAMES: Names = {**_llama_like(_PRE, *_SERIAL), **_UNTIED}
_SANDWICH = {
    "attention.norm_in": "input_layernorm",
    "attention.norm_out": "post_attention_layernorm",
    "ffn.norm_in": "pre_feedforward_layernorm",
    "ffn.norm_out": "post_feedforward_layernorm",
}
_GPT2: Names = {
    "embedding.weight": "transformer.wte.weight",
    "posemb.table.weight": "transformer.wpe.weight",
    **_norm_pair("final_norm", "transformer.ln_f"),
    **_norm_pair("blocks.{i}.attention.norm", "transformer.h.{i}.ln_1"),
    **_norm_pair("blocks.{i}.ffn.norm", "transformer.h.{i}.ln_2"),
    **_pair("blocks.{i}.attention.branch.q_proj", "transformer.h.{i}.attn.c_attn", _third(0)),
    **_pair("blocks.{i}.attention.branch.k_proj", "transformer.h.{i}.attn.c_attn", _third(1)),
    **_pair("blocks.{i}.attention.branch.v_proj", "transformer.h.{i}.attn.c_attn", _third(2)),
    **_pair("blocks.{i}.attention.branch.out_proj", "transformer.h.{i}.attn.c_proj", _conv1d),
    **_pair("blocks.{i}.ffn.branch.in_proj", "transformer.h.{i}.mlp.c_fc", _conv1d),
    **_pair("blocks.{i}.ffn.branch.out_proj", "transformer.h.{i}.mlp.c_proj", _conv1d),
}
_NEOX: Names = {
    "embedding.weight": "gpt_neox.embed_in.weight",
    **_UNTIED,
    **_norm_pair("final_norm", "gpt_neox.final_layer_norm"),
    **_norm_pair("blocks.{i}.attention.norm", "gpt_neox.layers.{i}.input_layernorm"),
    **_norm_pair("blocks.{i}.ffn.norm", "gpt_neox.layers.{i}.post_attention_layernorm"),
    **_pair("blocks.{i}.attention.branch.q_proj", "gpt_neox.layers.{i}.attention.query_key_value", fused(0)),
    **_pair("blocks.{i}.attention.branch.k_proj", "gpt_neox.layers.{i}.attention.query_key_value", fused(1)),
    **_pair("blocks.{i}.attention.branch.v_proj", "gpt_neox.layers.{i}.attention.query_key_value", fused(2)),
    **_pair("blocks.{i}.attention.branch.out_proj", "gpt_neox.layers.{i}.attention.dense"),
    **_pair("blocks.{i}.ffn.branch.in_proj", "gpt_neox.layers.{i}.mlp.dense_h_to_4h"),
    **_pair("blocks.{i}.ffn.branch.out_proj", "gpt_neox.layers.{i}.mlp.dense_4h_to_h"),
}
_GPTJ: Names = {
    "embedding.weight": "transformer.wte.weight",
    "head.proj.weight": "lm_head.weight",
    "head.bias.weight": "lm_head.bias",
    **_norm_pair("final_norm", "transformer.ln_f"),
    **_norm_pair("blocks.{i}.both.norm", "transformer.h.{i}.ln_1"),
    **{
        f"blocks.{{i}}.both.branch.attention.{x}_proj.weight": f"transformer.h.{{i}}.attn.{x}_proj.weight"
        for x in ("q", "k", "v", "out")
    },
    **_pair("blocks.{i}.both.branch.ffn.in_proj", "transformer.h.{i}.mlp.fc_in"),
    **_pair("blocks.{i}.both.branch.ffn.out_proj", "transformer.h.{i}.mlp.fc_out"),
}
_BLOOM: Names = {
    "embedding.weight": "transformer.word_embeddings.weight",
    **_norm_pair("embedding_norm", "transformer.word_embeddings_layernorm"),
    **_norm_pair("final_norm", "transformer.ln_f"),
    **_norm_pair("blocks.{i}.attention.norm", "transformer.h.{i}.input_layernorm"),
    **_norm_pair("blocks.{i}.ffn.norm", "transformer.h.{i}.post_attention_layernorm"),
    **_pair("blocks.{i}.attention.branch.q_proj", "transformer.h.{i}.self_attention.query_key_value", fused(0)),
    **_pair("blocks.{i}.attention.branch.k_proj", "transformer.h.{i}.self_attention.query_key_value", fused(1)),
    **_pair("blocks.{i}.attention.branch.v_proj", "transformer.h.{i}.self_attention.query_key_value", fused(2)),
    **_pair("blocks.{i}.attention.branch.out_proj", "transformer.h.{i}.self_attention.dense"),
    **_pair("blocks.{i}.ffn.branch.in_proj", "transformer.h.{i}.mlp.dense_h_to_4h"),
    **_pair("blocks.{i}.ffn.branch.out_proj", "transformer.h.{i}.mlp.dense_4h_to_h"),
}


@dataclass(frozen=True)
class Twin:
    """A published architecture: the words that choose it here, the class and keys that build it there."""

    words: tuple[str, ...]
    family: str
    keys: Mapping[str, Any]
    names: Names
    d_ff: int = D_FF

    def build(self) -> nn.Module:
        known = {"gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "gptj": "GPTJForCausalLM"}
        name = known.get(self.family, f"{self.family.title()}ForCausalLM")
        config = hf_config(name.removesuffix("ForCausalLM").removesuffix("LMHeadModel"), **self.keys)
        model = randomise(hf(self.family, name)(config))
        for module in model.modules():
            if self.family == "olmo2" and hasattr(module, "q_norm"):  # its other change, a norm over all heads at once
                module.q_norm = module.k_norm = nn.Identity()
        return model


_LAYER_BIAS = ("norm=layer", "model.bias=true")
TWINS = {
    "llama": Twin((), "llama", _LLAMA, _LLAMA_NAMES),
    "llama_gqa": Twin(("attention=gqa",), "llama", {**_LLAMA, "num_key_value_heads": 2}, _LLAMA_NAMES),
    "llama_mqa_wide_heads": Twin(
        ("attention=mqa", "model.head_dim=12"),
        "llama",
        {**_LLAMA, "num_key_value_heads": 1, "head_dim": 12},
        _LLAMA_NAMES,
    ),
    "mistral": Twin(
        ("attention=sliding_window",),
        "mistral",
        {**_LLAMA, "num_key_value_heads": N_HEADS, "sliding_window": WINDOW},
        _LLAMA_NAMES,
    ),
    "qwen3": Twin(
        ("stability=qk_norm", "attention=gqa"),
        "qwen3",
        {**_LLAMA, "num_key_value_heads": 2},
        {
            **_LLAMA_NAMES,
            **{
                f"blocks.{{i}}.attention.branch.{x}_norm.gain.weight": f"model.layers.{{i}}.self_attn.{x}_norm.weight"
                for x in "qk"
            },
        },
    ),
    "gemma2": Twin(
        (
            *("norm_position=sandwich", "activation=geglu_tanh", "attention=interleaved"),
            *("norm.unit_offset=true", "model.embedding_scale=sqrt_d_model"),
            *("stability=soft_cap", "stability.attention_soft_cap=2.0", "stability.final_soft_cap=3.0"),
        ),
        "gemma2",
        {
            **_LLAMA,
            "num_key_value_heads": N_HEADS,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": HEAD_DIM,
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        {**_llama_like(_SANDWICH, *_SERIAL), **_UNTIED},
    ),
    "olmo2": Twin(
        ("norm_position=output",),
        "olmo2",
        {key: value for key, value in _LLAMA.items() if key != "head_dim"},
        {
            **_llama_like(
                {"attention.norm": "post_attention_layernorm", "ffn.norm": "post_feedforward_layernorm"}, *_SERIAL
            ),
            **_UNTIED,
        },
    ),
    "cohere": Twin(
        (
            *("block_layout=parallel", "norm=layer", "norm.bias=false", "model.tie_embeddings=true", "attention=gqa"),
            "model.logit_scale=0.25",
        ),
        "cohere",
        {
            **_SIZES,
            "num_key_value_heads": 2,
            "logit_scale": 0.25,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        _llama_like({"both.norm": "input_layernorm"}, "both.branch.attention", "both.branch.ffn", q=_halves, k=_halves),
    ),
    "gpt2": Twin(
        (*_LAYER_BIAS, "activation=gelu_tanh", "posemb=learned", "model.tie_embeddings=true"),
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_positions": LENGTH,
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_inner": D_FF,
        },
        _GPT2,
    ),
    "gpt_neox": Twin(
        (*_LAYER_BIAS, "activation=gelu", "block_layout=parallel2"),
        "gpt_neox",
        {
            **_SIZES,
            "use_parallel_residual": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
        _NEOX,
    ),
    "gptj": Twin(
        (
            *(
                "block_layout=parallel",
                "norm=layer",
                "activation=gelu_tanh",
                "posemb.layout=pairs",
                "posemb.rotary_fraction=0.5",
            ),
            *("model.mlp_bias=true", "model.head_bias=true"),
        ),
        "gptj",
        {
            "vocab_size": VOCAB,
            "n_positions": 64,
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_inner": D_FF,
            "rotary_dim": HEAD_DIM // 2,
            "tie_word_embeddings": False,
        },
        _GPTJ,
    ),
    "bloom": Twin(
        (
            *_LAYER_BIAS,
            "activation=gelu_tanh",
            "posemb=alibi",
            "model.tie_embeddings=true",
            "model.embedding_norm=true",
        ),
        "bloom",
        {"vocab_size": VOCAB, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS},
        _BLOOM,
        d_ff=4 * D_MODEL,
    ),
}
