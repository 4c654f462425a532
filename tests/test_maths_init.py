"""Initial weights: what two arms share starts equal, everything else differs; and no option reads the future."""

from itertools import combinations

import pytest
import torch
from tiny import options, tokens_for
from variants import base, variant

from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.model.attention import Attention
from lmablate.model.ffn import GatedFFN, PlainFFN
from lmablate.model.primitives import Bias, Gain, Matrix


def roles(model):
    """Every random matrix by (layer, branch, role), wherever the block keeps its branches."""
    found = {("", "embedding", ""): model.embedding.weight}
    if model.head.proj is not None:
        found["", "head", "proj"] = model.head.proj.weight
    found |= {("", "posemb", name): p for name, p in model.posemb.named_parameters()}
    for i, block in enumerate(model.blocks):
        for module in block.modules():
            branch = (
                "attention"
                if isinstance(module, Attention)
                else "ffn"
                if isinstance(module, (PlainFFN, GatedFFN))
                else None
            )
            if branch:
                found |= {(i, branch, name): m.weight for name, m in module.named_modules() if isinstance(m, Matrix)}
    assert len(found) == sum(p.ndim > 1 for p in model.parameters())
    return found


def arm(seed=0, model=None, **axes):
    return roles(build_model(variant(model=model, **axes).model_copy(update={"init_seed": seed})))


EVERYTHING, ALL_BUT_FFN = "everything", "all but the FFN"
PAIRS = [
    ({"norm_position": "pre"}, {"norm_position": "post"}, EVERYTHING),
    ({"norm_position": "pre"}, {"norm_position": "sandwich"}, EVERYTHING),
    ({"norm_position": "pre"}, {"norm_position": "output"}, EVERYTHING),
    ({"block_layout": "serial"}, {"block_layout": "parallel"}, EVERYTHING),
    ({"block_layout": "serial"}, {"block_layout": "parallel2"}, EVERYTHING),
    ({"norm": "rms"}, {"norm": "layer"}, EVERYTHING),
    ({"norm": "rms"}, {"norm": "none"}, EVERYTHING),
    ({"activation": "swiglu"}, {"activation": "geglu"}, EVERYTHING),
    ({"activation": "swiglu"}, {"activation": "gelu", "model": {"d_ff": 128}}, ALL_BUT_FFN),
    ({"posemb": "rope"}, {"posemb": "alibi"}, EVERYTHING),
    ({"attention": "mha"}, {"attention": "sliding_window"}, EVERYTHING),
    ({"attention": "mha"}, {"attention": "interleaved"}, EVERYTHING),
    ({"stability": "none"}, {"stability": "all"}, EVERYTHING),
    ({"model": {"bias": False}}, {"model": {"bias": True}}, EVERYTHING),
]


@pytest.mark.parametrize(
    ("left", "right", "shared"), PAIRS, ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else ""
)
def test_what_two_arms_share_starts_equal(left, right, shared):
    a, b = arm(**left), arm(**right)
    kept = {key for key in a if shared == EVERYTHING or key[1] != "ffn"}
    assert shared == ALL_BUT_FFN or set(a) == set(b)
    assert kept <= set(b)
    for key in kept:
        assert torch.equal(a[key], b[key]), key


def test_what_only_partly_fits_still_starts_equal_where_it_does():
    mha, gqa, learned, tied, deeper = (
        arm(**keys)
        for keys in (
            {},
            {"attention": "gqa"},
            {"posemb": "learned"},
            {"model": {"tie_embeddings": True}},
            {"model": {"n_layers": 3}},
        )
    )
    for key, weight in mha.items():
        if key[2] not in ("k_proj", "v_proj"):
            assert torch.equal(weight, gqa[key]), key
        assert torch.equal(weight, learned[key]), key
        if key[1] != "head":
            assert torch.equal(weight, tied[key]), key
        ratio = (2 / 3) ** 0.5 if key[2] == "out_proj" else 1.0  # depth scales the last matrix of a branch
        torch.testing.assert_close(deeper[key], weight * ratio, rtol=1e-6, atol=0)


def test_draws_differ_between_roles_layers_branches_and_seeds():
    first, second = (
        arm(model={"d_ff": 32, "vocab_size": 32}, posemb="learned"),
        arm(seed=1, model={"d_ff": 32, "vocab_size": 32}),
    )
    square = {key: w.flatten() for key, w in first.items() if w.numel() == 32 * 32}
    assert len(square) == 2 + 2 * 7
    for a, b in combinations(square.values(), 2):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 0.15  # 4.8 standard errors
    for key, weight in second.items():
        assert abs(torch.corrcoef(torch.stack((weight.flatten(), first[key].flatten())))[0, 1]) < 0.15, key


def test_same_seed_gives_the_same_weights_and_the_data_seed_none_of_them():
    cfg = base()
    torch.manual_seed(1)
    a = build_model(cfg).state_dict()
    torch.manual_seed(2)
    torch.randn(100)
    b = build_model(cfg.model_copy(update={"data_seed": 5})).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("layout", ["serial", "parallel"])
def test_standard_deviations_are_the_stated_ones(layout, activation, scaled):
    sizes = {
        "d_model": 128,
        "d_ff": 256,
        "n_layers": 3,
        "head_dim": 32,
        "vocab_size": 500,
        "init_std": 0.05,
        "head_std": None,
        "embedding_std": 0.05,
        "depth_scaled_init": scaled,
    }
    weights = arm(block_layout=layout, activation=activation, model=sizes)
    assert {role for _, branch, role in weights if branch == "ffn"} == {"in_proj", "out_proj"} | (
        {"gate_proj"} if activation == "swiglu" else set()
    )
    for key, weight in weights.items():
        last = key[2] == "out_proj"
        wanted = 0.05 / (6**0.5 if last and scaled else 1)
        error = wanted / (2 * weight.numel()) ** 0.5
        assert abs(weight.std() - wanted) < 5 * error, key
        assert abs(weight.mean()) < 5 * wanted / weight.numel() ** 0.5, key


def test_gains_start_at_one_and_biases_at_zero():
    for module in build_model(variant(norm="layer", stability="qk_norm", model={"bias": True})).modules():
        if isinstance(module, Gain):
            assert (module.weight == 1).all()
        if isinstance(module, Bias):
            assert (module.weight == 0).all()


LAYOUTS = [
    {"block_layout": layout, "norm_position": position}
    for layout in options("block_layout")
    for position in options("norm_position")
]
CHOICES = [
    *({"attention": attention, "posemb": posemb} for attention in options("attention") for posemb in options("posemb")),
    *({"attention": attention, "stability": "all"} for attention in options("attention")),
    *LAYOUTS,
    *({"norm": norm} for norm in options("norm")),
    *({"activation": activation} for activation in options("activation")),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))
def test_changing_a_token_leaves_earlier_logits_to_the_bit(choice):
    cfg = variant(**choice)
    try:
        model = build_model(cfg).eval()
    except ConfigError as refusal:
        assert len(choice) == 2, "an option on its own is never refused"
        pytest.skip(str(refusal))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Matrix):
                module.weight.mul_(5)
        tokens = tokens_for(cfg, rows=2)[:, :-1]
        base_logits = model(tokens)
        for t in (1, 11, 23):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % cfg.model.vocab_size
            logits = model(changed)
            assert torch.equal(logits[:, :t], base_logits[:, :t])
            assert (logits[:, t] != base_logits[:, t]).any(-1).all()
            if t == 11:
                assert (logits[:, t + 1] != base_logits[:, t + 1]).any(-1).all(), (
                    "the next position does not see the change"
                )
