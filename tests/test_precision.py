"""Precision is a rule of places: equal for every option, so that two arms never differ in it."""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from tiny import config, every_option
from torch.overrides import TorchFunctionMode
from variants import variant

from lmablate.budget.trace import norm_modules
from lmablate.model import build_model, kernels
from lmablate.model.attention import attend, explicit_attention
from lmablate.model.attention.scores import EVERYTHING, SHORT
from lmablate.model.ffn.base import FeedForward
from lmablate.model.ffn.experts import Experts
from lmablate.model.output_heads import Detector
from lmablate.model.precision import set_compute_dtype
from lmablate.model.primitives import Embedding, Head, Linear, Router
from lmablate.objective import objective_of

HALF, WHOLE = torch.bfloat16, torch.float32
RULE = {
    "result of a matrix": HALF,
    "input of a branch's last matrix": HALF,
    "queries, keys and values": HALF,
    "scores": WHOLE,
    "router": WHOLE,
    "norm": WHOLE,
    "residual stream": WHOLE,
    "logits": WHOLE,
    "loss": WHOLE,
}
MORE = [
    *(
        "model.bias=true",
        "model.mlp_bias=true",
        "model.qkv_bias=true",
        "model.head_bias=true",
        "model.embedding_dim=16",
    ),
    *("model.tie_embeddings=true", "model.embedding_norm=true", "model.head_transform=true", "model.dropout=0.1"),
    *("objective=prefix", "objective=mlm", "objective=rtd", "model.n_encoder_layers=2 objective=span_corruption"),
    *("attention=mla attention.q_rank=8", "attention=mla attention.q_rank=null", "stability=all attention=gqa"),
    "ffn=token_choice ffn.shared=1 ffn.shared_gate=true model.mlp_bias=true",
]
OPTIONS = [(axis, option) for axis, option in every_option() if axis != "aspect_ratio"]


@pytest.mark.parametrize(("axis", "option"), OPTIONS)
def test_every_option_has_the_same_precision_at_the_same_place(axis, option):
    assert_rule(places_of(variant(**{axis: option})))


@pytest.mark.parametrize("words", MORE)
def test_keys_of_the_model_and_objectives_leave_the_precision_as_it_is(words):
    assert_rule(places_of(config(*words.split())))


def assert_rule(found):
    assert {"result of a matrix", "residual stream", "logits", "loss"} <= found.keys()
    for place, dtypes in found.items():
        assert dtypes == {RULE[place]}, place


def places_of(cfg, model=None):
    """The dtypes at each kind of place in a training pass of `cfg` in bf16."""
    model = model or build_model(cfg, device="meta")
    device = model.embedding.weight.device
    set_compute_dtype(model, HALF)
    found = defaultdict(set)
    for place, modules in watched(model, cfg).items():
        for module in modules:
            module.register_forward_hook(lambda m, x, y, place=place: found[place].add(y.dtype))
    for name, module in model.named_modules():
        if name.endswith("out_proj"):
            place = "input of a branch's last matrix"
            module.register_forward_pre_hook(lambda m, x, p=place: found[p].add(x[0].dtype))
    rows = torch.zeros(2, cfg.model.context_length, dtype=torch.long, device=device)
    objective = objective_of(cfg)
    with Scores(found):
        loss = objective(model, *objective.batch(rows, rows, data_seed=0, step=0))
    found["loss"] |= {loss.objective.dtype, loss.nats.dtype}
    loss.objective.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {WHOLE}
    return dict(found)


def watched(model, cfg):
    modules = list(model.modules())
    heads = [part for head in modules if isinstance(head, Head | Detector) for part in head.modules()]
    matrices = [m for m in modules if isinstance(m, Linear | Experts) and not isinstance(m, Router) and m not in heads]
    streams = [*model.all_blocks(), *(m for m in modules if isinstance(m, Embedding))]
    return {
        "result of a matrix": matrices,
        "router": [m for m in modules if isinstance(m, Router)],
        "norm": norm_modules(model, cfg),
        "residual stream": streams,
        "logits": [m for m in modules if isinstance(m, Head | Detector)],
    }


