"""The figures of budgets over wide grids, held on built models: what test_budget_* sample, here in full."""

import itertools
import random

import pytest
import torch
from test_budget_matching import BUILT, SHAPES, built_flops, built_parameters
from tiny import AXES, options
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate.budget import ff_width, flops_per_token, forward_products, keys_read, kv_bytes_per_token, parameters
from lmablate.budget.flops import spans
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.model.ffn import GatedFFN, PlainFFN

pytestmark = pytest.mark.slow
SIZES = (
    {"d_model": 32, "n_heads": 4, "head_dim": 8, "d_ff": 80, "context_length": 24},
    {"d_model": 40, "n_heads": 4, "head_dim": 6, "d_ff": 52, "context_length": 31, "bias": True, "n_layers": 3},
    {"d_model": 24, "n_heads": 6, "head_dim": 10, "d_ff": 64, "context_length": 50, "tie_embeddings": True, "vocab_size": 101},
    {"d_model": 64, "n_heads": 8, "head_dim": 8, "d_ff": 168, "context_length": 17, "n_layers": 4, "bias": True, "tie_embeddings": True},
)  # fmt: skip
SHAPE_AXES = [axis for axis in AXES if axis != "aspect_ratio"]  # which sets two sizes and no part


def counted(cfg):
    """FLOPs of a forward pass over one text by torch's counter, per token, all pairs of attention counted."""
    model = build_model(cfg, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros((1, cfg.model.context_length), dtype=torch.long, device="meta"))
    return model, counter.get_total_flops() / cfg.model.context_length


def agrees(cfg):
    """Parameters and FLOPs of the closed forms are those of the built model."""
    model, found = counted(cfg)
    assert parameters(cfg)[:2] == built_parameters(cfg)
    matrices, a_key = forward_products(cfg)
    length = cfg.model.context_length
    assert found == pytest.approx(
        2 * (matrices + sum(a_key) * length), rel=1e-12
    )  # experts may meet a fraction of a token
    read = sum(n * keys_read(length, *span) for n, span in zip(a_key, spans(cfg), strict=True))
    assert flops_per_token(cfg) == round(6 * (matrices + read))
    del model


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(SHAPE_AXES, 2)), ids=str)
def test_every_pair_of_options_of_all_axes_counts_what_is_built(a, b):
    """Each pair at one of SIZES in turn; gqa and mqa keep their own number of key/value heads. Pairs that are refused (latent
    attention with a norm on its heads) are no models."""
    refused = 0
    grid = list(itertools.product(options(a), options(b)))
    for number, (x, y) in enumerate(grid):
        sizes = dict(SIZES[number % len(SIZES)])
        if not {x, y} & {"gqa", "mqa"}:
            sizes["n_kv_heads"] = sizes["n_heads"]
        try:
            agrees(variant(model=sizes, **{a: x, b: y}))
        except ConfigError:
            refused += 1
    assert refused < len(grid) / 5


@pytest.mark.parametrize("length", [1, 2, 7, 24, 65])
@pytest.mark.parametrize("window", [1, 2, 5, 24, 64, 1000])
@pytest.mark.parametrize("attention", ["sliding_window", "interleaved"])
def test_windows_at_every_length(attention, window, length):
    """By counting the pairs under the mask, one by one."""
    for kv_heads in (1, 2, 4):
        cfg = variant(attention=attention, model={"context_length": length, "n_layers": 3, "n_kv_heads": kv_heads})
        cfg = cfg.model_copy(update={"attention": {**cfg.attention, "window": window}})
        agrees(cfg)
        m = cfg.model
        windows = [span[0] for span in spans(cfg)]
        assert set(windows) <= {window, None} and window in windows
        pairs = sum(0 <= q - k < (w or length) for w in windows for q in range(length) for k in range(length))
        dense = m.n_layers * length * length
        by_hand = counted(cfg)[1] - 2 * 2 * m.n_heads * m.head_dim * (dense - pairs) / length
        assert flops_per_token(cfg) == round(3 * by_hand)
        rows = sum(min(w or length, length) for w in windows)
        assert kv_bytes_per_token(cfg) == round(2 * 2 * kv_heads * m.head_dim * rows / length)


