"""Options of ours as classes of transformers: which class, the same logits, and what is refused in which words."""

import copy
import subprocess
import sys

import pytest
import torch
from hf_models import CASES, rope, scaled_queries
from reference_models import LENGTH, VOCAB, close, randomise
from torch import nn
from variants import variant

from lmablate import presets
from lmablate.core.errors import ConfigError
from lmablate.interop import from_hf, model_spec, to_hf
from lmablate.model import build_model

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def with_settings(cfg, **groups):
    """``with_settings(cfg, posemb={"layout": "pairs"})``."""
    changed = {group: {**getattr(cfg, group), **keys} for group, keys in groups.items() if group != "stability"}
    if "stability" in groups:
        changed["stability"] = cfg.stability.model_copy(update=groups["stability"])
    return cfg.model_copy(update=changed)


LAYER = {"norm": "layer"}
# what is chosen here, settings within it, and the class that comes of it
CHOICES = {
    "default": ({}, {}, "LlamaForCausalLM"),
    "pairs": ({"attention": "gqa"}, {"posemb": {"layout": "pairs"}}, "GlmForCausalLM"),
    "pairs_become_halves": ({"attention": "sliding_window"}, {"posemb": {"layout": "pairs"}}, "MistralForCausalLM"),
    "pairs_with_qk_norm": ({"stability": "qk_norm"}, {"posemb": {"layout": "pairs"}}, "Qwen3ForCausalLM"),
    "gain_of_1_plus_w": ({}, {"norm": {"unit_offset": True}}, "LlamaForCausalLM"),
    "bilinear": ({"activation": "bilinear"}, {}, "LlamaForCausalLM"),
    "window": ({"attention": "sliding_window"}, {}, "MistralForCausalLM"),
    "every_second_layer": ({"attention": "interleaved"}, {}, "Qwen2ForCausalLM"),
    "no_bias": ({**LAYER, "posemb": "learned", "activation": "gelu"}, {}, "OPTForCausalLM"),
    "biases_of_zero": (
        {**LAYER, "posemb": "learned", "activation": "gelu", "attention": "mqa"},
        {"norm": {"bias": False}},
        "GPTBigCodeForCausalLM",
    ),
    "norm_without_gain": (LAYER | {"posemb": "learned", "activation": "relu"}, {"norm": {"gain": False}}, None),
    "soft_caps": (
        {"norm_position": "sandwich", "activation": "geglu", "attention": "interleaved", "stability": "soft_cap"},
        {"stability": {"attention_soft_cap": 2.0, "final_soft_cap": 3.0}},
        "Gemma2ForCausalLM",
    ),
    "serial_alibi": ({**LAYER, "posemb": "alibi", "activation": "gelu"}, {"norm": {"bias": False}}, "MptForCausalLM"),
    "parallel": ({**LAYER, "block_layout": "parallel", "activation": "relu"}, {}, "FalconForCausalLM"),
    "latent": ({"attention": "mla"}, {}, "DeepseekV3ForCausalLM"),
    "yarn": ({"posemb": "rope_yarn"}, {}, "LlamaForCausalLM"),
    "longrope": ({"posemb": "rope_longrope"}, {}, "Phi3ForCausalLM"),
    "relu2": ({"activation": "relu2"}, {}, "ArceeForCausalLM"),
    "post_norm": (
        {**LAYER, "norm_position": "post", "posemb": "learned", "activation": "gelu_tanh"},
        {"norm": {"eps": 1e-3}},
        "OpenAIGPTLMHeadModel",
    ),
}
SIZES = {
    "soft_caps": {"embedding_scale": "sqrt_d_model"},
    "serial_alibi": {"d_ff": 128},
    "post_norm": {"d_ff": 128},
    "parallel": {"tie_embeddings": True},
}


def made(name):
    axes, settings, expected = CHOICES[name]
    return with_settings(variant(model=SIZES.get(name), **axes), **settings), expected or "OPTForCausalLM"


