"""Multi-head latent attention against DeepSeek's classes in transformers, with copied weights, YaRN where it acts."""

import pytest
import torch
from reference_models import (
    ATTENTION,
    D_MODEL,
    HEAD_DIM,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    close,
    copy_weights,
    hf,
    hf_config,
    randomise,
    same_gradients,
)
from tiny import config
from torch.utils.flop_counter import FlopCounterMode

from lmablate.budget import flops_per_token
from lmablate.core.errors import ConfigError
from lmablate.model import build_model, posemb
from lmablate.model.attention import LatentAttention
from lmablate.model.posemb import AttentionContext, PositionShape

ROPE, VALUE, KV_RANK, Q_RANK = 6, 10, 12, 14
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 6, "beta_fast": 4.0, "beta_slow": 0.5}
SCALES = {
    "rope": {},
    "yarn": {"mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn_uneven": {"mscale": 1.0, "mscale_all_dim": 0.7},
}


def names_of(q_rank, bias):
    names = {
        "kv_down.weight": "kv_a_proj_with_mqa.weight",
        "kv_norm.gain.weight": "kv_a_layernorm.weight",
        "kv_proj.weight": "kv_b_proj.weight",
        "out_proj.weight": "o_proj.weight",
        "q_proj.weight": "q_b_proj.weight" if q_rank else "q_proj.weight",
    }
    if q_rank:
        names |= {"q_down.weight": "q_a_proj.weight", "q_norm.gain.weight": "q_a_layernorm.weight"}
    if bias:
        names |= {"kv_down.bias.weight": "kv_a_proj_with_mqa.bias", "out_proj.bias.weight": "o_proj.bias"}
        names |= {"q_down.bias.weight": "q_a_proj.bias"} if q_rank else {}
    return names


def mscale(factor, weight):
    """DeepSeek's ``0.1 m ln(s) + 1`` (arXiv 2405.04434, section 3.1.4, after YaRN's eq. 22)."""
    return 0.1 * weight * torch.tensor(factor).log().item() + 1


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("q_rank", [None, Q_RANK], ids=["q_full", "q_low"])
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize(("family", "layout"), [("DeepseekV2", "pairs"), ("DeepseekV3", "pairs"), ("DeepseekV3", None)])
def test_equals_deepseek(family, layout, scaling, q_rank, bias):
    keys = SCALES[scaling]
    rope = {"rope_theta": 10000.0, **({**YARN, **keys} if keys else {"rope_type": "default"})}
    sizes = {
        "hidden_size": D_MODEL,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS,
        "q_lora_rank": q_rank,
        "kv_lora_rank": KV_RANK,
        "qk_nope_head_dim": HEAD_DIM,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        "head_dim": ROPE,
        "attention_bias": bias,
        "max_position_embeddings": 48,
        "rope_parameters": rope,
    }
    if family == "DeepseekV3":
        sizes["rope_interleave"] = layout == "pairs"
    config_ = hf_config(family, **sizes)
    module = family.lower().replace("v", "_v")
    theirs = randomise(hf(module, f"{family}Attention")(config_, layer_idx=0))
    scale = None
    shape = PositionShape(D_MODEL, N_HEADS, ROPE, LENGTH, N_LAYERS)
    turn = {"rope_theta": 10000.0, "rotary_fraction": None, "layout": layout}
    if keys:
        whole = mscale(8.0, keys["mscale_all_dim"])
        scale = whole**2 * (HEAD_DIM + ROPE) ** -0.5
        assert theirs.scaling == pytest.approx(scale)
        positions = posemb.YaRN(
            shape,
            **turn,
            factor=8.0,
            original_length=6,
            beta_fast=4.0,
            beta_slow=0.5,
            attention_factor=mscale(8.0, keys["mscale"]) / whole,
        )
    else:
        positions = posemb.RoPE(shape, **turn)
    ours = LatentAttention(
        ATTENTION._replace(qkv_bias=bias, out_bias=bias),
        layer=0,
        q_rank=q_rank,
        kv_rank=KV_RANK,
        rope_head_dim=ROPE,
        v_head_dim=VALUE,
        norm_eps=1e-6,
        scale=scale,
    )
    names = names_of(q_rank, bias)
    copy_weights(ours, theirs, names)
    x = torch.randn(3, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(7))
    x, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    tables = hf(module, f"{family}RotaryEmbedding")(config_)(x, torch.arange(LENGTH)[None])
    mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
    actual = ours(x, AttentionContext(positions.rotate, None))
    expected = theirs(x_theirs, position_embeddings=tables, attention_mask=mask)[0]
    close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    close(x.grad, x_theirs.grad, 1e-4)
    same_gradients(ours, theirs, names, 1e-4)


SIZES = {"q_rank": Q_RANK, "kv_rank": KV_RANK, "rope_head_dim": ROPE, "v_head_dim": VALUE}


def test_what_is_cached_is_enough():
    """Keys and values of all heads follow from the latent vector and the shared key alone: the numbers that are counted."""
    ours = randomise(LatentAttention(ATTENTION, layer=0, **SIZES, norm_eps=1e-6, scale=None))
    seen = []
    ours.kv_down.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(1, LENGTH, D_MODEL)
    y = ours(x, AttentionContext(lambda q, k: (q, k), None))
    cached = seen[0]
    assert cached.shape[-1] == LatentAttention.cached_numbers(ATTENTION, SIZES) == KV_RANK + ROPE
    ours.kv_down = torch.nn.Module()
    ours.kv_down.forward = lambda x: cached
    close(ours(x, AttentionContext(lambda q, k: (q, k), None)), y, 1e-6)


def test_cache_of_deepseek_v2():
    """576 numbers a token and layer, 69,120 bytes over 60 layers in bf16 (arXiv 2405.04434, section 3.1.2: 512 and 64)."""
    assert LatentAttention.cached_numbers(ATTENTION, {"kv_rank": 512, "rope_head_dim": 64}) * 60 * 2 == 69_120


@pytest.mark.parametrize("q_rank", ["null", "14"])
def test_flops_equal_torch_counter(q_rank):
    """Explicit attention (soft cap) makes the whole square of scores, of which the causal half is counted."""
    words = ("attention=mla", f"attention.q_rank={q_rank}", "attention.kv_rank=12", "attention.rope_head_dim=6")
    cfg = config(*words, "attention.v_head_dim=10", "stability.attention_soft_cap=50.0")
    model, m = build_model(cfg), cfg.model
    tokens = torch.zeros(1, m.context_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    unread = m.n_layers * (m.context_length - 1) / 2
    products = m.n_heads * (m.head_dim + 6 + 10) * unread * 6
    assert counter.get_total_flops() / m.context_length == pytest.approx(flops_per_token(cfg) + products, abs=0.5)


@pytest.mark.parametrize("words", [("model.n_kv_heads=2",), ("stability=qk_norm",), ("stability=qkv_norm",)])
def test_what_it_cannot_have_is_refused(words):
    with pytest.raises(ConfigError, match="attention=mla"):
        config("attention=mla", *words)
