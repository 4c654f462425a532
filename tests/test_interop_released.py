"""Configurations as they were released are read as the presets of the same systems say: two accounts of one model."""

import importlib

import pytest

from lmablate import presets
from lmablate.interop import model_spec
from lmablate.interop.families import FAMILIES, differences

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(width, ffn, layers, heads, kv, vocab, context, eps=1e-5, **rest):
    sizes = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
    given = {"num_key_value_heads": kv, "vocab_size": vocab, "max_position_embeddings": context, "rms_norm_eps": eps}
    return {**sizes, **given, **rest}


_GPT2 = {"n_ctx": 1024, "task_specific_params": {"text-generation": {"do_sample": True}}}
_GEMMA2 = {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6}
_LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Values of the released config.json files, with keys of theirs that the class does not read.
RELEASED = {
    "gpt1": ("OpenAIGPTConfig", {"n_ctx": 512, "predict_special_tokens": True}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt2_xl": ("GPT2Config", {**_GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48}),
    "gptj_6b": ("GPTJConfig", {"rotary": True, "scale_attn_weights": True, "gradient_checkpointing": False}),
    "pythia_12b": (
        "GPTNeoXConfig",
        {
            "hidden_size": 5120,
            "intermediate_size": 20480,
            "num_hidden_layers": 36,
            "num_attention_heads": 40,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "vocab_size": 50688,
        },
    ),
    "gpt_neo_2_7b": (
        "GPTNeoConfig",
        {
            "hidden_size": 2560,
            "num_layers": 32,
            "num_heads": 20,
            "attention_types": [[["global", "local"], 16]],
            "gradient_checkpointing": False,
        },
    ),
    "bloom_176b": (
        "BloomConfig",
        {
            "hidden_size": 14336,
            "n_layer": 70,
            "n_head": 112,
            "seq_length": 2048,
            "offset_alibi": 100,
            "attention_softmax_in_fp32": True,
            "masked_softmax_fusion": True,
            "skip_bias_add": True,
        },
    ),
    "falcon_7b": ("FalconConfig", {"apply_residual_connection_post_layernorm": False}),
    "falcon_180b": (
        "FalconConfig",
        {
            "hidden_size": 14848,
            "num_hidden_layers": 80,
            "num_attention_heads": 232,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "tie_word_embeddings": False,
        },
    ),
    "galactica_120b": (
        "OPTConfig",
        {
            "hidden_size": 10240,
            "num_hidden_layers": 96,
            "num_attention_heads": 80,
            "ffn_dim": 40960,
            "vocab_size": 50000,
            "activation_function": "gelu",
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "learned_embeddings": True,
            "scale_embeddings": False,
        },
    ),
    "mpt_30b": (
        "MptConfig",
        {
            "d_model": 7168,
            "n_heads": 64,
            "n_layers": 48,
            "max_seq_len": 8192,
            "vocab_size": 50432,
            "attn_config": {"attn_impl": "torch", "alibi": True},
            "verbose": 0,
            "init_config": {"name": "kaiming"},
        },
    ),
    "llama1_7b": ("LlamaConfig", {"max_sequence_length": 2048}),
    "llama2_7b": ("LlamaConfig", llama(4096, 11008, 32, 32, 32, 32000, 4096, rope_scaling=None)),
    "llama2_70b": ("LlamaConfig", llama(8192, 28672, 80, 64, 8, 32000, 4096)),
    "llama3_8b": ("LlamaConfig", llama(4096, 14336, 32, 32, 8, 128256, 8192, rope_theta=500000.0)),
    "llama3_1_405b": (
        "LlamaConfig",
        llama(
            *(16384, 53248, 126, 128, 8, 128256, 131072),
            rope_theta=500000.0,
            rope_scaling={"rope_type": "llama3", **_LLAMA31},
        ),
    ),
    "yi_34b": ("LlamaConfig", llama(7168, 20480, 60, 56, 8, 64000, 4096, rope_theta=5000000.0)),
    "deepseek_7b": ("LlamaConfig", llama(4096, 11008, 30, 32, 32, 102400, 4096, 1e-6)),
    "deepseek_67b": ("LlamaConfig", llama(8192, 22016, 95, 64, 8, 102400, 4096, 1e-6)),
    "mistral_7b": ("MistralConfig", llama(4096, 14336, 32, 32, 8, 32000, 32768, sliding_window=4096)),
    "qwen1_5_72b": (
        "Qwen2Config",
        llama(8192, 24576, 80, 64, 64, 152064, 32768, 1e-6, rope_theta=1000000.0, sliding_window=32768),
    ),
    "gemma_7b": ("GemmaConfig", {}),
    "gemma_2b": ("GemmaConfig", llama(2048, 16384, 18, 8, 1, 256000, 8192, 1e-6, head_dim=256)),
    "gemma2_9b": ("Gemma2Config", llama(3584, 14336, 42, 16, 8, 256000, 8192, 1e-6, head_dim=256) | _GEMMA2),
    "gemma2_27b": (
        "Gemma2Config",
        llama(4608, 36864, 46, 32, 16, 256000, 8192, 1e-6, head_dim=128, query_pre_attn_scalar=144) | _GEMMA2,
    ),
    "starcoder_15b": (
        "GPTBigCodeConfig",
        {
            "n_embd": 6144,
            "n_head": 48,
            "n_layer": 40,
            "n_inner": 24576,
            "n_positions": 8192,
            "vocab_size": 49152,
            "max_sequence_length": None,
            "inference_runner": 0,
        },
    ),
    "nemotron4_15b": ("NemotronConfig", {"num_key_value_heads": 8, "head_dim": 128}),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_configuration_is_its_preset(name):
    config, keys = RELEASED[name]
    family = next(family for family in FAMILIES if family.config == config)
    theirs = family.read(getattr(importlib.import_module("transformers"), config)(**keys))
    ours = model_spec.spec_of(presets.config(name))
    assert differences(ours, theirs) == []
    for key in (*model_spec.BIASES, "norm.bias", "norm.gain", "norm.unit_offset"):
        assert ours[key] == theirs[key], key