@pytest.mark.parametrize("name", CHOICES)
def test_a_model_of_ours_is_this_class_and_gives_the_same_logits(name):
    cfg, expected = made(name)
    model = randomise(build_model(cfg))
    theirs = to_hf(model)
    assert type(theirs).__name__ == expected
    with torch.no_grad():
        close(theirs(input_ids=TOKENS).logits, model(TOKENS), 2e-5)
        close(from_hf(theirs)(TOKENS), model(TOKENS), 2e-5)


@pytest.mark.parametrize("name", ["default", "window", "relu2", "latent", "yarn"])
def test_there_and_back_are_the_same_bits_and_the_same_configuration(name):
    cfg, _ = made(name)
    model = randomise(build_model(cfg))
    back = from_hf(to_hf(model))
    again = dict(back.named_parameters())
    assert set(again) == {key for key, _ in model.named_parameters()}
    assert all(torch.equal(value, again[key]) for key, value in model.named_parameters())
    assert model_spec.spec_of(back.config) == model_spec.spec_of(cfg)
    for group in ("norm", "norm_position", "posemb", "attention", "block_layout", "activation"):
        assert getattr(back.config, group) == getattr(cfg, group)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"norm_position": "sandwich", "activation": "relu2"}, ["activation=relu2", "norm_position=sandwich"]),
        ({"posemb": "t5"}, ["none has posemb=t5", "LlamaForCausalLM would, but for posemb=t5"]),
        ({"posemb": "none"}, ["posemb=none"]),
        ({"norm_position": "deepnorm"}, ["norm_position=deepnorm"]),
        ({"norm": "none"}, ["norm=none"]),
        ({"activation": "elu"}, ["activation=elu"]),
        ({"stability": "qkv_norm"}, ["stability.v_norm=rms"]),
        ({"attention": "pattern", "posemb": "alibi"}, ["Qwen2ForCausalLM would, but for posemb=alibi"]),
    ],
    ids=lambda value: "_".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_no_class_expresses_is_named(axes, told):
    with pytest.raises(ConfigError) as error:
        to_hf(build_model(variant(**axes)))
    for words in told:
        assert words in str(error.value)


def test_a_class_may_be_asked_for():
    model = build_model(variant())
    assert type(to_hf(model, "MistralForCausalLM")).__name__ == "MistralForCausalLM"
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel would, but for .*activation=swiglu.*posemb=rope"):
        to_hf(model, "GPT2LMHeadModel")
    with pytest.raises(ConfigError, match="BertModel is not a class known here: there are LlamaForCausalLM"):
        to_hf(model, "BertModel")


def test_classes_that_are_tried_and_do_not_fit_are_silent(capsys):
    ours = from_hf(CASES["gpt2"].build())
    capsys.readouterr()
    assert type(to_hf(ours)).__name__ == "GPT2LMHeadModel"
    assert capsys.readouterr().err == ""


def test_only_models_of_ours_go_out():
    with pytest.raises(ConfigError, match="build_model made, got Linear"):
        to_hf(nn.Linear(2, 2))
    gang = build_model(variant())
    gang.embedding.weight = nn.Parameter(torch.zeros(3, VOCAB, 32))
    with pytest.raises(ConfigError, match="stacked weights of a gang"):
        to_hf(gang)


