"""Configurations as they were released are read as the presets of the same systems say: two accounts of one model."""

import importlib

import pytest

from lmablate import presets
from lmablate.budget import parameters
from lmablate.interop import model_spec
from lmablate.interop.families import FAMILIES, differences

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(width, ffn, layers, heads, kv, vocab, context, eps=1e-5, **rest):
    sizes = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
    given = {"num_key_value_heads": kv, "vocab_size": vocab, "max_position_embeddings": context, "rms_norm_eps": eps}
    return {**sizes, **given, **rest}


def qwen3(width, ffn, layers, heads, kv=8, **rest):
    return llama(width, ffn, layers, heads, kv, 151936, 32768, 1e-6, head_dim=128, rope_theta=1000000.0, **rest)


_GLM = {"partial_rotary_factor": 0.5, "rope_theta": 1000000, "num_nextn_predict_layers": 1}
_UNSTRETCHED = {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": 8192}
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
    "qwen3_0_6b": ("Qwen3Config", qwen3(1024, 3072, 28, 16, tie_word_embeddings=True)),
    "qwen3_1_7b": ("Qwen3Config", qwen3(2048, 6144, 28, 16, tie_word_embeddings=True)),
    "qwen3_4b": ("Qwen3Config", qwen3(2560, 9728, 36, 32, tie_word_embeddings=True)),
    "qwen3_8b": ("Qwen3Config", qwen3(4096, 12288, 36, 32)),
    "qwen3_14b": ("Qwen3Config", qwen3(5120, 17408, 40, 40)),
    "qwen3_32b": ("Qwen3Config", qwen3(5120, 25600, 64, 64)),
    "qwen3_30b_a3b": ("Qwen3MoeConfig", qwen3(2048, 6144, 48, 32, 4, moe_intermediate_size=768, norm_topk_prob=True)),
    "qwen3_235b_a22b": (
        "Qwen3MoeConfig",
        qwen3(4096, 12288, 94, 64, 4, moe_intermediate_size=1536, norm_topk_prob=True, max_window_layers=94),
    ),
    "olmo2_7b": ("Olmo2Config", llama(4096, 11008, 32, 32, 32, 100352, 4096, 1e-6, rope_theta=500000)),
    "olmo2_13b": ("Olmo2Config", llama(5120, 13824, 40, 40, 40, 100352, 4096, 1e-6, rope_theta=500000)),
    "olmo2_32b": ("Olmo2Config", llama(5120, 27648, 64, 40, 8, 100352, 4096, 1e-6, rope_theta=500000)),
    "kimi_k2": (
        "DeepseekV3Config",
        llama(7168, 18432, 61, 64, 64, 163840, 4096, 1e-6, rope_theta=50000.0)
        | {"n_routed_experts": 384, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
        | {"routed_scaling_factor": 2.827, "aux_loss_alpha": 0.001, "scoring_func": "sigmoid"},
    ),
    "glm4_5": (
        "Glm4MoeConfig",
        llama(5120, 12288, 92, 96, 8, 151552, 131072, head_dim=128, attention_bias=True, use_qk_norm=True, **_GLM)
        | {
            "moe_intermediate_size": 1536,
            "n_routed_experts": 160,
            "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5,
        },
    ),
    "glm4_5_air": ("Glm4MoeConfig", {"head_dim": 128, "attention_bias": True, **_GLM}),
    "minimax_m2": (
        "MiniMaxM2Config",
        {
            "rotary_dim": 64,
            "attn_type_list": [1] * 62,
            "num_mtp_modules": 3,
            "use_routing_bias": True,
            "scoring_func": "sigmoid",
        },
    ),
    "hy3": ("HYV3Config", {}),
    "dots_llm1": (
        "Dots1Config",
        llama(4096, 10944, 62, 32, 32, 152064, 32768, rope_theta=10000000, sliding_window=None)
        | {"first_k_dense_replace": 1, "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}
        | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc"},
    ),
    "ernie4_5_21b_a3b": ("Ernie4_5_MoeConfig", {}),
    "mistral_small3_24b": (
        "MistralConfig",
        llama(5120, 32768, 40, 32, 8, 131072, 32768, head_dim=128, rope_theta=100000000.0, sliding_window=None),
    ),
    "mistral_small4_119b": (
        "Mistral4Config",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 1.0, **_UNSTRETCHED}},
    ),
    "ministral3_8b": (
        "Ministral3Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, **_UNSTRETCHED}},
    ),
    "phi4": ("Phi3Config", llama(5120, 17920, 40, 40, 10, 100352, 16384, rope_theta=250000, sliding_window=None)),
    "phi4_mini": (
        "Phi3Config",
        llama(
            3072,
            8192,
            32,
            24,
            8,
            200064,
            4096,
            partial_rotary_factor=0.75,
            tie_word_embeddings=True,
            sliding_window=None,
        ),
    ),
    "seed_oss_36b": ("SeedOssConfig", {"hidden_size": 5120, "rope_theta": 10000000.0, "residual_dropout": 0.1}),
    "afm_4_5b": ("ArceeConfig", llama(2560, 18432, 36, 20, 4, 128004, 4096, head_dim=128)),
}


# The last of each class are compared always.
_FAST = {config: name for name, (config, _) in RELEASED.items()}.values()
NAMES = [pytest.param(name, marks=[] if name in _FAST else pytest.mark.slow) for name in RELEASED]


@pytest.mark.parametrize("name", NAMES)
def test_a_released_configuration_is_its_preset(name):
    config, keys = RELEASED[name]
    family = next(family for family in FAMILIES if family.config == config)
    theirs = family.read(getattr(importlib.import_module("transformers"), config)(**keys))
    ours = model_spec.spec_of(presets.config(name))
    assert differences(ours, theirs) == []
    for key in (*model_spec.BIASES, "norm.bias", "norm.gain", "norm.unit_offset"):
        assert ours[key] == theirs[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RELEASED if presets.published_facts(name).year >= 2024])
def test_the_count_of_a_class_is_that_of_its_preset(name):
    """With the biases on the choice of experts, which are no parameters there."""
    import torch

    library = importlib.import_module("transformers")
    config, keys = RELEASED[name]
    family = next(family for family in FAMILIES if family.config == config)
    with torch.device("meta"):
        model = getattr(library, family.name)(getattr(library, config)(**keys))
    biases = sum(value.numel() for key, value in model.named_buffers() if key.endswith("e_score_correction_bias"))
    assert sum(p.numel() for p in model.parameters()) + biases == parameters(presets.config(name)).total