RATIOS = [round(0.5 * 2 ** (i / 3), 4) for i in range(19)]  # 0.5 to 32


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("match", ["params", "flops", "params_non_embedding"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_every_ff_ratio_at_ten_million_parameters(ratio, match, activation):
    cost = {**BUILT, "params_non_embedding": lambda cfg: built_parameters(cfg)[1]}[match]
    words = (f"budget={match}", "budget.knob=d_ff+d_model", f"model.ff_ratio={ratio}", f"activation={activation}")
    cfg, reference = compose([*SHAPES, *words]), compose(SHAPES)
    assert 10e6 < built_parameters(reference)[1] < 11e6
    assert abs(cost(cfg) / cost(reference) - 1) <= 0.01
    matrices = 3 if activation == "swiglu" else 2
    assert matrices * cfg.model.d_ff / cfg.model.d_model / 2 == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(
    "words", [["activation=gelu"], ["attention=gqa"], ["norm_position=sandwich", "norm=layer"]], ids=" ".join
)
@pytest.mark.parametrize("match", ["params", "flops"])
@pytest.mark.parametrize("ratio", [4, 8, 16, 32, 64, 128, 256])
def test_every_aspect_ratio_at_ten_million_parameters(ratio, match, words):
    cfg, reference = compose([*SHAPES, *words, f"aspect_ratio=r{ratio}", f"budget={match}"]), compose(SHAPES)
    assert abs(BUILT[match](cfg) / BUILT[match](reference) - 1) <= 0.01
    assert 2**-0.5 <= cfg.model.d_model / cfg.model.n_layers / ratio <= 2**0.5


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_gated_and_plain_networks_as_they_are_built(bias):
    """At every even width from 64 to 1024 and the default ratio: less than 1 % of the network's parameters apart."""
    worst = 0.0
    for d_model in range(64, 1025, 2):
        size = {}
        for made in (PlainFFN, GatedFFN):
            d_ff = ff_width(d_model, ff_ratio=4.0, gated=made is GatedFFN, bias=bias, gated_scale=None)
            with torch.device("meta"):
                network = made(d_model, d_ff, fn=torch.nn.functional.silu, bias=bias, dropout=0.0)
            size[made] = sum(p.numel() for p in network.parameters())
        worst = max(worst, abs(size[GatedFFN] / size[PlainFFN] - 1))
    assert worst < 0.01


def test_elsewhere_a_budget_is_met_or_its_nearest_two_are_shown():
    """Random sizes and options: within 1 % on the built model, or an error that names the nearest and what they cost."""
    rng, met, missed = random.Random(0), 0, []
    for _ in range(150):
        match = rng.choice(["params", "flops"])
        words = [
            f"model.n_layers={rng.choice([2, 3, 5])}",
            f"model.d_model={rng.choice([32, 48, 96, 160])}",
            "model.n_heads=4",
        ]
        changed = [
            f"{axis}={rng.choice(options(axis))}"
            for axis in rng.sample(("activation", "attention", "posemb", "norm"), 2)
        ]
        knob = rng.choice(["d_ff", "d_model", "n_layers", "d_ff+d_model"])
        base = compose([*words, "trainer.precision=fp32"])
        try:
            cfg = compose([*words, *changed, "trainer.precision=fp32", f"budget={match}", f"budget.knob={knob}"])
        except ConfigError as error:
            missed.append(str(error))
            continue
        cost = {"params": lambda c: built_parameters(c)[0], "flops": built_flops}[match]
        assert abs(cost(cfg) / cost(base) - 1) <= 0.01, cfg.solved
        met += 1
    assert met > 75 and missed
    assert [words for words in missed if "nearest" not in words or "%" not in words] == []
