"""Transformer-XL's relative positions against the paper's formula, term by term, and against XLNet's attention."""

import pytest
import torch
from reference_models import ATTENTION, D_MODEL, HEAD_DIM, LENGTH, N_HEADS, N_LAYERS, close, hf, hf_config, randomise
from tiny import config, tokens_for
from torch.utils.flop_counter import FlopCounterMode

from lmablate.budget import flops_per_token
from lmablate.model import build_model
from lmablate.model.attention import GroupedQuery, LatentAttention, MultiHead, SlidingWindow
from lmablate.model.posemb import AttentionContext, PositionShape, TransformerXL

SHAPE = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS)
MLA = {"q_rank": 12, "kv_rank": 10, "rope_head_dim": 6, "v_head_dim": 5, "norm_eps": 1e-6}
ATTENTIONS = {
    "mha": (MultiHead, {}, {}, None),
    "gqa_bias_scale": (GroupedQuery, {"n_kv_heads": 2, "qkv_bias": True, "out_bias": True}, {"scale": 0.7}, None),
    "window": (SlidingWindow, {}, {"window": 5}, 5),
    "soft_cap": (MultiHead, {"soft_cap": 1.5}, {}, None),
}


def sinusoid(distance):
    """``[sin(d w_0), cos(d w_0), sin(d w_1), ...]`` in float64."""
    angles = torch.tensor([distance / 10000.0 ** (i / D_MODEL) for i in range(0, D_MODEL, 2)], dtype=torch.float64)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten()


@pytest.mark.parametrize("length", [LENGTH, 9, LENGTH + 8])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("case", ATTENTIONS)
def test_is_the_formula_of_the_paper(case, layer, length):
    """Dai et al. 2019, section 3.3, pair by pair in float64: content, position, and the two global biases."""
    option, changes, keys, window = ATTENTIONS[case]
    shape = ATTENTION._replace(**changes)
    branch = randomise(option(shape, layer=layer, **{"scale": None, **keys}))
    posemb = randomise(TransformerXL(SHAPE, theta=10000.0), seed=1)
    x = torch.randn(2, length, D_MODEL, generator=torch.Generator().manual_seed(3))
    actual = branch(x, AttentionContext(posemb.rotate, posemb.score_bias(length), posemb.relative))

    def heads(linear):
        return linear(x).double().unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

    group = N_HEADS // shape.n_kv_heads
    q, k, v = heads(branch.q_proj), heads(branch.k_proj), heads(branch.v_proj)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    terms = posemb.layers[layer]
    w_r = terms.proj.weight.double().view(N_HEADS, HEAD_DIM, D_MODEL)
    u, w = (b.weight.double().view(N_HEADS, HEAD_DIM) for b in (terms.content, terms.position))
    scores = torch.full((2, N_HEADS, length, length), -torch.inf, dtype=torch.float64)
    for i in range(length):
        for j in range(max(0, i - window + 1) if window else 0, i + 1):
            r = w_r @ sinusoid(i - j)  # [H, head_dim]
            a, b = q[:, :, i], k[:, :, j]
            scores[:, :, i, j] = (a * b).sum(-1) + (a * r).sum(-1) + (u * b).sum(-1) + (w * r).sum(-1)
    scores = scores * (keys.get("scale") or HEAD_DIM**-0.5)
    if shape.soft_cap:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2).float()
    close(actual, branch.out_proj(y), 2e-5)


