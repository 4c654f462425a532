"""The controls: a text without order, and what a report says of runs that must differ, must not, or can learn nothing."""

import math

import numpy as np
import pytest
from corpus import QUICK, write_corpus
from made_up import frame, rows

from lmablate.claims import judge
from lmablate.config import compose
from lmablate.report.controls import controls, lines, sentence
from lmablate.runs.prepared import prepare_run

LOSSES = [3.0, 3.02, 2.99, 3.01]


@pytest.fixture(scope="module")
def two_orders(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("controls") / "text")
    words = [*QUICK, f"data.paths={text}/*.txt"]
    return prepare_run(compose(words)), prepare_run(compose([*words, "data.shuffle_tokens=true"]))


def test_a_shuffled_text_has_the_same_tokens_and_no_order(two_orders):
    plain, shuffled = (run.data for run in two_orders)
    assert sorted(plain.val) == sorted(shuffled.val) and list(plain.val) != list(shuffled.val)
    batches = [data.batch(3, data_seed=1, batch_size=64, context_length=32) for data in (plain, shuffled)]
    assert batches[0].shape == batches[1].shape == (64, 33)
    shares = [np.bincount(data.train, minlength=data.vocab_size) / len(data.train) for data in (plain, shuffled)]
    drawn = np.bincount(batches[1].ravel(), minlength=shuffled.vocab_size) / batches[1].size
    assert np.abs(drawn - shares[1]).max() < 0.04
    again = shuffled.batch(3, data_seed=1, batch_size=64, context_length=32)
    other = shuffled.batch(4, data_seed=1, batch_size=64, context_length=32)
    assert (again == batches[1]).all() and (other != again).any()


def test_a_shuffled_text_is_another_text_with_a_floor(two_orders):
    plain, shuffled = two_orders
    assert plain.run_id != shuffled.run_id and plain.data.fingerprint != shuffled.data.fingerprint
    counts = np.bincount(plain.data.val)
    floor = -sum(n / counts.sum() * math.log(n / counts.sum()) for n in counts if n)
    assert shuffled.data.entropy_floor == pytest.approx(floor)
    assert shuffled.data.entropy_floor <= shuffled.data.unigram_val_loss == plain.data.unigram_val_loss
    assert plain.cfg.data.shuffle_tokens is None


def results(shuffled=5.75, elu=1.04, none=1.05, again=1.0):
    """Rows of the controls, the arms' losses as multiples of the baseline's."""
    shared = {"sweep": "controls", "tokens_per_param": 20.0}
    wobble = [1.001, 0.9995, 1.0, 0.9992]

    def arm(times, **columns):
        return rows([loss * times * w for loss, w in zip(LOSSES, wobble, strict=True)], **shared, **columns)

    return frame(
        rows(LOSSES, **shared), arm(again, optim__eps=2e-8), arm(none, posemb="none"),
        rows(LOSSES, **shared, activation="gelu"), arm(elu, activation="elu"), arm(elu, activation="selu"),
        rows(
            [shuffled] * 4, **shared, data__shuffle_tokens=True, data__entropy_floor=5.7, data__unigram_val_loss=5.74,
            data__fingerprint="other",
        ),
    )  # fmt: skip


def found(**losses):
    runs = results(**losses)
    return controls(runs, judge(runs, requested={"controls": ["AA", "R2", "BAD"]}))


def test_controls_that_come_out_say_so():
    shown = found()
    assert [row["verdict"] for row in shown] == ["came out"] * 5
    assert sentence(shown) == "5 of 5 controls came out."
    assert any("Of tokens in random order" in line and "5.7500 to 5.7500" in line for line in lines(shown))
    assert all("20 tokens per parameter" in line for line in lines(shown)[1:-1])


@pytest.mark.parametrize(
    ("change", "which"),
    [
        ({"shuffled": 5.6}, "random order"),
        ({"none": 0.95}, "positions"),
        ({"elu": 0.96}, "ELU"),
        ({"again": 1.05}, "own loss"),
    ],
)
def test_a_control_that_fails_is_named_first(change, which):
    shown = found(**change)
    assert {row["verdict"] for row in shown if which in row["control"]} == {"did not come out"}
    assert "no verdict of this size counts" in sentence(shown)


def test_a_shuffled_text_above_the_unigram_model_is_not_decided():
    assert [row["verdict"] for row in found(shuffled=6.5)][-1] == "not decided"


def test_a_report_without_controls_says_nothing_of_them():
    runs = results()
    runs["sweep"] = "posemb"
    assert controls(runs, judge(runs, requested={"posemb": ["R2"]})) == []
    assert sentence([]) == "" and lines([]) == []
