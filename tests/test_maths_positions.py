"""Position embeddings against transformers and closed forms, and what each of them does to attention scores."""

import math

import pytest
import torch
from reference_models import ATTENTION, D_MODEL, HEAD_DIM, LENGTH, N_HEADS, N_LAYERS, close, hf, hf_config, randomise
from torch import nn

from lmablate.core.errors import ConfigError
from lmablate.model.attention import GroupedQuery, MultiHead, SlidingWindow, heads
from lmablate.model.posemb import (
    ALiBi,
    AttentionContext,
    Learned,
    PosEmb,
    PositionShape,
    RoPE,
    Sinusoidal,
    T5Bias,
    alibi_slopes,
)

SHAPE = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("length", [1, 7, LENGTH, 50], ids=lambda n: f"T{n}")
@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10000.0), (8, 10000.0), (64, 10000.0), (64, 500000.0)])
def test_rope_equals_llama(head_dim, theta, length):
    """Also beyond the context length, where the tables are made anew."""
    config = hf_config("Llama", head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
    q, k = torch.randn(2, N_HEADS, length, head_dim), torch.randn(2, 2, length, head_dim)
    cos, sin = hf("llama", "LlamaRotaryEmbedding")(config)(q, torch.arange(length)[None])
    expected = hf("llama", "apply_rotary_pos_emb")(q, k, cos, sin)
    rope = RoPE(SHAPE._replace(head_dim=head_dim), rope_theta=theta, rotary_fraction=None, layout=None)
    for actual, wanted in zip(rope.rotate(q, k), expected, strict=True):
        close(actual, wanted)
    if length <= LENGTH:
        close(rope.cos[:length], cos[0, :, : head_dim // 2])
        close(rope.sin[:length], sin[0, :, : head_dim // 2])


def test_rope_is_a_complex_rotation_at_long_range():
    """``(x_i + i x_{i + d/2}) exp(i t w_i)`` in double precision, as far as position 8191."""
    x = torch.randn(1, 1, 8192, HEAD_DIM)
    angle = torch.arange(8192.0, dtype=torch.float64)[:, None] * torch.tensor(
        [10000 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    )
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.exp(1j * angle)
    close(
        RoPE(SHAPE, rope_theta=10000.0, rotary_fraction=None, layout=None).rotate(x, x)[0],
        torch.cat((turned.real, turned.imag), -1),
    )


@pytest.mark.parametrize("n_heads", [*range(1, 18), 20, 24, 40, 64])
def test_alibi_equals_bloom(n_heads):
    theirs = hf("bloom", "build_alibi_tensor")(torch.ones(1, LENGTH), n_heads, torch.float32)  # [H, 1, T]: slope * key
    bias = ALiBi(SHAPE._replace(n_heads=n_heads)).score_bias(LENGTH)
    assert bias.shape == (n_heads, LENGTH, LENGTH)
    close(torch.tensor(alibi_slopes(n_heads)), theirs[:, 0, 1])
    close(bias, theirs - theirs.mT)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16) == [2.0 ** (-i / 2) for i in range(1, 17)]


@pytest.mark.parametrize("length", [1, 20, 300], ids=lambda n: f"T{n}")
@pytest.mark.parametrize(
    ("n_buckets", "max_distance"), [(32, 128), (16, 20), (8, 12), (2, 7), (64, 256), (4, 1000), (12, 48)]
)
def test_t5_buckets_and_bias_equal_t5(n_buckets, max_distance, length):
    keys = {"relative_attention_num_buckets": n_buckets, "relative_attention_max_distance": max_distance}
    config = hf_config("T5", d_model=D_MODEL, d_kv=HEAD_DIM, num_heads=N_HEADS, is_decoder=True, **keys)
    theirs = randomise(hf("t5", "T5Attention")(config, has_relative_attention_bias=True, layer_idx=0))
    ours = T5Bias(SHAPE, n_buckets=n_buckets, max_distance=max_distance)
    t = torch.arange(length)
    wanted = theirs._relative_position_bucket(
        t[None, :] - t[:, None], bidirectional=False, num_buckets=n_buckets, max_distance=max_distance
    )
    assert torch.equal(ours.buckets(length, torch.device("cpu")), wanted)
    with torch.no_grad():
        ours.table.weight.copy_(theirs.relative_attention_bias.weight)
    close(ours.score_bias(length), theirs.compute_bias(length, length)[0])


def exact_bucket(distance, n_buckets, max_distance):
    """The definition in whole numbers: bucket ``h + floor(h log(d/h) / log(max/h))`` for d >= h = n_buckets / 2."""
    half, steps = n_buckets // 2, 0
    if distance < half:
        return distance
    while steps < half and distance**half * half ** (steps + 1) >= max_distance ** (steps + 1) * half**half:
        steps += 1
    return min(half + steps, n_buckets - 1)


@pytest.mark.parametrize(
    ("n_buckets", "max_distance"), [(10, 160), (20, 320), (36, 32), (36, 392), (54, 64), (58, 282), (32, 128), (6, 24)]
)
def test_t5_buckets_where_a_distance_stands_on_an_edge(n_buckets, max_distance):
    """Rounding of the logarithm must not move a distance whose bucket edge is a whole number (d / half a power of max / half)."""
    buckets = T5Bias(SHAPE, n_buckets=n_buckets, max_distance=max_distance).buckets(400, torch.device("cpu"))
    assert buckets[-1].flip(0).tolist() == [exact_bucket(d, n_buckets, max_distance) for d in range(400)]


@pytest.mark.parametrize("d_model", [32, 7])
def test_sinusoidal_is_its_formula(d_model):
    posemb = Sinusoidal(SHAPE._replace(d_model=d_model), theta=10000.0, scale=0.5)
    for length in (3, LENGTH, 60):  # within and beyond the table
        table = torch.empty(length, d_model, dtype=torch.float64)
        for t in range(length):
            for channel in range(d_model):
                angle = t / 10000.0 ** (2 * (channel // 2) / d_model)
                table[t, channel] = 0.5 * (math.cos(angle) if channel % 2 else math.sin(angle))
        x = torch.randn(2, length, d_model)
        close(posemb.embed(x), x.double() + table)
    assert not list(posemb.parameters())


def test_learned_equals_torch_embedding():
    ours, theirs = randomise(Learned(SHAPE)), nn.Embedding(LENGTH, D_MODEL)
    with torch.no_grad():
        theirs.weight.copy_(ours.table.weight)
    x, short = torch.randn(2, 3, 9, D_MODEL), torch.arange(9)
    close(ours.embed(x), x + theirs(short))
    ours.embed(x).square().sum().backward()
    (x + theirs(short)).square().sum().backward()
    close(ours.table.weight.grad, theirs.weight.grad)
    with pytest.raises(ConfigError, match="context_length"):
        ours.embed(torch.zeros(1, LENGTH + 1, D_MODEL))


OPTIONS = {
    "none": lambda: PosEmb(SHAPE),
    "rope": lambda: RoPE(SHAPE, rope_theta=100.0, rotary_fraction=None, layout=None),
    "alibi": lambda: ALiBi(SHAPE),
    "t5": lambda: T5Bias(SHAPE, n_buckets=8, max_distance=12),
    "learned": lambda: Learned(SHAPE),
    "sinusoidal": lambda: Sinusoidal(SHAPE, theta=100.0, scale=1.0),
}
BASE = ATTENTION._replace(qkv_bias=True, out_bias=True)
ATTENTIONS = {
    "mha": lambda: MultiHead(BASE, layer=0, scale=None),
    "gqa": lambda: GroupedQuery(BASE._replace(n_kv_heads=2), layer=0, scale=None),
    "sliding_window": lambda: SlidingWindow(BASE, layer=0, window=6, scale=None),
}


def scores_at(posemb, branch, content, shift, monkeypatch):
    """The scores among `content`, placed at position `shift` of a text, as the attention branch computes them."""
    seen = []

    def spy(q, k, v, *, bias, **_):
        seen.append(q @ k.mT / HEAD_DIM**0.5 + (0 if bias is None else bias))
        return torch.zeros_like(v)

    monkeypatch.setattr(heads, "attend", spy)
    x = torch.randn(LENGTH, D_MODEL, generator=torch.Generator().manual_seed(shift))
    x[shift : shift + len(content)] = content
    branch(posemb.embed(x), AttentionContext(posemb.rotate, posemb.score_bias(LENGTH), posemb.relative))
    return seen[0][:, shift : shift + len(content), shift : shift + len(content)].tril()


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize(
    ("option", "relative"),
    [("none", True), ("rope", True), ("alibi", True), ("t5", True), ("learned", False), ("sinusoidal", False)],
)
def test_scores_depend_on_relative_position_only(option, relative, kind, monkeypatch):
    posemb, branch = randomise(OPTIONS[option](), seed=1, scale=1.0), randomise(ATTENTIONS[kind]())
    content = torch.randn(10, D_MODEL, generator=torch.Generator().manual_seed(99))
    base = scores_at(posemb, branch, content, 0, monkeypatch)
    for shift in (1, 5, 14):
        moved = scores_at(posemb, branch, content, shift, monkeypatch)
        if relative:
            close(moved, base)
        else:
            assert (moved - base).abs().max() > 0.1 * base.abs().max()


@pytest.mark.parametrize("option", ["rope", "alibi", "t5", "learned", "sinusoidal"])
def test_scores_do_depend_on_position(option, monkeypatch):
    """One token repeated: without positions all its scores are equal, with any option they are not."""
    branch, token = randomise(ATTENTIONS["mha"]()), torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(5))
    lower = torch.ones(10, 10).tril().bool()
    flat = scores_at(OPTIONS["none"](), branch, token.expand(10, -1), 3, monkeypatch)[:, lower]
    close(flat, flat[:, :1].expand_as(flat))
    posemb = randomise(OPTIONS[option](), seed=1, scale=1.0)
    scores = scores_at(posemb, branch, token.expand(10, -1), 3, monkeypatch)[:, lower]
    assert (scores.std(-1) > 1e-3).all()
