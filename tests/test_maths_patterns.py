"""Which keys each layer reads, score scale and norms on queries, keys and values: against transformers and by hand."""

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

from lmablate.budget import keys_read
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.model.attention import (
    AttentionSpan,
    GroupedQuery,
    MultiHead,
    Patterned,
    attend,
    explicit_attention,
    visible,
)
from lmablate.model.norm import RMSNorm
from lmablate.model.posemb import ALiBi, AttentionContext, PositionShape, RoPE

SHAPE = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS)
NONE = AttentionContext(lambda q, k: (q, k), None)
DEEP = ATTENTION._replace(n_layers=12)


def inputs():
    x = torch.randn(3, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(7))
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def compare(ours, theirs, names, positions, call):
    copy_weights(ours, theirs, names)
    x, x_theirs = inputs()
    actual, expected = ours(x, positions), call(x_theirs)
    close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    close(x.grad, x_theirs.grad, 1e-4)
    same_gradients(ours, theirs, names, 1e-4)


@pytest.mark.parametrize("layer", range(4))
def test_pattern_and_scale_equal_gpt_neo(layer):
    """Global and local layers in turn, a window of 5 in a text of 24, and scores that are not divided by sqrt(head_dim)."""
    keys = {"hidden_size": D_MODEL, "num_heads": N_HEADS, "window_size": 5, "max_position_embeddings": LENGTH}
    config_ = hf_config("GPTNeo", **keys, num_layers=4, attention_types=[[["global", "local"], 2]])
    kind = config_.attention_layers[layer]
    theirs = randomise(hf("gpt_neo", "GPTNeoSelfAttention")(config_, kind, layer))
    shape = ATTENTION._replace(n_layers=4, out_bias=True)
    ours = Patterned(shape, layer=layer, window=5, pattern="gl", scale=1.0)
    names = {f"{x}_proj.weight": f"{x}_proj.weight" for x in ("q", "k", "v", "out")}
    compare(ours, theirs, {**names, "out_proj.bias.weight": "out_proj.bias"}, NONE, lambda x: theirs(x)[0])


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [("lg", "lglglglglglg"), ("gl", "glglglglglgl"), ("lllllg", "lllllglllllg"), ("ggls", "gglsgglsggls")],
)
def test_a_pattern_is_repeated_over_the_depth(pattern, kinds):
    reads = {"g": AttentionSpan(), "l": AttentionSpan(5), "s": AttentionSpan(stride=5)}
    layers = [Patterned(DEEP, layer=i, window=5, pattern=pattern, scale=None) for i in range(12)]
    assert [layer.span for layer in layers] == [reads[kind] for kind in kinds]
    settings = {"window": 5, "pattern": pattern}
    assert [Patterned.layer_span(i, settings) for i in range(12)] == [reads[kind] for kind in kinds]


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text"])
def test_published_patterns(family):
    kinds = hf_config(family, num_hidden_layers=12, sliding_window=5).layer_types
    word = "lg" if family == "Gemma2" else "lllllg"
    layers = [Patterned(DEEP, layer=i, window=5, pattern=word, scale=None) for i in range(12)]
    assert [layer.span.window for layer in layers] == [5 if kind == "sliding_attention" else None for kind in kinds]


def sparse_transformer(length, stride, part):
    """The index sets of the strided pattern, Child et al. 2019, section 4.2: ``A(1) = {max(0, i - l), ..., i}`` with l
    keys and ``A(2) = {j : (i - j) mod l = 0}``."""
    return torch.tensor(
        [
            [j <= i and (i - j < stride if part == "l" else (i - j) % stride == 0) for j in range(length)]
            for i in range(length)
        ]
    )


@pytest.mark.parametrize("stride", [1, 3, 5, LENGTH - 1, LENGTH, 2 * LENGTH])
@pytest.mark.parametrize("letter", ["l", "s"])
def test_local_and_strided_masks_are_those_of_the_sparse_transformer(letter, stride):
    layer = Patterned(DEEP, layer=0, window=stride, pattern=letter, scale=None)
    mask = visible(LENGTH, layer.span, torch.device("cpu"))
    assert torch.equal(mask, sparse_transformer(LENGTH, stride, letter))
    assert mask.sum() / LENGTH == pytest.approx(keys_read(LENGTH, *layer.span))


def test_two_layers_of_the_strided_pattern_reach_everything():
    """What the pattern is for: any earlier position within two steps."""
    local, strided = (sparse_transformer(LENGTH, 5, letter).float() for letter in "ls")
    assert torch.equal((strided @ local > 0), torch.ones(LENGTH, LENGTH).tril().bool())


