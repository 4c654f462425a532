"""Attention of every mask kind against torch's and transformers' modules, and the fused path against the explicit one."""

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
    fused,
    hf,
    hf_config,
    randomise,
    same_gradients,
)
from reference_models import copy_weights as copy
from torch import nn

from lmablate.model.attention import (
    AttentionSpan,
    GroupedQuery,
    Interleaved,
    MultiHead,
    MultiQuery,
    SlidingWindow,
    attend,
    explicit_attention,
    visible,
)
from lmablate.model.norm import RMSNorm
from lmablate.model.posemb import ALiBi, AttentionContext, PosEmb, PositionShape, RoPE, T5Bias

SHAPE = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS)
BASE = ATTENTION
X = torch.randn(3, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(7))


def published_mask(window=None):
    """``[T, T]`` of 0 and -inf from the mask functions of transformers."""
    from transformers import masking_utils

    allowed = (
        masking_utils.sliding_window_causal_mask_function(window) if window else masking_utils.causal_mask_function
    )
    t = torch.arange(LENGTH)
    return torch.where(allowed(0, 0, t[:, None], t[None, :]), 0.0, -torch.inf)


def same(ours, theirs, names, posemb, call):
    """Same output, same gradient of the input and of every weight."""
    copy(ours, theirs, names)
    x, x_theirs = (X.clone().requires_grad_() for _ in range(2))
    actual, expected = (
        ours(x, AttentionContext(posemb.rotate, posemb.score_bias(LENGTH), posemb.relative)),
        call(x_theirs),
    )
    close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    close(x.grad, x_theirs.grad, 1e-4)
    same_gradients(ours, theirs, names, 1e-4)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_mha_equals_torch(bias):
    ours = MultiHead(BASE._replace(qkv_bias=bias, out_bias=bias), layer=0, scale=None)
    theirs = randomise(nn.MultiheadAttention(D_MODEL, N_HEADS, bias=bias, batch_first=True)).train()
    names = {"out_proj.weight": "out_proj.weight", "out_proj.bias.weight": "out_proj.bias"}
    for part, letter in enumerate("qkv"):
        names[f"{letter}_proj.weight"] = ("in_proj_weight", lambda w, part=part: w.chunk(3)[part])
        names[f"{letter}_proj.bias.weight"] = ("in_proj_bias", lambda w, part=part: w.chunk(3)[part])
    names = {ours_: theirs_ for ours_, theirs_ in names.items() if bias or "bias" not in ours_}
    same(
        ours, theirs, names, PosEmb(SHAPE), lambda x: theirs(x, x, x, attn_mask=published_mask(), need_weights=True)[0]
    )


