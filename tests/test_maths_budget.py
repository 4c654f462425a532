"""The arithmetic of sizes against built models, published parameter counts and torch's own FLOP counter."""

import pytest
from tiny import tokens_for
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate.budget import ff_width, flops_per_token, keys_read, parameters
from lmablate.model import build_model
from lmablate.objective import Causal

SIZES = {
    "head_dim": {"d_model": 40, "n_heads": 4, "head_dim": 6, "n_kv_heads": 4},
    "deep_tied": {"n_layers": 5, "tie_embeddings": True},
    "biases": {"bias": True, "d_ff": 52},
    "everything": {
        "d_model": 24,
        "n_layers": 3,
        "n_heads": 6,
        "head_dim": 10,
        "bias": True,
        "tie_embeddings": True,
        "vocab_size": 101,
        "context_length": 19,
    },
}
AXES = {
    "default": {},
    "gqa_qk_norm": {"attention": "gqa", "stability": "qk_norm"},
    "mqa_post": {"attention": "mqa", "norm_position": "post", "norm": "layer"},
    "sandwich_layer_learned": {"norm_position": "sandwich", "norm": "layer", "posemb": "learned"},
    "parallel_t5_plain": {"block_layout": "parallel", "posemb": "t5", "activation": "gelu"},
    "parallel2_output_all": {
        "block_layout": "parallel2",
        "norm_position": "output",
        "stability": "all",
        "posemb": "alibi",
    },
    "no_norm": {"norm": "none", "posemb": "sinusoidal", "activation": "relu2"},
}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("sizes", SIZES)
def test_parameters_equal_built(sizes, axes):
    keys = dict(SIZES[sizes])
    if AXES[axes].get("attention") in ("gqa", "mqa"):
        keys.pop("n_kv_heads", None)
    elif "n_heads" in keys:
        keys["n_kv_heads"] = keys["n_heads"]
    cfg = variant(model=keys, **AXES[axes])
    model = build_model(cfg, device="meta")
    total = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in ("embedding", "head"))
    positions = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name == "posemb.table.weight" and cfg.choices["posemb"] == "learned"
    )
    assert parameters(cfg) == (total, total - tables - positions)