class Scores(TorchFunctionMode):
    """Notes what attention gets."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.found["queries, keys and values"] |= {x.dtype for x in args[:3]}
        if func is torch.Tensor.softmax and args[0].dtype != torch.float64:  # rtd samples in fp64
            self.found["scores"].add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [24, SHORT + 1])
@pytest.mark.parametrize("window", [None, 7])
def test_attention_in_bf16_on_a_cpu_is_that_in_fp32_of_the_same_numbers(length, window):
    """Values and gradients, by the way for short texts and by that for long ones."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(2, 3, length, 8, generator=generator).bfloat16().float().requires_grad_() for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in whole]
    how = {"bias": None, "span": EVERYTHING._replace(window=window), "scale": None, "soft_cap": None, "dropout": 0.0}
    wanted, got = explicit_attention(*whole, **how), attend(*half, **how)
    assert got.dtype == HALF
    torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02)
    gradient = torch.randn(wanted.shape, generator=generator).bfloat16()
    ours = torch.autograd.grad(got, half, gradient)
    for a, b in zip(ours, torch.autograd.grad(wanted, whole, gradient.float()), strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 0.02


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_dropout_of_short_attention_leaves_out_a_share_of_the_softmax(how, monkeypatch):
    """Values and gradients are those of the softmax in fp32, written out, of which the same places are left out."""
    kept, draw = [], kernels._draw
    monkeypatch.setattr(kernels, "_draw", lambda *args: kept.append(draw(*args)) or kept[-1])
    if how == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(2, 3, 24, 8, generator=generator).bfloat16().float().requires_grad_() for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in whole]
    got = attend(*half, bias=None, span=EVERYTHING, scale=None, soft_cap=None, dropout=0.3)
    q, k, v = whole
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(24, 24, dtype=torch.bool).tril(), -torch.inf)
    wanted = scores.softmax(-1) * kept[0].float() / 0.7 @ v
    torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02)
    gradient = torch.randn(wanted.shape, generator=generator).bfloat16()
    ours = torch.autograd.grad(got, half, gradient)
    for a, b in zip(ours, torch.autograd.grad(wanted, whole, gradient.float()), strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 0.02


@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_dropout_of_short_attention_keeps_the_share_and_the_mean(dropout):
    torch.manual_seed(0)
    equal, ones = torch.zeros(1, 1, 512, 8, dtype=HALF), torch.ones(1, 1, 512, 8, dtype=HALF)
    y = kernels.short_attention(equal, equal, ones, None, 1.0, dropout=dropout)[0, 0, :, 0].double()
    if 0.1 <= dropout <= 0.5:  # y is the share of 512 places that was kept, over the share that should be
        spread = (dropout / (1 - dropout) / 512) ** 0.5
        assert abs(float(y.mean()) - 1) < 5 * spread / 512**0.5
        assert float(y.std()) == pytest.approx(spread, rel=0.2)
    else:
        assert bool(y.isfinite().all())
        assert dropout > 0.5 or float((y - 1).abs().max()) < 0.01


class Own(FeedForward):
    """A user's part: primitives around a matrix of plain torch."""

    def __init__(self, width):
        super().__init__()
        self.in_proj, self.out_proj = (Linear(width, width, bias=False) for _ in range(2))
        self.mine = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.PReLU())

    def forward(self, x, positions):
        return self.out_proj(self.mine(self.in_proj(x)))


def test_a_part_with_weights_of_plain_torch_computes_in_fp32_and_the_others_in_bf16():
    model = build_model(variant())
    own, other = Own(model.config.model.d_model), model.blocks[1].ffn.branch
    model.blocks[0].ffn.branch = own
    set_compute_dtype(model, HALF)
    assert model(torch.zeros(1, 5, dtype=torch.long)).dtype == WHOLE  # products of two dtypes would raise
    assert own.in_proj.compute_dtype is None
    assert other.in_proj.compute_dtype == HALF
