"""Norms, feed-forward networks, activations and losses against torch, transformers and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference_models import D_FF, D_MODEL, close, copy_weights, hf, hf_config, randomise, same_gradients
from tiny import config, tokens_for
from torch import nn
from variants import option as conf

from lmablate.model import build_model
from lmablate.model.factory import pointwise
from lmablate.model.ffn import GatedFFN, PlainFFN
from lmablate.model.norm import LayerNorm, NoNorm, RMSNorm
from lmablate.objective import IGNORE, Causal


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


NORMS = {
    "rms": (
        lambda d: RMSNorm(d, eps=1e-6, gain=None, unit_offset=None),
        lambda d: nn.RMSNorm(d, eps=1e-6),
        {"gain.weight": "weight"},
    ),
    "rms_eps": (
        lambda d: RMSNorm(d, eps=0.3, gain=None, unit_offset=None),
        lambda d: nn.RMSNorm(d, eps=0.3),
        {"gain.weight": "weight"},
    ),
    "layer": (
        lambda d: LayerNorm(d, eps=1e-5, bias=True, gain=None, unit_offset=None),
        lambda d: nn.LayerNorm(d, eps=1e-5),
        {"gain.weight": "weight", "bias.weight": "bias"},
    ),
    "layer_no_bias": (
        lambda d: LayerNorm(d, eps=1e-5, bias=False, gain=None, unit_offset=None),
        lambda d: nn.LayerNorm(d, bias=False),
        {"gain.weight": "weight"},
    ),
    "layer_eps": (
        lambda d: LayerNorm(d, eps=0.3, bias=False, gain=None, unit_offset=None),
        lambda d: nn.LayerNorm(d, eps=0.3, bias=False),
        {"gain.weight": "weight"},
    ),
}


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("shape", [(8,), (5, 3), (3, 33), (2, 3, 24, 32), (2, 2, 2, 4, 130)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_equals_torch(norm, shape, offset):
    """`offset` moves the mean away from 0: RMSNorm keeps it, LayerNorm removes it."""
    make, make_theirs, names = NORMS[norm]
    ours, theirs = make(shape[-1]), randomise(make_theirs(shape[-1]))
    copy_weights(ours, theirs, names)
    x, x_theirs = (
        (offset + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).requires_grad_() for _ in range(2)
    )
    actual, expected = ours(x), theirs(x_theirs)
    close(actual, expected)
    weights = torch.randn(shape)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    close(x.grad, x_theirs.grad, scale=1.0)
    same_gradients(ours, theirs, names, 1e-5)


def test_no_norm_is_the_identity():
    x = torch.randn(2, 3, 8)
    assert torch.equal(NoNorm(8)(x), x)
    assert not list(NoNorm(8).parameters())


def normal_cdf(x):
    return 0.5 * (1 + torch.special.erf(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


FORMULAS = {  # option: (gates, the pointwise function by its definition)
    "relu": (False, lambda x: (x + x.abs()) / 2),
    "gelu": (False, lambda x: x * normal_cdf(x)),
    "gelu_tanh": (False, lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": (False, lambda x: x * sigmoid(x)),
    "relu2": (False, lambda x: (x > 0) * x * x),
    "elu": (False, lambda x: torch.where(x > 0, x, torch.exp(x) - 1)),
    "selu": (False, lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (torch.exp(x) - 1))),
    "identity": (False, lambda x: x),
    "glu": (True, sigmoid),
    "bilinear": (True, lambda x: x),
    "reglu": (True, lambda x: (x + x.abs()) / 2),
    "geglu": (True, lambda x: x * normal_cdf(x)),
    "swiglu": (True, lambda x: x * sigmoid(x)),
}


@pytest.mark.parametrize("option", FORMULAS)
def test_activation_is_its_definition(option):
    chosen = conf("activation", option)
    gated, formula = FORMULAS[option]
    assert chosen["gated"] is gated
    x = torch.cat((torch.linspace(-8, 8, 2001), torch.randn(500))).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    actual, expected = pointwise(chosen["fn"])(x), formula(x64)
    close(actual, expected)
    away = x64.detach().abs() > 1e-3  # the corner of ReLU has no derivative
    actual.sum().backward()
    expected.sum().backward()
    close(x.grad[away], x64.grad[away])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("option", FORMULAS)
def test_ffn_is_its_formula(option, bias):
    """``W_out f(W_in x)`` and ``W_out (f(W_gate x) * W_in x)`` in double precision."""
    gated, formula = FORMULAS[option]
    fn = pointwise(conf("activation", option)["fn"])
    ffn = randomise((GatedFFN if gated else PlainFFN)(D_MODEL, D_FF, fn=fn, bias=bias, dropout=0.0))
    x = torch.randn(2, 3, 5, D_MODEL)

    def linear(layer, value):
        value = torch.einsum("...i,oi->...o", value, layer.weight.double())
        return value + layer.bias.weight.double() if bias else value

    hidden = linear(ffn.in_proj, x.double())
    hidden = formula(linear(ffn.gate_proj, x.double())) * hidden if gated else formula(hidden)
    expected = linear(ffn.out_proj, hidden)
    actual = ffn(x, None)
    close(actual, expected)
    parameters = list(ffn.parameters())
    assert len(parameters) == (3 if gated else 2) * (2 if bias else 1)
    for a, b in zip(
        torch.autograd.grad(actual.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        close(a, b)


@pytest.mark.parametrize(
    ("option", "act"),
    [("swiglu", "silu"), ("geglu", "gelu"), ("reglu", "relu"), ("glu", "sigmoid"), ("bilinear", "linear")],
)
def test_gated_ffn_equals_llama_mlp(option, act):
    theirs = randomise(
        hf("llama", "LlamaMLP")(hf_config("Llama", hidden_size=D_MODEL, intermediate_size=D_FF, hidden_act=act))
    )
    ours = GatedFFN(D_MODEL, D_FF, fn=pointwise(conf("activation", option)["fn"]), bias=False, dropout=0.0)
    names = {
        "gate_proj.weight": "gate_proj.weight",
        "in_proj.weight": "up_proj.weight",
        "out_proj.weight": "down_proj.weight",
    }
    copy_weights(ours, theirs, names)
    x = torch.randn(2, 7, D_MODEL)
    close(ours(x, None), theirs(x))
    ours(x, None).square().sum().backward()
    theirs(x).square().sum().backward()
    same_gradients(ours, theirs, names, 1e-5)


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits


def test_loss_is_the_mean_negative_log_probability():
    logits, targets = 5 * torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    wanted = -logits.double().log_softmax(-1).gather(-1, targets[..., None]).mean()
    loss = Causal(z_loss=None)(Fixed(logits), targets, targets)
    close(loss.nats, wanted)
    assert loss.objective is loss.nats
    uniform = Causal(z_loss=None)(Fixed(torch.zeros(3, 7, 11)), targets, targets).nats
    close(uniform, torch.tensor(math.log(11)))


def test_loss_skips_padding():
    logits, targets = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    padded = targets.clone()
    padded[:, 4:] = IGNORE
    close(
        Causal(z_loss=None)(Fixed(logits), targets, padded).nats,
        F.cross_entropy(logits[:, :4].flatten(0, 1), targets[:, :4].flatten()),
    )


def test_z_loss_is_its_formula():
    logits, targets = 3 * torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    plain, loss = (Causal(z_loss=z)(Fixed(logits), targets, targets) for z in (None, 0.37))
    close(loss.nats, plain.nats)  # what is reported stays the cross entropy
    close(loss.objective, plain.nats + 0.37 * logits.double().exp().sum(-1).log().square().mean())
    normalised = logits.log_softmax(-1)  # log Z = 0: nothing to pay
    close(Causal(z_loss=0.37)(Fixed(normalised), targets, targets).objective, plain.nats)


def test_z_loss_gradient_by_finite_differences():
    logits, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(0, 5, (2, 3))

    def objective(values):  # the objective computes in fp32, so the differences take its formula in float64
        nats = -values.log_softmax(-1).gather(-1, targets[..., None]).mean()
        return nats + 0.37 * values.exp().sum(-1).log().square().mean()

    wanted, h = torch.empty_like(logits), 1e-6
    for i in range(logits.numel()):
        step = torch.zeros(logits.numel(), dtype=torch.float64).index_fill_(0, torch.tensor([i]), h).view_as(logits)
        wanted.view(-1)[i] = (objective(logits + step) - objective(logits - step)) / (2 * h)
    leaf = logits.float().requires_grad_()
    Causal(z_loss=0.37)(Fixed(leaf), targets, targets).objective.backward()
    close(leaf.grad, wanted)


def test_final_soft_cap_is_bounded_and_starts_with_slope_one():
    cfg = config("stability=soft_cap", "stability.final_soft_cap=3.0", "stability.attention_soft_cap=null")
    model = randomise(build_model(cfg), scale=1.0)
    hidden = model.hidden(tokens_for(cfg)[:, :-1])
    raw = hidden @ model.head.proj.weight.T
    assert raw.abs().max() > 6
    capped = model.logits(hidden)
    assert capped.abs().max() <= 3
    close(capped, 3 * (1 - 2 / (torch.exp(2 * raw.double() / 3) + 1)))  # 3 tanh(raw / 3)
    close(torch.autograd.functional.jacobian(model.logits, torch.zeros(D_MODEL)), model.head.proj.weight)