LLAMA = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "head_dim": 128,
    "d_ff": 11008,
    "vocab_size": 32000,
}
GPT2 = {
    "d_model": 768,
    "n_layers": 12,
    "n_heads": 12,
    "n_kv_heads": 12,
    "head_dim": 64,
    "d_ff": 3072,
    "vocab_size": 50257,
}
NEOX = {
    "d_model": 6144,
    "n_layers": 44,
    "n_heads": 64,
    "n_kv_heads": 64,
    "head_dim": 96,
    "d_ff": 24576,
    "vocab_size": 50432,
}
GEMMA2 = {
    "d_model": 2304,
    "n_layers": 26,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 256,
    "d_ff": 9216,
    "vocab_size": 256000,
}
QWEN3 = {
    "d_model": 1024,
    "n_layers": 28,
    "n_heads": 16,
    "n_kv_heads": 8,
    "head_dim": 128,
    "d_ff": 3072,
    "vocab_size": 151936,
}
GPT2_AXES = {"norm": "layer", "activation": "gelu_tanh", "posemb": "learned"}
PUBLISHED = {  # exact counts of the released checkpoints
    "llama_2_7b": (6_738_415_616, LLAMA, {}),
    "llama_3_8b": (8_030_261_248, LLAMA | {"n_kv_heads": 8, "d_ff": 14336, "vocab_size": 128256}, {"attention": "gqa"}),
    "mistral_7b": (7_241_732_096, LLAMA | {"n_kv_heads": 8, "d_ff": 14336}, {"attention": "gqa"}),
    "gpt2_small": (124_439_808, GPT2 | {"context_length": 1024, "bias": True, "tie_embeddings": True}, GPT2_AXES),
    "gpt_neox_20b": (
        20_554_567_680,
        NEOX | {"bias": True},
        {"norm": "layer", "activation": "gelu", "block_layout": "parallel2"},
    ),
    "gemma_2_2b": (
        2_614_341_888,
        GEMMA2 | {"tie_embeddings": True},
        {"norm_position": "sandwich", "attention": "gqa", "activation": "geglu"},
    ),
    "qwen3_0_6b": (596_049_920, QWEN3 | {"tie_embeddings": True}, {"attention": "gqa", "stability": "qk_norm"}),
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_parameters_equal_the_published_count(system):
    count, sizes, axes = PUBLISHED[system]
    assert parameters(variant(model=sizes, **axes)).total == count


def test_non_embedding_of_gpt2_leaves_both_tables_out():
    _, sizes, axes = PUBLISHED["gpt2_small"]
    assert parameters(variant(model=sizes, **axes)).non_embedding == 124_439_808 - (50257 + 1024) * 768


def pairs_read(length, window):
    """Query-key pairs under a causal mask with a window, by counting."""
    return sum(0 <= q - k < (window or length) for q in range(length) for k in range(length))


@pytest.mark.parametrize("window", [None, 1, 5, 23, 24, 99])
@pytest.mark.parametrize("length", [1, 5, 24])
def test_keys_read_is_the_mean_over_queries(length, window):
    assert keys_read(length, window) == pytest.approx(pairs_read(length, window) / length)


FLOPS = {
    "mha": ({}, {}, (None, None)),
    "gqa_plain_biases": ({"attention": "gqa", "activation": "gelu"}, {"bias": True}, (None, None)),
    "mqa_head_dim_tied": ({"attention": "mqa"}, {"head_dim": 10, "tie_embeddings": True}, (None, None)),
    "sliding_window_post_layer": (
        {"attention": "sliding_window", "norm_position": "post", "norm": "layer"},
        {},
        (7, 7),
    ),
    "interleaved_parallel": ({"attention": "interleaved", "block_layout": "parallel"}, {"n_layers": 3}, (7, None, 7)),
    "t5_sandwich": ({"posemb": "t5", "norm_position": "sandwich"}, {"d_ff": 56}, (None, None)),
}


@pytest.mark.parametrize("case", FLOPS)
def test_flops_equal_torch_counter(case):
    """torch counts the matrix products of a real forward and backward pass. The soft cap forces explicit attention, whose
    score products are over all T^2 pairs; ours count the pairs that are read, so the rest is added before comparing."""
    axes, sizes, windows = FLOPS[case]
    cfg = variant(model=sizes, stability="soft_cap", **axes)
    m, rows = cfg.model, tokens_for(cfg)
    model = build_model(cfg)
    with FlopCounterMode(display=False) as counter:
        Causal(z_loss=None)(model, rows[:, :-1], rows[:, 1:]).objective.backward()
    length = m.context_length
    assert len(windows) == m.n_layers
    unread = sum(length**2 - pairs_read(length, window) for window in windows) / length  # pairs a token
    products = 2 * 3 * 2  # scores and values, forward and twice backward, multiply and add
    expected = flops_per_token(cfg) + products * m.n_heads * m.head_dim * unread
    assert counter.get_total_flops() / rows[:, 1:].numel() == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("ratio", [4.0, 3.0, 2.5, 2.7])
def test_gated_width_costs_what_the_plain_one_does(ratio, bias):
    """As many parameters as the plain FFN that would be built, within 1 %: by a multiple of 8, else of 4, else of 2."""
    for d_model in range(64, 2049, 8):
        plain = ff_width(d_model, ff_ratio=ratio, gated=False, bias=bias, gated_scale=None)
        assert plain == ratio * d_model or (plain % 2 == 0 and abs(plain - ratio * d_model) <= 4)
        wanted = 2 * d_model * plain + (plain + d_model if bias else 0)

        def miss(width, d_model=d_model, wanted=wanted):
            return abs(3 * d_model * width + (2 * width + d_model if bias else 0) - wanted) / wanted

        gated = ff_width(d_model, ff_ratio=ratio, gated=True, bias=bias, gated_scale=None)
        best = {
            step: min(miss(width) for width in range(gated // step * step - step, gated + 2 * step, step))
            for step in (2, 4, 8)
        }
        step = next(step for step in (8, 4, 2) if best[step] < 0.01)
        assert gated % step == 0
        assert miss(gated) == best[step]


def test_gated_width_is_not_rounded_to_256():
    """At these widths 256 would add 50 % and 12.5 %."""
    widths = {
        d: ff_width(d, ff_ratio=4.0, gated=True, bias=False, gated_scale=None) for d in (128, 256, 512, 768, 1024)
    }
    assert widths == {128: 344, 256: 680, 512: 1368, 768: 2048, 1024: 2728}


@pytest.mark.parametrize(("scale", "width"), [(1.0, 512), (0.5, 256), (2 / 3, 344)])
def test_gated_scale_sets_the_width_itself(scale, width):
    assert ff_width(128, ff_ratio=4.0, gated=True, bias=False, gated_scale=scale) == width
