"""The quality benchmark: its sides are alike in all but what they compare. nanoGPT itself is not run here."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from lmablate.check.small import VOCAB, SmallText
from lmablate.core.paths import ROOT

sys.path.insert(0, str(ROOT))
pytest.importorskip("transformers")

from benchmarks import bars, quality, report
from benchmarks.quality_sides import SHAPE, SIDES, Foreign, Llama, NanoGPT, Ours, OursAsGPT2, loss_of, write_bins
from lmablate.interop import from_hf, to_hf

STEPS = 3
SMALL = replace(SHAPE, d_model=16, n_layers=2, n_heads=2, context=16, batch=4)


@pytest.fixture(scope="module")
def text():
    data = SmallText()
    data.vocab_size = VOCAB
    return data


def test_two_sides_have_equal_parameters(text):
    sides = {name: SIDES[name](SHAPE, STEPS, text) for name in ("ours", "llama")}
    quality.check_counts(sides)
    whole = [side(SHAPE, 1900, text).config().runtime.compile for side in (Ours, Llama)]
    assert whole == [True, False], "our compiled graphs are of our own blocks"
    shape = sides["ours"].shape
    of_nanogpt = 12 * shape.n_layers * shape.d_model**2 + (2 * shape.n_layers + 1) * shape.d_model
    of_nanogpt += (shape.vocab + shape.context) * shape.d_model
    assert OursAsGPT2(SHAPE, STEPS, text).n_params() == of_nanogpt
    sides["llama"].n_params = lambda: 2 * sides["ours"].n_params()
    with pytest.raises(AssertionError, match="and llama"):
        quality.check_counts(sides)


@pytest.mark.slow
def test_equal_weights_have_equal_losses_before_and_after_training(text):
    """What differs between two sides is the model alone: not the recipe, the batches or the evaluation."""
    theirs, ours = Llama(SMALL, STEPS, text), Ours(SMALL, STEPS, text)
    ours.words = ("trainer.precision=fp32",)
    start = theirs.model(1)
    ours.model = lambda seed: from_hf(theirs.model(seed).model)
    assert loss_of(start, theirs) == pytest.approx(loss_of(ours.model(1), ours), abs=1e-6)
    ends = [loss_of(side.train(2e-2, 1), side) for side in (theirs, ours)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)
    assert ends[0] < loss_of(start, theirs) - 0.1


@pytest.mark.slow
def test_our_evaluation_is_in_fp32_whatever_a_model_trained_in(text):
    side = Ours(SMALL, STEPS, text)
    side.words = ("trainer.precision=bf16",)
    model = side.train(2e-2, 1)
    hf = to_hf(model)
    assert loss_of(model, side) == pytest.approx(
        loss_of(Foreign(hf, lambda tokens: hf(input_ids=tokens).logits, hf.get_input_embeddings()), side), abs=1e-5
    )


def test_nanogpt_reads_our_text_and_trains_as_long(text, tmp_path):
    text.val = text.tokens[:33]
    write_bins(text, tmp_path)
    assert np.array_equal(np.fromfile(tmp_path / "train.bin", np.uint16), text.train)
    assert np.array_equal(np.fromfile(tmp_path / "val.bin", np.uint16), text.val)
    side = NanoGPT(SHAPE, 1900, text)
    assert {"--max_iters=1900", "--eval_interval=1900", "--lr_decay_iters=1900"} <= set(side.arguments(1e-3))
    settings = [side.settings(1e-3, 0), side.settings(1e-3, 1), side.settings(2e-3, 0)]
    assert settings[0] == side.settings(1e-3, 0) and settings[0] not in settings[1:]


class Made:
    """A side that ends at a made-up loss, lowest at a rate of 6e-3, and counts its runs."""

    steps, trained, rates = 10, 0, (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)

    def __init__(self, title, level):
        self.title, self.level = title, level

    def settings(self, lr, seed):
        return {"lr": lr, "seed": seed}

    def n_params(self):
        return 1000

    def train(self, lr, seed):
        Made.trained += 1
        return None if lr > 0.02 else (self.level, lr, seed)


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(
        quality, "loss_of", lambda model, side: model[0] + abs(math.log(model[1] / 6e-3)) / 100 + model[2] / 1000
    )
    sides = {"ours": Made("ours", 2.8), "llama": Made("theirs", 3.0)}
    first = quality.measured(sides, quality.Runs(tmp_path, train=True), 2)
    assert set(next(first)["ours"]["search"]) == {6e-3}
    assert Made.trained == 2
    *_, nothing = quality.measured(sides, quality.Runs(tmp_path / "other", train=False), 2)
    assert nothing == {} and Made.trained == 2
    *_, found = quality.measured(sides, quality.Runs(tmp_path, train=True), 2)
    assert Made.trained == 2 * (len(Made.rates) + 2)
    assert found["ours"]["lr"] == 6e-3 and found["ours"]["search"][2.4e-2] == math.inf
    assert found["llama"]["fresh"] == pytest.approx({1: 3.001, 2: 3.002})
    *_, again = quality.measured(sides, quality.Runs(tmp_path, train=False), 2)
    assert again == found
    made = {"sides": found, "steps": 10, "tokens": 20_480, "train_tokens": 4_000_000, "vocab": 1024, "d_model": 64}
    verdicts = {bar.what: bar.verdict for bar in bars.quality_bars(made)}
    assert verdicts["(b) Loss of ours below theirs, %"] == "met"
    page = report.page({}, {}, None, None, quality=made)
    assert "| ours | 1,000 | 2.814 | 2.807 | 2.800 | 2.807 | diverged | 0.006 | 2.801 [2.801, 2.802] |" in page
    assert "| (b) Loss of ours below theirs, % | at least 2 | 6.66 [6.63, 6.70] | met |" in page
