"""Rotary positions: scaling against transformers' rules, partial width, both layouts and the converter between them."""

import math

import pytest
import torch
from reference_models import D_MODEL, HEAD_DIM, LENGTH, N_HEADS, N_LAYERS, close, hf, hf_config, randomise
from tiny import config, tokens_for

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model, posemb
from lmablate.model.posemb import PositionShape, RoPE, halves_to_pairs, pairs_to_halves

SHAPE = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS)
PLAIN = {"rope_theta": 10000.0, "rotary_fraction": None, "layout": None}
YARN = {"factor": 4.0, "original_length": 64, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
LLAMA3 = {"factor": 8.0, "original_length": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"original_length": 32, "short_factor": 1.5, "long_factor": 7.0, "attention_factor": None}
# our class and keys, at which context length and width; the kind and the keys of theirs beside those of the same meaning
SCALED = {
    "linear": ("LinearRoPE", {"factor": 3.0}, 256, 64, "linear", {}),
    "linear_partial": ("LinearRoPE", {"factor": 3.0, "rotary_fraction": 0.25}, 256, 64, "linear", {}),
    "dynamic": ("DynamicRoPE", {"factor": 2.0, "original_length": 64}, 256, 64, "dynamic", {}),
    "dynamic_partial": (
        "DynamicRoPE",
        {"factor": 4.0, "original_length": 100, "rotary_fraction": 0.5},
        128,
        32,
        "dynamic",
        {},
    ),
    "yarn": ("YaRN", YARN, 256, 64, "yarn", {}),
    "yarn_one_beta": ("YaRN", {**YARN, "beta_fast": 1.0, "factor": 32.0}, 256, 128, "yarn", {}),  # Kimi K2
    "yarn_betas": ("YaRN", {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "factor": 40.0}, 256, 128, "yarn", {}),
    "yarn_theta": ("YaRN", {**YARN, "rope_theta": 500.0, "rotary_fraction": 0.5}, 300, 64, "yarn", {}),
    "yarn_amplitude": ("YaRN", {**YARN, "attention_factor": 1.7}, 256, 64, "yarn", {"attention_factor": 1.7}),
    "yarn_4096": ("YaRN", {**YARN, "original_length": 4096, "factor": 40.0}, 8192, 64, "yarn", {}),
    "llama3": ("Llama3RoPE", LLAMA3, 256, 64, "llama3", {}),
    "llama3_1": (
        "Llama3RoPE",
        {**LLAMA3, "original_length": 8192, "rope_theta": 500000.0},
        9000,
        128,
        "llama3",
        {},
    ),
    "llama3_partial": ("Llama3RoPE", {**LLAMA3, "low_freq_factor": 2.0, "rotary_fraction": 0.5}, 256, 64, "llama3", {}),
    "longrope": ("LongRoPE", LONG, 256, 64, "longrope", {}),
    "longrope_lists": (
        "LongRoPE",
        {**LONG, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 9.0, 27.0]},
        128,
        8,
        "longrope",
        {},
    ),
    "longrope_amplitude": (
        "LongRoPE",
        {**LONG, "attention_factor": 1.2},
        256,
        64,
        "longrope",
        {"attention_factor": 1.2},
    ),
}


