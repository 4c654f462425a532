"""Two runs token by token: the means against the runs' own losses, the interval against statsmodels, the page as a page."""

import csv
import html
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
import torch.nn.functional as F
from corpus import QUICK, write_corpus

from lmablate.compare import __main__ as command
from lmablate.compare.difference import (
    by_bin,
    clustered_mean,
    clusters,
    documents,
    doubling_bins,
    positions,
)
from lmablate.compare.examples import strongest, visible
from lmablate.config import compose
from lmablate.runs.load import load_run
from lmablate.runs.prepared import prepare_run
from lmablate.runs.run import execute

pytestmark = pytest.mark.filterwarnings("ignore")
EOT = 9


def train(folder, *words):
    cfg = compose(
        [*QUICK, f"data.paths='{folder}/text/*.txt'", f"results_dir={folder}/results", "trainer.precision=fp32",
         "trainer.steps=6", *words]
    )  # fmt: skip
    row = execute(prepare_run(cfg))
    return folder / "results" / row["run_id"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The default, without positions at half the context, and one with subwords."""
    folder = tmp_path_factory.mktemp("compare")
    write_corpus(folder / "text")
    return (
        train(folder),
        train(folder, "posemb=none", "model.context_length=16"),
        train(folder, "tokenizer=bpe", "tokenizer.vocab_size=300"),
    )


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert command.main([str(runs[0]), str(runs[1]), "--out", str(out), "--examples", "3", "--device", "cpu"]) == 0
    return out


def test_an_interval_is_statsmodels_clustered_one():
    """Least squares on a constant, with the same correction for few clusters."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 12, 500)
    values = rng.normal(size=500) + rng.normal(size=12)[cluster] + 0.3
    fit = sm.OLS(values, np.ones(500)).fit(cov_type="cluster", cov_kwds={"groups": cluster}, use_t=True)
    found = clustered_mean(values, cluster)
    assert found.mean == pytest.approx(fit.params[0], rel=1e-12)
    assert found.se == pytest.approx(fit.bse[0], rel=1e-10)
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert found.se > 2 * found.naive_se  # tokens of a cluster agree


def test_clusters_of_one_token_give_the_ordinary_standard_error():
    values = np.random.default_rng(1).normal(size=50)
    found = clustered_mean(values, np.arange(50))
    assert found.se == pytest.approx(found.naive_se, rel=1e-12)
    assert clustered_mean(values, np.zeros(50)).low is None  # one cluster has no spread


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Texts of 40 tokens that share half their variance: 95 % here, where independent tokens would give far fewer."""
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(30), 40)
    held = naive = 0
    for _ in range(400):
        found = clustered_mean(rng.normal(size=1200) + rng.normal(size=30)[cluster], cluster)
        held += found.low <= 0 <= found.high
        naive += abs(found.mean) <= 1.96 * found.naive_se
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.6


def test_documents_end_with_their_end_token():
    tokens = np.array([1, 2, EOT, 3, EOT, 4, 5])
    assert documents(tokens, EOT).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert positions(documents(tokens, EOT)).tolist() == [0, 1, 2, 0, 1, 0, 1]


def test_clusters_are_documents_where_there_are_enough_and_blocks_within_them_where_not():
    many = np.tile([1, 2, 3, EOT], 40)
    cluster, what = clusters(many, EOT, window=8)
    assert len(np.unique(cluster)) == 40 and what == "40 documents"
    few = np.concatenate([np.ones(1000, int), [EOT], np.ones(3000, int), [EOT]])
    cluster, what = clusters(few, EOT, window=8)
    sizes = np.unique(cluster, return_counts=True)[1]
    assert 100 <= len(sizes) <= 104 and sizes.max() == 40 and "2 documents" in what
    assert not set(cluster[:1001]) & set(cluster[1001:])  # no block lies across a document's end


def test_bins_double_and_differences_add_up():
    bins, names = doubling_bins(np.array([0, 1, 2, 3, 4, 7, 8]))
    assert [names[i] for i in bins] == ["0", "1", "2-3", "2-3", "4-7", "4-7", "8-15"]
    rng = np.random.default_rng(3)
    a, b, values = rng.random(300), rng.random(300), rng.integers(0, 50, 300)
    rows = by_bin(a, b, values, np.arange(300) // 10)
    assert sum(row["tokens"] for row in rows) == 300
    assert sum(row["tokens"] * row["difference"] for row in rows) == pytest.approx((b - a).sum())
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_examples_are_the_largest_and_stand_apart():
    difference = np.array([0.0, 5, 4, 0, 0, 3, -9, 0, 0, 2])
    assert strongest(difference, 3, apart=3) == [1, 5, 9]
    assert strongest(-difference, 5, apart=3) == [6]  # nothing that favours the other run


def test_white_space_is_shown():
    assert visible("word") == "word" and visible(" the") == "␣the" and visible("\n\n") == "⏎⏎" and visible("") == "∅"


def test_the_means_are_each_runs_own_loss(runs, compared):
    """Of B, whose windows are its training length, val_loss itself; of A, its model run over those windows by hand."""
    summary = json.loads((compared / "summary.json").read_text())
    row = json.loads((runs[1] / "result.json").read_text())
    assert summary["window"] == 16
    assert summary["nats_b"] == pytest.approx(row["val_loss"], abs=2e-6)
    model, _, data = load_run(runs[0])
    x, y = (torch.from_numpy(half) for half in data.val_windows(16))
    with torch.no_grad():
        by_hand = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100).item()
    assert summary["nats_a"] == pytest.approx(by_hand, abs=2e-6)
    assert summary["difference_mean"] == pytest.approx(summary["nats_b"] - summary["nats_a"], abs=1e-6)
    assert summary["difference_low"] < summary["difference_mean"] < summary["difference_high"]
    assert summary["difference_tokens"] == len(data.val)


def test_every_grouping_holds_every_token(compared):
    rows = list(csv.DictReader((compared / "groups.csv").open()))
    summary = json.loads((compared / "summary.json").read_text())
    for by in ("frequency", "document", "window"):
        own = [row for row in rows if row["by"] == by]
        assert sum(int(row["tokens"]) for row in own) == summary["difference_tokens"]
        whole = sum(int(row["tokens"]) * float(row["difference"]) for row in own) / summary["difference_tokens"]
        assert whole == pytest.approx(summary["difference_mean"], rel=1e-4)


def test_examples_are_the_tokens_of_the_text(runs, compared):
    _, _, data = load_run(runs[0])
    rows = list(csv.DictReader((compared / "examples.csv").open(newline="")))
    assert {row["better"] for row in rows} == {"A", "B"} and len(rows) == 6
    for row in rows:
        at = int(row["at"])
        assert row["token"] == data.decode(data.val[at : at + 1])
        assert data.decode(data.val[at - 4 : at]).endswith(row["before"][-3:])
        assert (float(row["difference"]) > 0) == (row["better"] == "A")


def test_text_is_escaped_on_the_page(runs, tmp_path):
    """A text that is markup stays text."""
    hostile = "<script>alert(1)</script> & so on, <b>bold</b>. " * 12
    (tmp_path / "text.txt").write_text(hostile)
    words = [str(runs[0]), str(runs[1]), "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert command.main([*words, "--device", "cpu"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page.lower()
    cells = re.findall(r'<td class="example">(.*?)</td>', page, re.DOTALL)
    assert len(cells) > 4 and any("&lt;" in cell for cell in cells)
    for cell in cells:
        bare = re.sub(r'</?mark>|<span class="faint">|</span>', "", cell)
        assert "<" not in bare
        shown = html.unescape(bare)
        assert shown.replace("␣", " ").replace("<|endoftext|>", "") in hostile
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["difference_tokens"] == len(hostile) + 1


def test_a_run_against_itself_differs_nowhere(runs, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib's, of axes without an extent
        assert command.main([str(runs[0]), str(runs[0]), "--out", str(tmp_path), "--device", "cpu"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["difference_mean"] == summary["difference_se"] == 0
    assert "do not tell them apart" in capsys.readouterr().out


def test_names_of_bins_do_not_meet():
    from lmablate.analysis.token_differences import figure

    bins = doubling_bins(np.array([1 << 17]))[1]
    row = {"tokens": 1000, "difference": 0.1, "low": 0.0, "high": 0.2}
    drawn = figure(pd.DataFrame([{"by": "frequency", "bin": name, **row} for name in bins]), ("a", "b"))
    drawn.draw_without_rendering()
    ends = [label.get_transform().transform(label.get_position())[0] for label in drawn.axes[0].get_xticklabels()]
    labels = drawn.axes[0].get_xticklabels()
    assert all(
        label.get_rotation() == 25 and label.get_ha() == "right" for label in labels
    )  # each ends at its own tick
    assert np.diff(ends).min() > 1.5 * labels[0].get_fontsize()  # farther apart than a slanted line is high


def refusal(capsys, *words):
    assert command.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_compared_is_refused_in_words(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    told = refusal(capsys, runs[0], runs[2], *out)
    assert "different tokenizers" in told and "lmablate evaluate" in told
    assert "no run is there" in refusal(capsys, runs[0], tmp_path, *out)
    assert "--examples -1" in refusal(capsys, runs[0], runs[1], "--examples", "-1", *out)
    assert "--data" in refusal(capsys, runs[0], runs[1], "--data", tmp_path / "nothing.txt", *out)