def by_hand(q, k, v, span, scale):
    """Query by query in float64, over the keys it may read."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for t in range(q.shape[-2]):
        seen = [
            s
            for s in range(t + 1)
            if (span.window is None or t - s < span.window) and (span.stride is None or (t - s) % span.stride == 0)
        ]
        weight = (scale * (k[..., seen, :] * q[..., t : t + 1, :]).sum(-1)).softmax(-1)
        rows.append((weight[..., None] * v[..., seen, :]).sum(-2))
    return torch.stack(rows, -2)


@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize(
    "span", [AttentionSpan(), AttentionSpan(5), AttentionSpan(stride=4), AttentionSpan(9, 2)], ids=str
)
def test_scale_and_span_on_both_paths(span, scale):
    """Values narrower than keys, as latent attention has them."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, N_HEADS, LENGTH, n, generator=generator).requires_grad_() for n in (8, 8, 5))
    wanted = by_hand(q, k, v, span, scale)
    gradients = torch.autograd.grad(wanted.square().sum(), [q, k, v])
    for path in (attend, explicit_attention):
        y = path(q, k, v, bias=None, span=span, scale=scale, soft_cap=None, dropout=0.0)
        close(y, wanted)
        for mine, gradient in zip(torch.autograd.grad(y.square().sum(), [q, k, v]), gradients, strict=True):
            close(mine, gradient, 1e-4)


@pytest.mark.parametrize("n_kv_heads", [N_HEADS, 2])
def test_norm_over_all_heads_equals_olmo2(n_kv_heads):
    keys = {"hidden_size": D_MODEL, "num_attention_heads": N_HEADS, "num_key_value_heads": n_kv_heads}
    config_ = hf_config("Olmo2", **keys, rms_norm_eps=1e-6)
    theirs = randomise(hf("olmo2", "Olmo2Attention")(config_, layer_idx=0))
    option = MultiHead if n_kv_heads == N_HEADS else GroupedQuery
    norm = lambda width: RMSNorm(width, eps=1e-6, gain=None, unit_offset=None)  # noqa: E731
    ours = option(ATTENTION._replace(n_kv_heads=n_kv_heads, qk_norm=norm, norm_all_heads=True), layer=0, scale=None)
    names = {f"{o}_proj.weight": f"{t}_proj.weight" for o, t in zip(("q", "k", "v", "out"), "qkvo", strict=True)}
    names |= {f"{x}_norm.gain.weight": f"{x}_norm.weight" for x in "qk"}
    rope = RoPE(SHAPE, rope_theta=10000.0, rotary_fraction=None, layout=None)
    tables = hf("olmo2", "Olmo2RotaryEmbedding")(config_)(torch.zeros(1), torch.arange(LENGTH)[None])
    mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
    call = lambda x: theirs(x, position_embeddings=tables, attention_mask=mask)[0]  # noqa: E731
    compare(ours, theirs, names, AttentionContext(rope.rotate, None), call)


@pytest.mark.parametrize("all_heads", [False, True], ids=["per_head", "all_heads"])
def test_norm_on_queries_keys_and_values_is_its_formula(all_heads):
    """Per head, or over the whole width of a token, before positions; values too."""
    norm = lambda width: RMSNorm(width, eps=1e-6, gain=None, unit_offset=None)  # noqa: E731
    shape = ATTENTION._replace(n_kv_heads=2, qk_norm=norm, v_norm=norm, norm_all_heads=all_heads)
    ours = randomise(GroupedQuery(shape, layer=0, scale=None))
    x = inputs()[0]

    def part(linear, gain):
        y = linear(x).double()
        y = y if all_heads else y.unflatten(-1, (-1, HEAD_DIM))
        y = y / y.square().mean(-1, keepdim=True).add(1e-6).sqrt() * gain.gain.weight
        y = y.unflatten(-1, (-1, HEAD_DIM)) if all_heads else y
        return y.transpose(1, 2)

    q, k, v = part(ours.q_proj, ours.q_norm), part(ours.k_proj, ours.k_norm), part(ours.v_proj, ours.v_norm)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    y = by_hand(q, k, v, AttentionSpan(), HEAD_DIM**-0.5).transpose(1, 2).flatten(-2).float()
    close(ours(x, NONE), ours.out_proj(y))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 40, 64, 112])
def test_alibi_equals_mpt(n_heads):
    """MPT counts back from the last key: the same but for a constant a row, which softmax does not see."""
    theirs = hf("mpt", "build_mpt_alibi_tensor")(n_heads, LENGTH)
    ours = ALiBi(SHAPE._replace(n_heads=n_heads)).score_bias(LENGTH)
    wanted = theirs - theirs[..., :1]
    close(ours - ours[..., :1], wanted.expand_as(ours))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention=pattern", "attention.pattern=ggl"), "3 letters"),
        (("attention=pattern", "attention.pattern=g"), "no layer"),
        (("attention=pattern", "attention.pattern=gx"), "attention.pattern=gx"),
        (("attention=pattern", "attention.pattern=''"), "attention.pattern="),
        (("stability.qk_norm_over=all_heads",), "add stability=qk_norm"),
        (("attention.scale=0.0",), "greater than 0"),
    ],
    ids=lambda item: item[-1] if isinstance(item, tuple) else "",
)
def test_bad_input_is_refused_in_words(words, message):
    with pytest.raises(ConfigError, match=message):
        config(*words)


def test_head_dim_is_free_of_the_width():
    """n_heads * head_dim above and below d_model, for every projection."""
    for head_dim in (2, 20):
        model = build_model(config(f"model.head_dim={head_dim}", "attention=gqa"), device="meta")
        branch = model.blocks[0].attention.branch
        assert branch.q_proj.weight.shape == (4 * head_dim, D_MODEL)
        assert branch.k_proj.weight.shape == (2 * head_dim, D_MODEL)
        assert branch.out_proj.weight.shape == (D_MODEL, 4 * head_dim)