def theirs_of(case):
    """Their configuration, and the function that gives angles and amplitude for a length."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, keys, length, head_dim, kind, extra = SCALED[case]
    keys = {**PLAIN, **keys}
    width = head_dim if keys["rotary_fraction"] is None else int(head_dim * keys["rotary_fraction"])
    same = {k: keys[k] for k in ("factor", "rope_theta", "beta_fast", "beta_slow", "low_freq_factor") if k in keys}
    same |= {k: keys[k] for k in ("high_freq_factor",) if k in keys}
    for name in ("short_factor", "long_factor"):
        if name in keys:
            same[name] = keys[name] if isinstance(keys[name], list) else [keys[name]] * (width // 2)
    original = keys.get("original_length", length)
    parameters = {"rope_type": kind, "original_max_position_embeddings": original, **same, **extra}
    if keys["rotary_fraction"] is not None:
        parameters["partial_rotary_factor"] = keys["rotary_fraction"]
    longest = original if kind == "dynamic" else length
    config = hf_config("Llama", head_dim=head_dim, max_position_embeddings=longest, rope_parameters=parameters)
    return lambda n: ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=n)


def ours_of(case):
    name, keys, length, head_dim, _, _ = SCALED[case]
    return getattr(posemb, name)(SHAPE._replace(head_dim=head_dim, context_length=length), **{**PLAIN, **keys})


@pytest.mark.parametrize("case", SCALED)
def test_angles_and_amplitude_equal_transformers(case):
    """At the training length, below it, below the original length, and beyond the training length."""
    ours, theirs, length = ours_of(case), theirs_of(case), SCALED[case][2]
    plain = ours.plain_frequencies()
    for n in (length, length // 2, 20, 2 * length):
        frequencies, amplitude = theirs(n)
        close(ours.spectrum(n).frequencies, frequencies)
        assert ours.spectrum(n).amplitude == pytest.approx(amplitude)
        close(torch.stack(ours.tables(n, torch.device("cpu"))), torch.stack(ours._tables(n)))
    changed = (ours.spectrum(length).frequencies - plain).abs() > 1e-3 * plain
    assert changed.any(), "the case does not reach the scaling"
    if SCALED[case][4] in ("yarn", "llama3"):
        assert not changed.all(), "the case does not reach the part that is kept"


@pytest.mark.parametrize("case", ["dynamic", "yarn", "llama3", "longrope", "linear_partial"])
@pytest.mark.parametrize("length", [20, 100])
def test_turned_heads_equal_transformers(case, length):
    ours, (frequencies, amplitude) = ours_of(case), theirs_of(case)(length)
    head_dim, width = SCALED[case][3], 2 * len(frequencies)
    q, k = torch.randn(2, 4, length, head_dim), torch.randn(2, 2, length, head_dim)
    angle = torch.arange(float(length))[:, None] * frequencies
    cos, sin = (f(torch.cat((angle, angle), -1))[None] * amplitude for f in (torch.cos, torch.sin))
    turned = hf("llama", "apply_rotary_pos_emb")(q[..., :width], k[..., :width], cos, sin)
    for actual, x, part in zip(ours.rotate(q, k), (q, k), turned, strict=True):
        close(actual, torch.cat((part, x[..., width:]), -1), 1e-4)


def test_pairs_are_a_rotation_of_neighbours_in_the_complex_plane():
    """``(x_2i + i x_2i+1) exp(i t w_i)``, the form of the paper (arXiv 2104.09864, section 3.2)."""
    x = torch.randn(2, 3, LENGTH, HEAD_DIM, dtype=torch.float64)
    turn = torch.exp(1j * torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    wanted = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
    close(RoPE(SHAPE, **{**PLAIN, "layout": "pairs"}).rotate(x, x)[0], wanted)


@pytest.mark.parametrize(("head_dim", "fraction"), [(16, None), (16, 0.25), (16, 0.5), (64, 0.25), (256, 0.25)])
def test_partial_pairs_equal_gptj(head_dim, fraction):
    width = head_dim if fraction is None else int(head_dim * fraction)
    q = torch.randn(2, LENGTH, N_HEADS, head_dim)  # theirs has heads after positions
    table = hf("gptj", "create_sinusoidal_positions")(LENGTH, width)[None].expand(2, -1, -1)
    sin, cos = table.split(width // 2, -1)
    part = hf("gptj", "apply_rotary_pos_emb")(q[..., :width], sin, cos)
    rope = RoPE(SHAPE._replace(head_dim=head_dim), rope_theta=10000.0, rotary_fraction=fraction, layout="pairs")
    heads = q.transpose(1, 2)
    close(rope.rotate(heads, heads)[0], torch.cat((part, q[..., width:]), -1).transpose(1, 2))


@pytest.mark.parametrize("fraction", [None, 0.5])
@pytest.mark.parametrize("words", [("attention=gqa",), ("attention=mha", "model.bias=true"), ("posemb=rope_yarn",)])
def test_layouts_are_one_model_up_to_the_order_of_rows(words, fraction):
    """A model of pairs, its q and k rows reordered, is the model of halves: same logits, and back to the bit."""
    words = (*words, "model.head_dim=16", *([f"posemb.rotary_fraction={fraction}"] if fraction else []))
    pairs, halves = config(*words, "posemb.layout=pairs"), config(*words)
    model, other = randomise(build_model(pairs)), build_model(halves).eval()
    tokens = tokens_for(pairs)[:, :-1]
    other.load_state_dict(model.state_dict())
    assert (other(tokens) - model(tokens)).abs().max() > 1e-2
    width = int(16 * (fraction or 1))
    moved = {
        name: pairs_to_halves(value, head_dim=16, width=width)
        if name.split(".")[-2] in ("q_proj", "k_proj") or name.endswith(("q_proj.bias.weight", "k_proj.bias.weight"))
        else value
        for name, value in model.state_dict().items()
    }
    other.load_state_dict(moved)
    close(other(tokens), model(tokens))
    for rows in (torch.randn(48, 5), torch.randn(48)):
        there = pairs_to_halves(rows, head_dim=16, width=width)
        assert not torch.equal(there, rows)
        assert torch.equal(halves_to_pairs(there, head_dim=16, width=width), rows)


def test_angles_of_llama_3_1_by_hand():
    """Three pairs of head_dim 128 at base 500,000: one kept, one between, one divided by 8."""
    ours = ours_of("llama3_1").spectrum(9000).frequencies
    for i, share in ((0, 1.0), (63, 0.0)):
        plain = 500000.0 ** (-2 * i / 128)
        assert ours[i] == pytest.approx(plain * share + plain / 8 * (1 - share))
    between = [i for i in range(64) if 2048 < 2 * math.pi * 500000.0 ** (2 * i / 128) < 8192]
    assert between
    for i in between:
        plain = 500000.0 ** (-2 * i / 128)
        share = (8192 * plain / (2 * math.pi) - 1) / 3
        assert ours[i] == pytest.approx(plain * share + plain / 8 * (1 - share))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("posemb=rope_dynamic", "posemb.original_length=128"), "plain RoPE"),
        (("posemb=rope_linear", "posemb.factor=1.0"), "plain RoPE"),
        (("posemb.rotary_fraction=0.4", "model.head_dim=8"), "are 3"),
        (("posemb.rotary_fraction=1.0",), "less than 1"),
        (("posemb.layout=halves",), "pairs"),
        (("posemb=rope_yarn", "posemb.beta_slow=64.0"), "at least posemb.beta_slow"),
        (("posemb=rope_llama3", "posemb.low_freq_factor=4.0"), "larger than posemb.low_freq_factor"),
        (("posemb=rope_longrope", "posemb.long_factor=[1.0,2.0]"), "16 pairs"),
        (("posemb=rope_dynamic", "model.head_dim=2"), "at least 4"),
    ],
    ids=lambda item: item[0] if isinstance(item, tuple) else "",
)
def test_numbers_that_do_not_fit_are_refused_in_words(words, message):
    with pytest.raises(ConfigError, match=message):
        compose(words)