def test_sizes_that_a_class_cannot_have():
    cfg = variant(model={"n_heads": 3, "n_kv_heads": 3, "head_dim": 8})
    assert type(to_hf(build_model(cfg))).__name__ == "MistralForCausalLM"  # Llama's wants d_model in whole heads
    with pytest.raises(ConfigError, match=r"hidden size \(32\) is not a multiple of the number of attention heads"):
        to_hf(build_model(cfg), "LlamaForCausalLM")
    with pytest.raises(
        ConfigError, match=r"none has posemb=t5; .* for their sizes: LlamaForCausalLM, .*hidden size \(32\)"
    ):
        to_hf(build_model(variant(posemb="t5", model={"n_heads": 3, "n_kv_heads": 3, "head_dim": 8})))
    wide = variant(norm="layer", posemb="learned", activation="gelu", model={"head_dim": 12})
    with pytest.raises(ConfigError, match=r"model\.head_dim=12"):
        to_hf(build_model(wide))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("llama1", {"hidden_act": "mish"}, "hidden_act='mish' cannot be expressed here: allowed is silu, gelu"),
        ("llama3", {**rope("linear", factor=2.0, partial_rotary_factor=0.5)}, "partial_rotary_factor"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True .* allowed is False"),
        ("falcon_7b", {"alibi": True}, "FalconConfig.alibi=True"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("mpt", {"attn_config": {"clip_qkv": 3.0}}, r"attn_config\.clip_qkv=3\.0 .* allowed is None"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim=16 projects .* allowed is 32"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm=True"),
        ("granite", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual=True"),
        (
            "deepseek_v3",
            {"first_k_dense_replace": 1, "n_shared_experts": 0},
            "n_shared_experts=0 cannot be expressed here",
        ),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 cannot be expressed here: allowed is 1"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 30}, "allowed is a multiple of moe_intermediate_size=20"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\] .* experts in all layers but the first ones"),
        ("hy3_moe", {"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types=.* in all layers but the first ones"),
        ("hy3_moe", {"num_shared_experts": 0}, "num_shared_experts=0 .* which the class always computes"),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval=2 cannot be expressed here: allowed is 1"),
        ("ernie4_5_moe", {"use_bias": True}, "use_bias=True cannot be expressed here: allowed is False"),
        ("ministral3", rope("yarn", factor=2.0), "allowed is a llama_4_scaling_beta .0 for none. and an original_max"),
        (
            "mistral4_moe",
            scaled_queries(0.0, 10, "default"),
            "allowed is a rope_type of yarn, with factor=1.0 for plain",
        ),
        ("glm4", {**rope(partial_rotary_factor=0.375)}, "are 3: choose .*even"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in CASES else "",
)
def test_settings_of_theirs_that_are_not_expressed_are_refused(name, changes, told):
    theirs = copy.copy(CASES[name].build())
    theirs.config = type(theirs.config)(**{**theirs.config.to_dict(), **changes})
    with pytest.raises(ConfigError, match=told):
        from_hf(theirs)


def test_an_attribute_that_nobody_knows_is_refused():
    from transformers import LlamaConfig

    class LaterConfig(LlamaConfig):
        stream_multiplier: float = 1.0

    theirs = CASES["llama1"].build()
    known = theirs.config.to_dict()
    theirs.config = LaterConfig(**known)
    from_hf(theirs)
    theirs.config = LaterConfig(**known, stream_multiplier=0.5)
    with pytest.raises(
        ConfigError, match=r"LaterConfig\.stream_multiplier=0\.5 is not known here: only its default, 1\.0"
    ):
        from_hf(theirs)
    theirs.config = LlamaConfig(**known, is_causal=False)  # read by what makes the mask, and declared by no class
    with pytest.raises(ConfigError, match=r"LlamaConfig\.is_causal=False is not known here"):
        from_hf(theirs)


def test_a_class_that_is_not_known_is_refused():
    from transformers import BertConfig, BertModel, GptOssConfig, GptOssForCausalLM

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
    with pytest.raises(ConfigError, match="BertModel is not a class known here: there are LlamaForCausalLM"):
        from_hf(BertModel(config))
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    sinks = GptOssForCausalLM(GptOssConfig(**sizes, intermediate_size=8, vocab_size=16, num_local_experts=2))
    with pytest.raises(ConfigError, match="GptOssForCausalLM is not a class known here: there are LlamaForCausalLM"):
        from_hf(sinks)
    with pytest.raises(ConfigError, match="LlamaModel is not a class known here"):
        from_hf(CASES["llama1"].build().model)


def test_what_a_class_does_beyond_some_length_ends_our_context_there():
    """Queries of Ministral 3 grow with their position from the length of pre-training on, which we do not have."""
    case = CASES["ministral3"]
    growing, still = (case.build(**scaled_queries(growth, 10, factor=2.0)) for growth in (0.1, 0.0))
    ours = from_hf(growing)
    assert ours.config.model.context_length == 10
    assert from_hf(still).config.model.context_length == LENGTH
    with torch.no_grad():
        close(ours(TOKENS), still(input_ids=TOKENS).logits)
        close(ours(TOKENS[:, :10]), growing(input_ids=TOKENS[:, :10]).logits)
        assert (ours(TOKENS) - growing(input_ids=TOKENS).logits).abs().max() > 1e-2


def test_missing_and_extra_weights_are_named():
    theirs = CASES["llama1"].build()
    theirs.model.layers[1].mlp.adapter = nn.Linear(4, 4, bias=False)
    with pytest.raises(ConfigError, match=r"says nothing of: model\.layers\.1\.mlp\.adapter\.weight"):
        from_hf(theirs)
    theirs = CASES["llama1"].build()
    del theirs.model.layers[0].self_attn.q_proj.weight
    with pytest.raises(ConfigError, match=r"lacks the weights of blocks\.0\.attention\.branch\.q_proj\.weight"):
        from_hf(theirs)
    theirs = CASES["llama1"].build()
    theirs.model.norm.weight = nn.Parameter(torch.ones(5))
    with pytest.raises(
        ConfigError, match=r"final_norm\.gain\.weight .* is \(5,\), and its configuration makes it \(32,\)"
    ):
        from_hf(theirs)


def test_a_checkpoint_is_read_from_its_folder_and_must_be_whole(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = CASES["llama3"].build()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        close(from_hf(tmp_path)(TOKENS), theirs(input_ids=TOKENS).logits)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    moved = {("surplus" if key == "model.norm.weight" else key): value for key, value in tensors.items()}
    save_file(moved, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM: it lacks model\.norm\.weight; it has besides surplus"):
        from_hf(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot load .*nowhere"):
        from_hf(tmp_path / "nowhere")


def test_the_package_needs_no_transformers_until_it_is_used_and_then_says_how_to_get_it():
    code = (
        "import lmablate.interop, sys; print('transformers' in sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "from lmablate.core.errors import ConfigError\n"
        "try: lmablate.interop.from_hf('somewhere')\n"
        "except ConfigError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, message = told.splitlines()
    assert loaded == "False" and "pip install 'lmablate[interop]'" in message


# Presets that are published as one of these classes, and the class that their configuration leads to.
PUBLISHED = {
    "gpt2": "GPT2LMHeadModel",
    "gpt1": "OpenAIGPTLMHeadModel",
    "gptj_6b": "GPTJForCausalLM",
    "pythia_12b": "GPTNeoXForCausalLM",
    "galactica_120b": "OPTForCausalLM",
    "bloom_176b": "BloomForCausalLM",
    "mpt_30b": "MptForCausalLM",
    "falcon_7b": "FalconForCausalLM",
    "falcon_180b": "FalconForCausalLM",
    "gpt_neo_2_7b": "GPTNeoForCausalLM",
    "llama1_7b": "LlamaForCausalLM",
    "llama3_8b": "LlamaForCausalLM",
    "mistral_7b": "MistralForCausalLM",
    "qwen1_5_72b": "Qwen2ForCausalLM",
    "gemma_7b": "GemmaForCausalLM",
    "gemma2_27b": "Gemma2ForCausalLM",
    "starcoder_15b": "GPTBigCodeForCausalLM",
    "nemotron4_15b": "NemotronForCausalLM",
    "t5_v1_1_xxl": "T5ForConditionalGeneration",
    "qwen3_32b": "Qwen3ForCausalLM",
    "qwen3_30b_a3b": "Qwen3MoeForCausalLM",
    "olmo2_32b": "Olmo2ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "glm4_5": "Glm4MoeForCausalLM",
    "dots_llm1": "Glm4MoeForCausalLM",  # which does the same, and comes first
    "hy3": "Glm4MoeForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ernie4_5_21b_a3b": "Ernie4_5_MoeForCausalLM",
    "mistral_small4_119b": "Mistral4ForCausalLM",
    "phi4_mini": "Phi3ForCausalLM",
    "seed_oss_36b": "SeedOssForCausalLM",
    "afm_4_5b": "ArceeForCausalLM",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_its_published_class(name):
    """At its own size, by its configuration alone: no weight is made."""
    from lmablate.interop.convert import _best
    from lmablate.interop.families import FAMILIES

    cfg = presets.config(name)
    family, config, _ = _best(model_spec.spec_of(cfg), cfg, FAMILIES)
    assert family.name == PUBLISHED[name]
    assert config.vocab_size == cfg.model.vocab_size
