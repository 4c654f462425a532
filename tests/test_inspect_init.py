"""``lmablate.inspect init``: what it measures, what it makes of it, and the initialisation of the paper it repeats."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from corpus import write_corpus
from test_analysis import texts
from tiny import config
from variants import variant

from lmablate.analysis.gradient_norm import exponent, figure
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.inspect.__main__ import main
from lmablate.inspect.initialisation import arms, by_layer, one, summarise
from lmablate.model import build_model
from lmablate.runs.prepared import load_data, with_data
from lmablate.schema.identity import science


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("inspect") / "text", documents=6)
    sizes = ["model.d_model=32", "model.context_length=32", "trainer.batch_size=4"]
    return ["data=files", "tokenizer=bytes", f"data.paths={text}/*.txt", "data.val_bytes=400", *sizes]


@pytest.fixture(scope="module")
def written(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    code = main(["init", *words, "model.init=xavier", "--depths", "3,12", "--inits", "8", "--out", str(folder)])
    assert code == 0
    return folder


def test_pre_norms_last_gradient_falls_with_depth_and_post_norms_does_not(written):
    summary = pd.read_csv(written / "summary.csv").set_index(["arm", "quantity"])
    assert summary.loc[("pre", "exponent"), "high"].item() < 0
    assert summary.loc[("post", "exponent"), "low"].item() > -0.3
    assert {path.name for path in written.iterdir()} == {
        "layers.csv", "summary.csv", "gradient_norm.png", "gradient_norm.svg"
    }  # fmt: skip
    layers = pd.read_csv(written / "layers.csv")
    assert layers.groupby(["arm", "depth"])["layer"].agg(list).to_dict() == {
        (arm, depth): list(range(1, depth + 1)) for arm in ("pre", "post") for depth in (3, 12)
    }
    assert layers.query("arm == 'post'")["stream_rms"].tolist() == pytest.approx(
        [1.0] * 15, rel=1e-3
    )  # a norm's output


def test_what_is_printed_is_defined_where_it_is_printed(written):
    from lmablate.inspect.initialisation import DEFINITIONS

    told = " ".join(DEFINITIONS)
    assert all(f"{name}:" in told for name in pd.read_csv(written / "summary.csv")["quantity"].unique())


def test_the_numbers_of_a_layer_are_autograds(words):
    cfg = compose([*words, "trainer.precision=fp32", "model.n_layers=3", "runtime.device=cpu"])
    data = load_data(cfg)
    cfg = with_data(cfg, data)
    rows = one(cfg, data)
    model = build_model(cfg)
    batch = torch.from_numpy(data.batch(0, data_seed=0, batch_size=4, context_length=32)).long()
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, -2), batch[:, 1:].flatten())
    for row, block in zip(rows, model.blocks, strict=True):
        (wanted,) = torch.autograd.grad(loss, [block.ffn.branch.out_proj.weight], retain_graph=True)
        assert row["gradient"] == pytest.approx(float(wanted.norm()), rel=1e-4)
        assert row["ffn_gradient"] > row["gradient"]


def made_up(slope, power, draws=4):
    """Gradient norms that follow a line in the layer and a power of the depth, with noise by draw."""
    noise = np.random.default_rng(0).normal(0, 0.05, (draws, 40))
    return pd.DataFrame(
        {
            "arm": "pre",
            "depth": depth,
            "init": init,
            "layer": layer,
            **dict.fromkeys(("attn_gradient", "ffn_gradient", "attn_rms", "ffn_rms"), 1.0),
            "gradient": depth**power * math.exp(slope * (layer - depth) + noise[init, layer]),
            "stream_rms": layer**0.5,
        }
        for depth in (4, 8, 16)
        for init in range(draws)
        for layer in range(1, depth + 1)
    )


def test_slopes_and_exponents_are_scipys():
    table = made_up(0.2, -0.5)
    found = summarise(table).set_index(["quantity", "depth"])["estimate"]
    slopes = [
        scipy.stats.linregress(some["layer"], np.log(some["gradient"])).slope
        for _, some in table[table["depth"] == 8].groupby("init")
    ]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(slopes), scipy.stats.sem(slopes))
    row = summarise(table).query("quantity == 'slope' and depth == 8").iloc[0]
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((np.mean(slopes), low, high))
    assert found[("stream growth", 16)] == pytest.approx(4.0)
    last = table[table["layer"] == table["depth"]]
    powers = [scipy.stats.linregress(np.log(d["depth"]), np.log(d["gradient"])).slope for _, d in last.groupby("init")]
    assert found.xs("exponent").item() == pytest.approx(np.mean(powers))
    assert exponent(by_layer(table)) == pytest.approx(np.mean(powers))
    assert found[("last over first", 4)] == pytest.approx(math.exp(0.2 * 3), rel=0.2)


def test_the_figure_shows_every_arm_and_the_exponents():
    table = by_layer(pd.concat([made_up(0.2, 0.0), made_up(0.0, -0.5).assign(arm="post")]))
    drawn = figure(table)
    said = "\n".join(texts(drawn))
    for words in ("pre", "post", "The last layer's gradient norm", "over 4 draws", "pre in theory: −0.5"):
        assert words in said
    legend = [text.get_text() for axes in drawn.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert len(legend) == 2
    assert all("goes with depth to the" in text for text in legend)
    assert "No untrained model" in "".join(text.get_text() for text in figure(table[:0]).texts)


def test_arms_are_every_combination():
    assert list(arms([])) == ["pre", "post"]
    assert arms(["norm_position=post"]) == {"post": ["norm_position=post"]}
    found = arms(["norm=rms,layer", "model.init=null,xavier", "norm_position=pre", "data.paths='a,b'"])
    assert list(found) == ["rms, init default", "rms, init xavier", "layer, init default", "layer, init xavier"]
    assert found["rms, init xavier"] == ["norm=rms", "model.init=xavier", "norm_position=pre", "data.paths='a,b'"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depths", "6"], "--depths 6"),
        (["--depths", "6,x"], "--depths 6,x"),
        (["--inits", "1"], "at least 2 draws"),
        (["model.n_layers=3"], "--depths says that here"),
        (["seed=1"], "--inits says that here"),
        (["norm=batch"], "norm=batch: no such option"),
        (["--deep"], "--deep: no such option"),
        (["pre"], "overrides are key=value"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words, said, tmp_path, capsys):
    assert main(["init", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_xavier_draws_the_branches_by_glorots_rule_and_nothing_else():
    wide = {"d_model": 128, "d_ff": 256, "head_dim": 32}
    plain = build_model(variant(model={**wide, "depth_scaled_init": False}))
    model = build_model(variant(model={**wide, "depth_scaled_init": False, "init": "xavier"}))
    assert torch.equal(model.embedding.weight, plain.embedding.weight)
    assert torch.equal(model.head.proj.weight, plain.head.proj.weight)
    for block, before in zip(model.blocks, plain.blocks, strict=True):
        for mine, normal in zip(block.parameters(), before.parameters(), strict=True):
            if mine.ndim < 2:
                continue
            theirs = torch.nn.init.xavier_normal_(torch.empty_like(mine), generator=torch.Generator().manual_seed(0))
            assert float(mine.detach().std()) == pytest.approx(float(theirs.std()), rel=0.05)
            torch.testing.assert_close(mine / mine.std(), normal / normal.std(), rtol=1e-4, atol=1e-5)  # the same draws


def test_xavier_replaces_the_default_rule_and_is_refused_beside_another():
    cfg = config("model.init=xavier")
    assert cfg.model.depth_scaled_init is False
    with pytest.raises(ConfigError, match=r"model\.depth_scaled_init=true by another"):
        compose(["model.init=xavier", "model.depth_scaled_init=true"])
    with pytest.raises(ConfigError, match="norm_position=deepnorm by another"):
        compose(["model.init=xavier", "norm_position=deepnorm"])

    class Text:
        fingerprint = tokenizer_fingerprint = "text"

    assert "init" not in science(config(), Text)["model"]
    assert science(cfg, Text)["model"]["init"] == "xavier"
