"""Whole models against published ones in transformers, and stacks against torch's own layers, with copied weights."""

import pytest
import torch
from reference_models import (
    D_FF,
    D_MODEL,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    close,
    copy_weights,
    randomise,
    same_gradients,
)
from tiny import config, tokens_for
from torch import nn
from twins import TWINS

from lmablate.model import build_model
from lmablate.model.block_layout import Parallel, Parallel2, Serial
from lmablate.model.norm_position import DeepNorm, Output, Post, Pre, Sandwich
from lmablate.model.posemb import AttentionContext
from lmablate.objective import Causal


@pytest.mark.parametrize("name", TWINS)
def test_equals_the_published_model(name):
    twin = TWINS[name]
    cfg = config(*twin.words, f"model.d_ff={twin.d_ff}")
    ours, theirs = build_model(cfg).eval(), twin.build()
    copy_weights(ours, theirs, twin.names)
    tokens = tokens_for(cfg)[:, :-1]
    assert tokens.shape == (3, LENGTH)
    expected = theirs(input_ids=tokens, labels=tokens)  # shifts the labels itself
    close(ours(tokens), expected.logits)

    loss = Causal(z_loss=None)(ours, tokens[:, :-1], tokens[:, 1:])
    close(loss.nats, expected.loss)
    loss.objective.backward()
    expected.loss.backward()
    same_gradients(ours, theirs, twin.names, 1e-4)


def encoder_names(bias):
    names = {}
    for ours, theirs in {
        "ffn.branch.in_proj": "linear1",
        "ffn.branch.out_proj": "linear2",
        "attention.branch.out_proj": "self_attn.out_proj",
    }.items():
        names[f"blocks.{{i}}.{ours}.weight"] = f"layers.{{i}}.{theirs}.weight"
        names |= {f"blocks.{{i}}.{ours}.bias.weight": f"layers.{{i}}.{theirs}.bias"} if bias else {}
    for part, letter in enumerate("qkv"):
        piece = lambda w, part=part: w.chunk(3)[part]  # noqa: E731
        names[f"blocks.{{i}}.attention.branch.{letter}_proj.weight"] = ("layers.{i}.self_attn.in_proj_weight", piece)
        names |= (
            {f"blocks.{{i}}.attention.branch.{letter}_proj.bias.weight": ("layers.{i}.self_attn.in_proj_bias", piece)}
            if bias
            else {}
        )
    for ours, theirs in {"attention": "norm1", "ffn": "norm2"}.items():
        names[f"blocks.{{i}}.{ours}.norm.gain.weight"] = f"layers.{{i}}.{theirs}.weight"
        names |= {f"blocks.{{i}}.{ours}.norm.bias.weight": f"layers.{{i}}.{theirs}.bias"} if bias else {}
    return names


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("position", ["post", "pre"])
def test_stack_equals_torch_transformer_encoder(position, activation, bias):
    words = (
        f"model.bias={bias}",
        f"norm.bias={bias}",
        "norm=layer",
        f"activation={activation}",
        f"norm_position={position}",
    )
    ours = build_model(config(*words, "posemb=none", f"model.d_ff={D_FF}"))
    layer = nn.TransformerEncoderLayer(
        D_MODEL,
        N_HEADS,
        D_FF,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=position == "pre",
        bias=bias,
    )
    theirs = randomise(
        nn.TransformerEncoder(layer, N_LAYERS, enable_nested_tensor=False)
    ).train()  # eval takes a fused path without gradients
    names = encoder_names(bias)
    stack = nn.Module()
    stack.blocks = ours.blocks
    copy_weights(stack, theirs, names)

    x = torch.randn(3, LENGTH, D_MODEL, generator=torch.Generator().manual_seed(1))
    y, positions = x, AttentionContext(ours.posemb.rotate, None)
    for block in ours.blocks:
        y = block(y, positions)
    expected = theirs(x, mask=nn.Transformer.generate_square_subsequent_mask(LENGTH), is_causal=True)
    close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    same_gradients(stack, theirs, names, 1e-4)
    assert isinstance(ours.final_norm, nn.Identity) == (position == "post")