def test_equals_xlnet():
    """XLNet keeps the formula (its own authors' code), with distances T, ..., 0 and weights [D, H, head_dim]."""
    config_ = hf_config("XLNet", d_model=D_MODEL, n_head=N_HEADS, d_inner=8, n_layer=1, dropout=0.0)
    theirs = hf("xlnet", "XLNetRelativeAttention")(config_)
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    ours, posemb = MultiHead(ATTENTION, layer=0, scale=None), TransformerXL(SHAPE, theta=10000.0)
    terms = posemb.layers[0]
    pairs = [(ours.q_proj, theirs.q), (ours.k_proj, theirs.k), (ours.v_proj, theirs.v), (terms.proj, theirs.r)]
    pairs += [(ours.out_proj, theirs.o), (terms.content, theirs.r_w_bias), (terms.position, theirs.r_r_bias)]

    def as_ours(part, tensor):
        """From ``[D, H, head_dim]`` or ``[H, head_dim]``; all but the last matrix are transposed."""
        if tensor.ndim == 2:
            return tensor.flatten()
        return tensor.flatten(1) if part is ours.out_proj else tensor.flatten(1).T

    with torch.no_grad():
        for part, source in pairs:
            part.weight.copy_(as_ours(part, source))
    x = torch.randn(3, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(5))
    actual = ours(x, AttentionContext(posemb.rotate, None, posemb.relative))

    h = x.transpose(0, 1)  # theirs is [T, B, D]
    r = torch.stack([sinusoid(d) for d in range(LENGTH, -1, -1)]).float()[:, None].expand(-1, 3, -1)
    q, k, v = (torch.einsum("ibh,hnd->ibnd", h, w) for w in (theirs.q, theirs.k, theirs.v))
    future = torch.ones(LENGTH, LENGTH).triu(1)[:, :, None, None]
    y = theirs.rel_attn_core(q, k, v, torch.einsum("ibh,hnd->ibnd", r, theirs.r), attn_mask=future)
    expected = torch.einsum("ibnd,hnd->ibh", y, theirs.o).transpose(0, 1)
    close(actual, expected)
    actual.square().sum().backward()
    wanted = torch.autograd.grad(expected.square().sum(), [source for _, source in pairs])
    for (part, _), gradient in zip(pairs, wanted, strict=True):
        close(part.weight.grad, as_ours(part, gradient), 1e-4)


def test_latent_attention_takes_the_terms_on_its_decoupled_channels():
    """Only the channels that carry positions meet u, v and W_R; with u = v = W_R = 0 nothing is left of them."""
    branch = randomise(LatentAttention(ATTENTION, layer=0, scale=None, **MLA))
    posemb = TransformerXL(SHAPE._replace(head_dim=MLA["rope_head_dim"]), theta=10000.0)
    x = torch.randn(2, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        posemb.layers[0].proj.weight.zero_()
    plain = branch(x, AttentionContext(posemb.rotate, None))
    close(branch(x, AttentionContext(posemb.rotate, None, posemb.relative)), plain)
    moved = branch(x, AttentionContext(posemb.rotate, None, randomise(posemb).relative))
    assert (moved - plain).abs().max() > 1e-2


def test_every_layer_has_terms_of_its_own():
    cfg = config("posemb=transformer_xl", "model.n_layers=3")
    model = randomise(build_model(cfg))
    tokens = tokens_for(cfg)[:, :-1]
    before = model(tokens)
    for terms in model.posemb.layers:
        kept = terms.proj.weight.detach().clone()
        with torch.no_grad():
            terms.proj.weight.mul_(2.0)
            assert (model(tokens) - before).abs().max() > 1e-3
            terms.proj.weight.copy_(kept)


def test_flops_equal_torch_counter():
    """One text, explicit attention (soft cap): the whole square of scores and of position terms, half of which is counted."""
    cfg = config("posemb=transformer_xl", "stability.attention_soft_cap=50.0")
    model, m = build_model(cfg), cfg.model
    with FlopCounterMode(display=False) as counter:
        model(tokens_for(cfg, rows=1)[:, :-1]).sum().backward()
    unread = m.n_layers * (m.context_length - 1) / 2
    # the sinusoids need no gradient, so the matrix that reads them has one product less in the backward pass
    not_needed = 2 * m.n_layers * m.d_model * m.n_heads * m.head_dim
    expected = flops_per_token(cfg) + 6 * 3 * m.n_heads * m.head_dim * unread - not_needed
    assert counter.get_total_flops() / m.context_length == pytest.approx(expected, abs=0.5)
