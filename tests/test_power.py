"""lmablate power: how many seeds, what given seeds find, and errors in words."""

import re

import fake_results
import numpy as np
import pytest

from lmablate import power
from lmablate.results import load_runs
from lmablate.stats import comparisons


def told(capsys, *words):
    assert power.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_how_many_seeds_a_difference_takes(capsys):
    said = told(capsys, "--effect", 0.02, "--sd", 0.01, "--claims", 40)
    assert "to find a difference of 0.02 (2.00 sd) with 90% power:" in said
    assert "  5 paired seeds at alpha 0.05" in said
    assert "  11 paired seeds as the first of 40 claims (Holm)" in said
    assert re.search(r"\n +8 +0\.01342 +0\.02552", said), "1.34 and 2.55 sd of the table"


def test_how_many_seeds_show_that_there_is_none(capsys):
    said = told(capsys, "--margin", 0.015, "--sd", 0.01)
    assert "differ by less than 0.015 (1.50 sd) with 90% power:\n  7 paired seeds at alpha 0.05" in said


def test_single_runs_and_their_correlation_give_the_spread_of_a_pair(capsys):
    said = told(capsys, "--effect", 0.01, "--run-sd", 0.01, "--correlation", 0.875)
    assert "standard deviation of a paired difference: 0.005" in said
    assert "  5 paired seeds at alpha 0.05" in said
    assert "more than 1000 paired seeds" in told(capsys, "--effect", 1e-6, "--run-sd", 0.01, "--correlation", 0)


def test_the_spread_is_measured_in_finished_runs(tmp_path, capsys):
    fake_results.write_fake_results(tmp_path, {"norm": ("rms", "layer")}, seeds=tuple(range(6)))
    (row,) = comparisons(load_runs(tmp_path))
    said = told(capsys, tmp_path, "--effect", 0.01)
    sd = np.std(row["differences"], ddof=1)
    assert f"standard deviation of a paired difference: {sd:.4g}, from 1 comparisons of up to 6 pairs" in said
    assert f"correlation of two arms over seeds: {row['correlation']:.2f} on average" in said
    low, high = (float(x) for x in re.search(r"would give ([\d.]+) to ([\d.]+) \(95 %\)", said).groups())
    assert (low / sd, high / sd) == pytest.approx((0.624, 2.453), rel=0.05)  # chi-squared, 5 degrees of freedom


def test_of_a_study_the_evaluated_arms_give_the_spread_and_tuning_does_not(tmp_path, capsys):
    arms = {"rope": {"posemb": "rope"}, "none": {"posemb": "none"}}
    fake_results.write_fake_study(tmp_path, "sanity", arms, effects={"none": 0.1})
    assert "from 1 comparisons of up to 6 pairs" in told(capsys, tmp_path, "--effect", 0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--effect", "0.1"], "give one spread: --sd, --run-sd with --correlation, or RESULTS_DIR; got none of them"),
        (["--effect", "0.1", "--sd", "1", "--run-sd", "1"], "got --sd and --run-sd"),
        (["--effect", "0.1", "--run-sd", "1"], "--run-sd needs --correlation"),
        (["--effect", "0.1", "--run-sd", "1", "--correlation", "1"], "from -1 to below 1"),
        (["--effect", "0.1", "--sd", "0"], "--sd 0.0: must be above 0"),
        (["--effect", "0.1", "--sd", "-1"], "must be above 0"),
        (["--effect", "0.1", "--sd", "nan"], "must be above 0"),
        (["--effect", "0", "--sd", "1"], "--effect 0.0: must be a number other than 0"),
        (["--margin", "-1", "--sd", "1"], "--margin -1.0: must be a number above 0"),
        (["--effect", "1", "--sd", "1", "--alpha", "1"], "--alpha 1.0: must be between 0 and 1"),
        (["--effect", "1", "--sd", "1", "--power", "0"], "--power 0.0: must be between 0 and 1"),
        (["--effect", "1", "--sd", "1", "--claims", "0"], "--claims 0: must be 1 or more"),
        (["--simulate", "x", "--sets", "3"], "--sets 3: a rate needs at least 10 made-up studies"),
        (["nowhere", "--effect", "1"], "nowhere"),
    ],
)
def test_what_cannot_be_answered_is_said_in_words(capsys, words, expected):
    assert power.main(words) == 2
    said = capsys.readouterr()
    assert expected in said.err and said.out == ""


def test_runs_without_a_spread_are_said_so(tmp_path, capsys):
    fake_results.write_fake_results(tmp_path, {"norm": ("rms", "layer")}, seeds=(0,))
    assert power.main([str(tmp_path), "--effect", "0.1"]) == 2
    assert "share two seeds, so there is no spread to measure: give --sd" in capsys.readouterr().err


def test_a_simulation_is_written_as_a_table_and_a_figure(tmp_path, capsys, monkeypatch):
    from lmablate.claims import simulation

    def few(sets):
        return {"power": lambda: simulation.powers(sets, {2.0: 5}), "looks": lambda: simulation.looks(sets)}

    monkeypatch.setattr(power, "parts", few)
    said = told(capsys, "--simulate", tmp_path / "out", "--sets", 10)
    assert "A/B: the difference is found, 2 sd, 5 pairs" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rates.csv", "simulation.png", "simulation.svg"}
    assert (tmp_path / "out" / "rates.csv").read_text().startswith("what,setting,hits,n,rate,low,high,expected\n")


def test_every_part_of_the_simulation_has_rates():
    assert list(power.parts(10)) == [
        "false positives", "power", "equivalence", "pooled variance", "families", "looks", "judged looks", "divergence",
        "ladders", "laws",
    ]  # fmt: skip