HEADS_OF_12 = {"num_key_value_heads": 2, "head_dim": 12}
GEMMA = {"query_pre_attn_scalar": HEAD_DIM, "attn_logit_softcapping": 1.5, "sliding_window": 5}
# our option, changes to the shape, window; family and keys of theirs
PUBLISHED = {
    "mha": (MultiHead, {}, None, "llama", {}),
    "mha_bias": (MultiHead, {"qkv_bias": True, "out_bias": True}, None, "llama", {"attention_bias": True}),
    "gqa": (GroupedQuery, {"n_kv_heads": 2}, None, "llama", {"num_key_value_heads": 2}),
    "gqa_head_dim": (GroupedQuery, {"n_kv_heads": 2, "head_dim": 12}, None, "llama", HEADS_OF_12),
    "mqa": (MultiQuery, {"n_kv_heads": 1}, None, "llama", {"num_key_value_heads": 1}),
    "window_1": (SlidingWindow, {}, 1, "mistral", {}),
    "window_5": (SlidingWindow, {}, 5, "mistral", {}),
    "window_longer_than_text": (SlidingWindow, {}, LENGTH + 3, "mistral", {}),
    "soft_cap": (MultiHead, {"soft_cap": 1.5}, None, "gemma2", GEMMA),
    "soft_cap_window": (SlidingWindow, {"soft_cap": 1.5}, 5, "gemma2", GEMMA),
    "qk_norm": (
        GroupedQuery,
        {"n_kv_heads": 2, "qk_norm": lambda d: RMSNorm(d, eps=1e-6, gain=None, unit_offset=None)},
        None,
        "qwen3",
        {"num_key_value_heads": 2},
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_equals_published_attention_with_rope(case):
    option, changes, window, family, keys = PUBLISHED[case]
    shape = BASE._replace(**changes)
    ours = option(shape, layer=0, scale=None, **({"window": window} if window else {}))
    keys = {"num_key_value_heads": N_HEADS, "head_dim": HEAD_DIM, **keys}
    config = hf_config(family.title(), hidden_size=D_MODEL, num_attention_heads=N_HEADS, rms_norm_eps=1e-6, **keys)
    theirs = randomise(hf(family, f"{family.title()}Attention")(config, layer_idx=0))
    names = {
        f"{ours_}_proj.weight": f"{theirs_}_proj.weight"
        for ours_, theirs_ in zip(("q", "k", "v", "out"), "qkvo", strict=True)
    }
    if shape.out_bias:
        names |= {
            name.replace(".weight", ".bias.weight"): source.replace(".weight", ".bias")
            for name, source in names.items()
        }
    if shape.qk_norm:
        names |= {f"{x}_norm.gain.weight": f"{x}_norm.weight" for x in "qk"}
    tables = hf(family, f"{family.title()}RotaryEmbedding")(config)(X, torch.arange(LENGTH)[None])
    mask = published_mask(window)[None, None]
    rope = RoPE(SHAPE._replace(head_dim=shape.head_dim), rope_theta=10000.0, rotary_fraction=None, layout=None)
    same(ours, theirs, names, rope, lambda x: theirs(x, position_embeddings=tables, attention_mask=mask)[0])


def test_alibi_equals_bloom():
    """Bloom adds ``slope * j`` where ALiBi has ``slope * (j - i)``: the same after the softmax."""
    theirs = randomise(
        hf("bloom", "BloomAttention")(hf_config("Bloom", hidden_size=D_MODEL, n_head=N_HEADS), layer_idx=0)
    )
    names = {
        f"{letter}_proj{end}.weight": (f"query_key_value.{kind}", fused(part))
        for part, letter in enumerate("qkv")
        for end, kind in (("", "weight"), (".bias", "bias"))
    }
    names |= {"out_proj.weight": "dense.weight", "out_proj.bias.weight": "dense.bias"}
    alibi = hf("bloom", "build_alibi_tensor")(torch.ones(len(X), LENGTH), N_HEADS, torch.float32)
    call = lambda x: theirs(x, torch.zeros_like(x), alibi, published_mask()[None, None])[0]  # noqa: E731
    same(MultiHead(BASE._replace(qkv_bias=True, out_bias=True), layer=0, scale=None), theirs, names, ALiBi(SHAPE), call)


def test_t5_bias_equals_t5():
    """T5 does not divide scores by sqrt(head_dim): its queries are ours divided by it. The bucket table learns alike."""
    keys = {"d_model": D_MODEL, "d_kv": HEAD_DIM, "num_heads": N_HEADS, "is_decoder": True, "dropout_rate": 0.0}
    config = hf_config("T5", **keys, relative_attention_num_buckets=8, relative_attention_max_distance=12)
    theirs = randomise(hf("t5", "T5Attention")(config, has_relative_attention_bias=True, layer_idx=0))
    posemb = T5Bias(SHAPE, n_buckets=8, max_distance=12)
    ours = MultiHead(BASE, layer=0, scale=None)
    root = HEAD_DIM**0.5
    with torch.no_grad():
        for target, source in (
            (ours.k_proj, theirs.k),
            (ours.v_proj, theirs.v),
            (ours.out_proj, theirs.o),
            (posemb.table, theirs.relative_attention_bias),
        ):
            target.weight.copy_(source.weight)
        ours.q_proj.weight.copy_(theirs.q.weight * root)
    actual = ours(X, AttentionContext(posemb.rotate, posemb.score_bias(LENGTH), posemb.relative))
    expected = theirs(X, mask=published_mask()[None, None])[0]
    close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    close(posemb.table.weight.grad, theirs.relative_attention_bias.weight.grad, 1e-4)
    close(ours.q_proj.weight.grad * root, theirs.q.weight.grad, 1e-4)


@pytest.mark.parametrize("window", [None, 1, 5, LENGTH - 1, LENGTH, LENGTH + 3])
def test_mask_is_the_published_one(window):
    assert torch.equal(visible(LENGTH, AttentionSpan(window), torch.device("cpu")), published_mask(window) == 0)


@pytest.mark.parametrize(("family", "local_per_global"), [("Gemma2", 1), ("Gemma3Text", 5)])
def test_interleaving_is_the_published_one(family, local_per_global):
    kinds = hf_config(family, num_hidden_layers=12, sliding_window=5).layer_types
    assert {"sliding_attention", "full_attention"} == set(kinds)
    layers = [Interleaved(BASE, layer=i, window=5, local_per_global=local_per_global, scale=None) for i in range(12)]
    assert [layer.span.window for layer in layers] == [5 if kind == "sliding_attention" else None for kind in kinds]


def by_hand(q, k, v, bias, window, soft_cap):
    """Query by query in float64: softmax over the keys it may read, nothing else."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for t in range(q.shape[-2]):
        first = 0 if window is None else max(0, t - window + 1)
        score = (k[..., first : t + 1, :] * q[..., t : t + 1, :]).sum(-1) / q.shape[-1] ** 0.5
        score = score if bias is None else score + bias.double()[:, t, first : t + 1]
        score = score if soft_cap is None else soft_cap * torch.tanh(score / soft_cap)
        weight = score.exp() / score.exp().sum(-1, keepdim=True)
        rows.append((weight[..., None] * v[..., first : t + 1, :]).sum(-2))
    return torch.stack(rows, -2)


BIASES = {
    "none": PosEmb(SHAPE),
    "alibi": ALiBi(SHAPE),
    "t5": randomise(T5Bias(SHAPE, n_buckets=8, max_distance=12), scale=1.0),
}


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=["no_lead", "batch", "two_leads"])
@pytest.mark.parametrize("n_kv_heads", [N_HEADS, 2, 1])
@pytest.mark.parametrize("window", [None, 5, LENGTH - 1, LENGTH, LENGTH + 3])
@pytest.mark.parametrize("bias", BIASES)
def test_fused_explicit_and_by_hand_agree(bias, window, n_kv_heads, lead):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(*lead, n, LENGTH, HEAD_DIM, generator=generator).requires_grad_()
        for n in (N_HEADS, n_kv_heads, n_kv_heads)
    )
    group = N_HEADS // n_kv_heads
    table = list(BIASES[bias].parameters())

    def result(path, **keys):
        shared = (x.repeat_interleave(group, -3) for x in (k, v))
        y = path(q, *shared, bias=BIASES[bias].score_bias(LENGTH), **keys)
        return y, torch.autograd.grad(y.square().sum(), [q, k, v, *table])

    expected, gradients = result(by_hand, window=window, soft_cap=None)
    for path in (attend, explicit_attention):
        actual, got = result(path, span=AttentionSpan(window), scale=None, soft_cap=None, dropout=0.0)
        close(actual, expected)
        for a, b in zip(got, gradients, strict=True):
            close(a, b, 1e-4)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("bias", BIASES)
def test_soft_cap_bounds_the_biased_score(bias, window):
    q, k, v = torch.randn(3, 2, N_HEADS, LENGTH, HEAD_DIM, generator=torch.Generator().manual_seed(4))
    extra = BIASES[bias].score_bias(LENGTH)
    actual = attend(q, k, v, bias=extra, span=AttentionSpan(window), scale=None, soft_cap=1.5, dropout=0.0)
    close(actual, by_hand(q, k, v, extra, window, 1.5))
    assert (actual - by_hand(q, k, v, extra, window, None)).abs().max() > 0.1
