"""Small models of transformers with random weights, one entry a class or form of it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from reference_models import D_FF, D_MODEL, LENGTH, N_HEADS, N_LAYERS, VOCAB, WINDOW, randomise

ORIGINAL = 10  # a length that scaled positions were made for, below that of the text
THETA = {"rope_theta": 10000.0}
USUAL = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": LENGTH,
}
GQA = {**USUAL, "num_key_value_heads": 2}
SHORT = {"vocab_size": VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": LENGTH}
LATENT = {
    **USUAL,
    "first_k_dense_replace": N_LAYERS,
    "n_routed_experts": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "num_key_value_heads": N_HEADS,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
OF_EXPERTS = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
}
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
QWEN_MOE = {
    **GQA,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 40,
    "norm_topk_prob": False,
}
# Experts behind one dense layer, as DeepSeek-V3 and its followers name them.
FOLLOWER = {**GQA, **OF_EXPERTS, "head_dim": 12, "norm_topk_prob": True}
QWEN3_MOE = {key: value for key, value in QWEN_MOE.items() if not key.startswith("shared")} | {"head_dim": 12}
MINIMAX = {**GQA, "head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 3}
HY = {**GQA, "head_dim": 12, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
ERNIE = {**GQA, "moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 20}
MISTRAL4 = {**LATENT, **OF_EXPERTS, "first_k_dense_replace": 0}
FALCON = {"vocab_size": VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}
FALCON |= {"max_position_embeddings": LENGTH}
BLOOM = {"vocab_size": VOCAB, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}
NEO = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_layers": N_LAYERS,
    "num_heads": N_HEADS,
    "intermediate_size": D_FF,
    "max_position_embeddings": LENGTH,
    "window_size": WINDOW,
}
OPT = {k: v for k, v in USUAL.items() if k != "intermediate_size"} | {"ffn_dim": D_FF}


def rope(kind: str = "default", **keys: Any) -> dict[str, Any]:
    if kind in ("llama3", "yarn"):
        keys = {"original_max_position_embeddings": ORIGINAL, **keys}
    return {"rope_parameters": {"rope_type": kind, **THETA, **keys}}


def scaled_queries(growth: float, original: int, kind: str = "yarn", **keys: Any) -> dict[str, Any]:
    """Positions of Ministral 3 and Mistral Small 4, whose queries grow from `original` tokens on unless `growth` is 0."""
    return rope(kind, original_max_position_embeddings=original, llama_4_scaling_beta=growth, **keys)


@dataclass(frozen=True)
class Case:
    """`back` is the class that to_hf chooses for it, where an earlier one does the same; `slow` cases vary a class."""

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    back: str | None = None
    slow: bool = False

    @property
    def config_name(self) -> str:
        return self.name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"

    def build(self, seed: int = 0, **changes: Any) -> Any:
        library = importlib.import_module("transformers")
        tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        config = getattr(library, self.config_name)(**tokens, **{**self.keys, **changes})
        config._attn_implementation = "eager"
        model = randomise(getattr(library, self.name)(config), seed)
        for name, buffer in (*model.named_buffers(), *model.named_parameters()):
            if name.endswith("e_score_correction_bias"):  # moved by training, though it has no gradient
                buffer.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        return model


def llama(*forms: dict[str, Any], name: str = "Llama", base: dict[str, Any] = USUAL, **rest: Any) -> Case:
    keys = dict(base)
    for form in forms:
        keys |= form
    return Case(f"{name}ForCausalLM", keys, **rest)


CASES: dict[str, Case] = {
    "gpt1": Case("OpenAIGPTLMHeadModel", SHORT),
    "gpt1_relu": Case("OpenAIGPTLMHeadModel", {**SHORT, "afn": "relu", "layer_norm_epsilon": 0.1}, slow=True),
    "gpt2": Case("GPT2LMHeadModel", {**SHORT, "n_inner": D_FF}),
    "gpt2_untied_unscaled": Case(
        "GPT2LMHeadModel", {**SHORT, "tie_word_embeddings": False, "scale_attn_weights": False}, slow=True
    ),
    "gpt_neo": Case("GPTNeoForCausalLM", {**NEO, "attention_types": [[["global", "local"], N_LAYERS // 2]]}),
    "gpt_neo_local_first": Case(
        "GPTNeoForCausalLM", {**NEO, "num_layers": 3, "attention_types": [[["local", "local", "global"], 1]]}, slow=True
    ),
    "gptj": Case("GPTJForCausalLM", {**SHORT, "rotary_dim": 4}),
    "gptj_all_channels": Case("GPTJForCausalLM", {**SHORT, "rotary_dim": 8, "n_inner": 40}, slow=True),
    "pythia": Case("GPTNeoXForCausalLM", {**USUAL, **rope(partial_rotary_factor=0.25)}),
    "gpt_neox_serial": Case(
        "GPTNeoXForCausalLM",
        {**USUAL, **rope(partial_rotary_factor=1.0), "use_parallel_residual": False, "attention_bias": False},
        slow=True,
    ),
    "opt": Case("OPTForCausalLM", OPT, back="GPT2LMHeadModel"),
    "galactica": Case(
        "OPTForCausalLM",
        {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
    "opt_350m": Case("OPTForCausalLM", {**OPT, "do_layer_norm_before": False}, slow=True),
    "bloom": Case("BloomForCausalLM", BLOOM),
    "bloom_six_heads": Case("BloomForCausalLM", {**BLOOM, "hidden_size": 48, "n_head": 6}, slow=True),
    "mpt": Case(
        "MptForCausalLM",
        {
            "vocab_size": VOCAB,
            "d_model": D_MODEL,
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "max_seq_len": LENGTH,
        },
    ),
    "mpt_six_heads_scaled": Case(
        "MptForCausalLM",
        {
            "vocab_size": VOCAB,
            "d_model": 48,
            "n_layers": 3,
            "n_heads": 6,
            "max_seq_len": LENGTH,
            "attn_config": {"softmax_scale": 0.2},
        },
        slow=True,
    ),
    "falcon_7b": Case("FalconForCausalLM", FALCON),
    "falcon_40b": Case("FalconForCausalLM", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": Case(
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        slow=True,
    ),
    "falcon_serial_biased": Case(
        "FalconForCausalLM",
        {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": D_FF, **rope()},
        back="GPTNeoXForCausalLM",
        slow=True,
    ),
    "llama1": llama({"rms_norm_eps": 1e-3}),
    "llama2_70b": llama({"num_key_value_heads": 2, "tie_word_embeddings": True}, slow=True),
    "llama_biased_wide_heads": llama(
        {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "num_key_value_heads": 1, "hidden_act": "gelu"},
        slow=True,
    ),
    "llama3": llama(GQA, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama_linear": llama(rope("linear", factor=2.0), slow=True),
    "llama_dynamic": llama(rope("dynamic", factor=2.0), {"max_position_embeddings": 12}),
    "llama_yarn": llama(rope("yarn", factor=2.4), slow=True),
    "llama_yarn_numbers": llama(
        rope("yarn", factor=2.4, beta_fast=4.0, beta_slow=0.5, attention_factor=1.3), slow=True
    ),
    "mistral": llama(GQA, {"sliding_window": WINDOW}, name="Mistral"),
    "mistral_no_window": llama(GQA, {"sliding_window": None}, name="Mistral", back="LlamaForCausalLM", slow=True),
    "qwen2": llama(GQA, name="Qwen2"),
    "qwen2_windows": llama(
        GQA,
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        name="Qwen2",
        slow=True,
    ),
    "qwen3": llama(GQA, {"head_dim": 12}, name="Qwen3"),
    "gemma": llama(GQA, {"head_dim": 12}, name="Gemma"),
    "gemma2": llama(
        GQA,
        {"head_dim": 8, "query_pre_attn_scalar": 5, "sliding_window": WINDOW},
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        name="Gemma2",
    ),
    "gemma2_no_caps": llama(
        {"num_hidden_layers": 4, "head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"sliding_window": 3},
        name="Gemma2",
        slow=True,
    ),
    "starcoder": Case("GPTBigCodeForCausalLM", {**SHORT, "n_inner": D_FF}),
    "starcoder_mha": Case("GPTBigCodeForCausalLM", {**SHORT, "multi_query": False}, back="GPT2LMHeadModel", slow=True),
    "starcoder2": llama(GQA, {"sliding_window": WINDOW}, name="Starcoder2"),
    "starcoder2_no_bias": llama(GQA, {"use_bias": False}, name="Starcoder2", slow=True),
    "nemotron": llama(GQA, rope(partial_rotary_factor=0.5), name="Nemotron"),
    "nemotron_biased": llama(
        {"num_key_value_heads": N_HEADS, "attention_bias": True, "mlp_bias": True},
        rope(partial_rotary_factor=1.0),
        name="Nemotron",
        slow=True,
    ),
    "olmo2": llama(GQA, name="Olmo2"),
    "cohere": llama(GQA, {"logit_scale": 0.25}, name="Cohere"),
    "cohere_biased": llama({"attention_bias": True, "logit_scale": 3.0}, name="Cohere", slow=True),
    "glm4": llama(GQA, {"head_dim": 8}, rope(partial_rotary_factor=0.5), name="Glm4"),
    "glm4_wide_no_bias": llama(
        {"head_dim": 12, "num_key_value_heads": 4, "attention_bias": False},
        rope(partial_rotary_factor=1.0),
        name="Glm4",
        slow=True,
    ),
    "glm": llama(GQA, {"head_dim": 8}, rope(partial_rotary_factor=0.5), name="Glm"),
    "arcee": llama(GQA, name="Arcee"),
    "phi3": llama(
        GQA,
        rope("longrope", short_factor=[1.0, 1.2, 1.5, 2.0], long_factor=[1.0, 3.0, 9.0, 20.0]),
        {"original_max_position_embeddings": ORIGINAL, "sliding_window": WINDOW},
        name="Phi3",
    ),
    "phi4_mini_short_text": llama(
        rope("longrope", short_factor=[1.0, 1.2, 1.5], long_factor=[1.0, 3.0, 9.0], partial_rotary_factor=0.75),
        {"original_max_position_embeddings": 30, "max_position_embeddings": 60},
        name="Phi3",
        slow=True,
    ),
    "stablelm": llama(GQA, {"use_qkv_bias": True}, rope(partial_rotary_factor=0.25), name="StableLm"),
    "granite": llama(
        GQA,
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 4.0},
        name="Granite",
    ),
    "mixtral": llama(GQA, {"num_local_experts": 5, "num_experts_per_tok": 2}, name="Mixtral"),
    "mixtral_windowed_top_3": llama(
        GQA, {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": WINDOW}, name="Mixtral", slow=True
    ),
    "qwen2_moe": llama(QWEN_MOE, name="Qwen2Moe"),
    "qwen2_moe_dense_first": llama(
        QWEN_MOE, {"norm_topk_prob": True, "mlp_only_layers": [0], "qkv_bias": False}, name="Qwen2Moe", slow=True
    ),
    "deepseek_v2_experts": llama(LATENT, OF_EXPERTS, GROUPED, name="DeepseekV2", slow=True),
    "deepseek_v2_experts_greedy": llama(LATENT, OF_EXPERTS, {"first_k_dense_replace": 0}, name="DeepseekV2", slow=True),
    "deepseek_v3_experts": llama(
        LATENT, OF_EXPERTS, {"n_group": 4, "topk_group": 2, "norm_topk_prob": True}, name="DeepseekV3"
    ),
    "deepseek_v3_experts_of_one_node": llama(
        *(LATENT, OF_EXPERTS, {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 4, "rope_interleave": False}),
        name="DeepseekV3",
        slow=True,
    ),
    "deepseek_v3_experts_ungrouped": llama(
        LATENT, OF_EXPERTS, {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}, name="DeepseekV3", slow=True
    ),
    "kimi_k2_experts": llama(
        *(LATENT, OF_EXPERTS, {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.827}),
        rope("yarn", factor=32.0, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0),
        name="DeepseekV3",
    ),
    "mistral4_moe": llama(
        MISTRAL4, scaled_queries(0.1, LENGTH, factor=2.4, mscale=1.0, mscale_all_dim=1.0), name="Mistral4"
    ),
    "mistral4_moe_halves_in_groups": llama(
        *(MISTRAL4, {"first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "rope_interleave": False}),
        *({"norm_topk_prob": False, "q_lora_rank": None}, scaled_queries(0.0, ORIGINAL, factor=1.0)),
        name="Mistral4",
        slow=True,
    ),
    "qwen3_moe": llama(QWEN3_MOE, name="Qwen3Moe"),
    "qwen3_moe_windowed_dense_first": llama(
        *(QWEN3_MOE, {"mlp_only_layers": [0], "norm_topk_prob": True, "attention_bias": True}),
        {"use_sliding_window": True, "sliding_window": WINDOW},
        name="Qwen3Moe",
        slow=True,
    ),
    "glm4_moe": llama(FOLLOWER, {"use_qk_norm": True}, rope(partial_rotary_factor=0.5), name="Glm4Moe"),
    "glm4_moe_air_in_groups": llama(
        *(FOLLOWER, {"attention_bias": True, "n_group": 4, "topk_group": 2, "num_mtp_layers": 0}),
        rope(partial_rotary_factor=1.0),
        name="Glm4Moe",
        slow=True,
    ),
    "dots1_moe": llama(
        FOLLOWER, {"num_key_value_heads": N_HEADS, "sliding_window": None}, name="Dots1", back="Glm4MoeForCausalLM"
    ),
    "dots1_moe_windows": llama(
        *(
            FOLLOWER,
            {"sliding_window": WINDOW, "max_window_layers": 1, "first_k_dense_replace": 0, "n_shared_experts": 1},
        ),
        {"num_hidden_layers": 3, "norm_topk_prob": False, "attention_bias": True},
        name="Dots1",
        slow=True,
    ),
    "minimax_m2_moe": llama(MINIMAX, rope(partial_rotary_factor=0.5), name="MiniMaxM2"),
    "minimax_m2_moe_all_turned": llama(
        MINIMAX, {"head_dim": 12, "tie_word_embeddings": True}, name="MiniMaxM2", slow=True
    ),
    "hy3_moe": llama(HY, name="HYV3", back="Glm4MoeForCausalLM"),
    "hy3_moe_every_layer": llama(
        *(HY, {"mlp_layer_types": ["sparse"] * N_LAYERS, "num_shared_experts": 2, "attention_bias": True}),
        name="HYV3",
        back="Dots1ForCausalLM",
        slow=True,
    ),
    "ernie4_5_moe": llama(ERNIE, name="Ernie4_5_Moe"),
    "ernie4_5_moe_untied": llama(
        *(
            ERNIE,
            {"tie_word_embeddings": False, "moe_layer_start_index": 0, "head_dim": 12, "moe_num_shared_experts": 1},
        ),
        name="Ernie4_5_Moe",
        slow=True,
    ),
    "ministral3": llama(
        GQA,
        {"head_dim": 12},
        scaled_queries(0.1, LENGTH, factor=2.4, mscale=1.0, mscale_all_dim=1.0),
        name="Ministral3",
        back="LlamaForCausalLM",
    ),
    "ministral3_windowed": llama(
        *(GQA, {"head_dim": 8, "sliding_window": WINDOW}, scaled_queries(0.0, ORIGINAL, "default")),
        name="Ministral3",
        back="MistralForCausalLM",
        slow=True,
    ),
    "seed_oss": llama(GQA, {"head_dim": 12}, name="SeedOss"),
    "seed_oss_biased": llama(
        GQA,
        {"head_dim": 8, "attention_out_bias": True, "mlp_bias": True},
        name="SeedOss",
        back="LlamaForCausalLM",
        slow=True,
    ),
    "deepseek_v2": llama(LATENT, name="DeepseekV2", back="DeepseekV3ForCausalLM"),
    "deepseek_v2_full_queries": llama(
        LATENT, {"q_lora_rank": None, "attention_bias": True, "mlp_bias": True}, name="DeepseekV2", slow=True
    ),
    "deepseek_v3": llama(
        LATENT, rope("yarn", factor=2.4, mscale=1.0, mscale_all_dim=0.7), {"q_lora_rank": None}, name="DeepseekV3"
    ),
    "deepseek_v3_halves": llama(LATENT, {"rope_interleave": False}, name="DeepseekV3", slow=True),
}