class Branch(nn.Module):
    """Any function of the stream, with positions as branches take them."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, positions):
        return self.function(x)


def attention(x):
    return torch.tanh(3 * x.cumsum(-2))


def ffn(x):
    return torch.sin(2 * x) + 0.3


def deepnorm(branch, norm, n_layers, rule="deepnet"):
    return DeepNorm(branch, norm, n_layers, rule=rule)


def deepnorm_glm(branch, norm, n_layers):
    return deepnorm(branch, norm, n_layers, "glm")


deepnorm.norms_per_branch = deepnorm_glm.norms_per_branch = DeepNorm.norms_per_branch

# n is the list of norms in the order they are made: of the attention branch first, the inner norm before the outer.
FORMULAS = {
    (Serial, Pre): lambda x, n: (h := x + attention(n[0](x))) + ffn(n[1](h)),
    (Serial, Post): lambda x, n: n[1]((h := n[0](x + attention(x))) + ffn(h)),
    (Serial, Sandwich): lambda x, n: (h := x + n[1](attention(n[0](x)))) + n[3](ffn(n[2](h))),
    (Serial, Output): lambda x, n: (h := x + n[0](attention(x))) + n[1](ffn(h)),
    (Parallel, Pre): lambda x, n: x + attention(n[0](x)) + ffn(n[0](x)),
    (Parallel, Post): lambda x, n: n[0](x + attention(x) + ffn(x)),
    (Parallel, Sandwich): lambda x, n: x + n[1](attention(n[0](x)) + ffn(n[0](x))),
    (Parallel, Output): lambda x, n: x + n[0](attention(x) + ffn(x)),
    (Parallel2, Pre): lambda x, n: x + attention(n[0](x)) + ffn(n[1](x)),
    (Parallel2, Sandwich): lambda x, n: x + n[1](attention(n[0](x))) + n[3](ffn(n[2](x))),
    (Parallel2, Output): lambda x, n: x + n[0](attention(x)) + n[1](ffn(x)),
    # Wang et al. 2022, figure 2 (decoders), and GLM-130B, section 2.1: 3 layers, alpha = (2 * 3)^(1/4) and (2 * 3)^(1/2)
    (Serial, deepnorm): lambda x, n: n[1](6**0.25 * (h := n[0](6**0.25 * x + attention(x))) + ffn(h)),
    (Parallel, deepnorm): lambda x, n: n[0](6**0.25 * x + attention(x) + ffn(x)),
    (Serial, deepnorm_glm): lambda x, n: n[1](6**0.5 * (h := n[0](6**0.5 * x + attention(x))) + ffn(h)),
}


@pytest.mark.parametrize(("layout", "position"), FORMULAS, ids=lambda kind: kind.__name__)
def test_block_is_its_formula(layout, position):
    norms = []

    def new_norm():
        norms.append(randomise(nn.LayerNorm(8), seed=len(norms)))
        return norms[-1]

    block = layout(Branch(attention), Branch(ffn), lambda branch: position(branch, norm=new_norm, n_layers=3))
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    close(block(x, AttentionContext(lambda q, k: (q, k), None)), FORMULAS[layout, position](x, norms))
    assert len(norms) == layout.n_branches * position.norms_per_branch


@pytest.mark.parametrize(
    ("position", "ends_in_norm"), [("pre", True), ("post", False), ("sandwich", True), ("output", True)]
)
def test_final_norm_and_head_read_the_stream(position, ends_in_norm):
    """Logits are ``W_head final_norm(stream)``: the stream ends in exactly one norm."""
    cfg = config(f"norm_position={position}", "norm=layer")
    model = randomise(build_model(cfg))
    tokens = tokens_for(cfg)[:, :-1]
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    logits = model(tokens)
    hook.remove()
    stream = seen[0]
    if ends_in_norm:
        norm = model.final_norm
        stream = nn.functional.layer_norm(stream, (D_MODEL,), norm.gain.weight, norm.bias.weight, 1e-5)
    close(logits, stream @ model.head.proj.weight.T)
