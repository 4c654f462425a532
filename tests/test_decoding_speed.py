"""What a step of generation costs, against torch's own count, and the command that times it."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import config, every_option
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate.analysis.decode import figure
from lmablate.budget import kv_bytes
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.decoding.roofline import StepCost, prefill_cost, step_cost, weight_bytes
from lmablate.inspect import __main__ as door
from lmablate.inspect import decoding
from lmablate.model import build_model

ATTENTION = sorted(option for axis, option in every_option() if axis == "attention")


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", [*ATTENTION, "txl"])
def test_flops_of_a_step_are_those_that_torch_counts(attention):
    cfg = variant(posemb="transformer_xl") if attention == "txl" else variant(attention=attention)
    decoder = Decoder(build_model(cfg).eval(), 3, 20)
    tokens = torch.randint(0, 64, (3, 20))
    for n in (18, 1):
        decoder.feed(tokens[:, :n])  # what is made once is made
    assert counted(lambda: decoder.next_logits(tokens[:, :1])) == step_cost(cfg, 20, 3, 4).flops


def test_flops_of_reading_are_those_that_torch_counts_but_for_keys_ahead():
    """torch counts each query with every key and the fused kernel of a CPU not at all, so attention is added by hand."""
    cfg = config("attention=mha", "stability=soft_cap")
    length = cfg.model.context_length
    found = counted(lambda: Decoder(build_model(cfg).eval(), 2, length).next_logits(torch.zeros(2, length).long()))
    pairs = 2 * 2 * cfg.model.n_layers * 2 * cfg.model.d_model
    assert prefill_cost(cfg, length, 2, 4).flops == found - pairs * (length**2 - length * (length + 1) // 2)


def test_bytes_of_a_step_are_the_weights_once_and_each_cache():
    for words in (("attention=gqa",), ("attention=mla", "model.tie_embeddings=true"), ("posemb=learned",)):
        cfg = config(*words, "model.bias=true")
        model = build_model(cfg)
        tables = sum(p.numel() for p in model.posemb.parameters()) if model.posemb.is_token_table else 0
        looked_up = tables + (0 if cfg.model.tie_embeddings else model.embedding.weight.numel())
        read = sum(p.numel() for p in model.parameters()) - looked_up
        assert weight_bytes(cfg, 2) == 2 * read
        assert step_cost(cfg, 20, 5, 2).n_bytes == 2 * read + 5 * kv_bytes(cfg, 20, 2)


def test_the_roofline_is_the_longer_of_both():
    assert StepCost(1000, 10).seconds(bandwidth=100.0, peak=100.0) == 10.0
    assert StepCost(10, 1000).seconds(bandwidth=100.0, peak=50.0) == 20.0


def test_heads_that_share_raise_the_intensity():
    """Of the part that grows with the text: FLOPs a byte go with the query heads that share what is kept (Shazeer 2019)."""
    found = {}
    for attention in ("mha", "gqa", "mqa"):
        cfg = variant(attention=attention)
        short, long = step_cost(cfg, 100, 1, 2), step_cost(cfg, 200, 1, 2)
        found[attention] = (long.flops - short.flops) / (long.n_bytes - short.n_bytes)
    assert found == {"mha": 1.0, "gqa": 2.0, "mqa": 4.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("decode")
    words = ["model.d_model=32", "model.n_layers=1", "data=synthetic", "tokenizer=bytes", "runtime.device=cpu"]
    probes = decoding.machine_probes
    decoding.machine_probes = small_probes
    try:
        code = door.main(
            ["decode", *words, "--arm", "attention=mha", "--arm", "attention=mla attention.kv_rank=8",
             "--lengths", "16,40", "--batch", "1,3", "--rounds", "3", "--out", str(out)]
        )  # fmt: skip
    finally:
        decoding.machine_probes = probes
    assert code == 0
    return out


def small_probes(device):
    x = torch.ones(64, 64)
    return {"bytes": (4.0 * 64**2, x.sum), "flops": (2.0 * 64**3, lambda: x @ x)}


def test_the_command_writes_a_table_and_a_figure(written):
    table = pd.read_csv(written / "decode.csv")
    assert list(table["arm"].unique()) == ["mha", "mla kv_rank=8"]
    assert sorted(zip(table["batch"], table["length"], strict=True)) == sorted([(1, 16), (1, 40), (3, 16), (3, 40)] * 2)
    numbers = table.drop(columns="arm").to_numpy()
    assert np.isfinite(numbers).all() and (numbers > 0).all()
    assert (table["low_ms"] <= table["step_ms"]).all() and (table["step_ms"] <= table["high_ms"]).all()
    np.testing.assert_allclose(table["tokens_per_second"], 1e3 * table["batch"] / table["step_ms"], rtol=1e-4)
    slower = np.maximum(table["bytes"] / table["bandwidth"], table["flops"] / table["peak"])
    np.testing.assert_allclose(table["predicted_ms"], 1e3 * slower, rtol=1e-4)
    width = {"mha": 2 * 32, "mla kv_rank=8": 8 + 16}
    for row in table.itertuples():
        assert row.cache_bytes == 4 * width[row.arm] * row.length * row.batch
    assert (written / "decode.png").stat().st_size > 10_000
    assert (written / "decode.svg").is_file()


def test_the_figure_shows_measured_and_predicted_ratios(written):
    table = pd.read_csv(written / "decode.csv")
    drawn = figure(table)
    axes = {axis.get_title(loc="left"): axis for axis in drawn.axes}
    assert set(axes) >= {"One token of each of 1 text", "Speed over mha, 3 texts", "Cache of one text"}
    here = table[table["batch"] == 3].pivot(index="length", columns="arm")
    lines = [line.get_ydata() for line in axes["Speed over mha, 3 texts"].lines]
    for kind in ("predicted_ms", "step_ms"):
        wanted = here[kind, "mha"] / here[kind, "mla kv_rank=8"]
        assert any(np.allclose(line, wanted) for line in lines), kind
    figure(table[table["batch"] == 1].assign(prefill_ms=np.nan, prefill_tokens_per_second=np.nan))
    assert not plt.get_fignums()


def test_numbers_in_words():
    assert decoding.numbers("--batch", "1, 8", 1) == [1, 8]
    for key, words, least in (("--lengths", "1,5", 2), ("--batch", "x", 1), ("--rounds", "", 3)):
        with pytest.raises(ConfigError, match=f"{key} {words}: give whole numbers from {least} on"):
            decoding.numbers(key, words, least)


def test_arms_are_told_apart():
    def named(*arms):
        return decoding.labels([SimpleNamespace(overrides=list(words)) for words in arms])

    assert named(("seed=1", "attention=mha"), ("seed=1", "attention=mla", "attention.kv_rank=8")) == [
        "mha",
        "mla kv_rank=8",
    ]
    assert named(("attention=mha",), ("norm=layer",)) == ["attention=mha", "norm=layer"]
    assert named(("norm=rms",)) == ["norm=rms"]
    with pytest.raises(ConfigError, match="two arms are the same"):
        named(("norm=rms",), ("norm=rms",))


def test_lengths_without_positions_and_with_positions_that_move():
    for option, told in (
        ("learned", "has positions for 24 tokens, and 50 are asked for"),
        ("rope_dynamic", "at 50 tokens x"),
    ):
        cfg = variant(posemb=option)
        decoding.check_lengths({"x": cfg}, [5, 9])
        with pytest.raises(ConfigError, match=told):
            decoding.check_lengths({"x": cfg}, [5, 50])


def test_a_refusal_at_the_door(capsys, tmp_path):
    assert door.main(["decode", "attention=mha,mqa", "--arm", "norm=rms", "--out", str(tmp_path)]) == 2
    assert "error: --arm says what the arms are, and so does a grid of words" in capsys.readouterr().err
