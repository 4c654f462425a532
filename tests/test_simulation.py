"""The whole pipeline on made-up studies whose truth is known, from results frames to verdicts."""

import csv

import pytest
from scipy import stats

from lmablate import power
from lmablate.claims import error_rates, simulation
from lmablate.core.paths import ROOT

SETS = 80
PUBLISHED = ROOT / "docs" / "results" / "simulation" / "rates.csv"


def agrees(rate):
    """Whether the rate may be the expected one: exact binomial test, one false alarm in a thousand."""
    return stats.binomtest(rate.hits, rate.n, rate.expected).pvalue > 0.001


def within(rate):
    """Whether the rate may be at most the expected one."""
    return stats.binomtest(rate.hits, rate.n, rate.expected, alternative="greater").pvalue > 0.001


def by_name(rates):
    return {f"{rate.what}, {rate.setting}": rate for rate in rates}


def test_a_study_has_the_effect_spread_and_correlation_that_it_was_asked_for():
    import numpy as np

    truth = simulation.Truth((0.0, 2.0), sd=0.3, correlation=0.8, diverge=(0.0, 0.0))
    frame = simulation.study(truth, 20_000, np.random.default_rng(0))
    a, b = (frame.loc[frame["norm"] == arm, "val_loss"].to_numpy() for arm in ("rms", "layer"))
    sd = 0.3 * simulation.PERCENT
    assert np.std(b - a) == pytest.approx(sd, rel=0.02) and np.mean(b - a) == pytest.approx(2 * sd, rel=0.02)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.8, abs=0.01)
    lost = simulation.study(truth._replace(diverge=(0.0, 0.3)), 5_000, np.random.default_rng(1))
    assert (lost.loc[lost["norm"] == "layer", "status"] == "diverged").mean() == pytest.approx(0.3, abs=0.02)


def test_equal_arms_are_told_apart_as_rarely_as_promised():
    rates = simulation.false_positives(SETS, seeds=(4, 8))
    assert all(agrees(rate) for rate in rates)


def test_differences_are_found_as_often_as_the_table_says():
    rates = simulation.powers(SETS, {2.0: 5, 3.0: 4})
    assert all(agrees(rate) for rate in rates)
    assert min(rate.expected for rate in rates) > 0.9


def test_equivalence_is_shown_as_often_as_the_table_says_and_not_where_it_fails():
    for rate in simulation.equivalences(SETS, {2.0: 5}):
        assert agrees(rate), rate


@pytest.mark.slow
def test_a_pipeline_that_forgets_holm_is_caught(monkeypatch):
    kept = by_name(simulation.families(30))
    null = "Holm: any of ten nulls is refuted, 10 claims, 6 pairs"
    assert within(kept[null])
    assert not within(kept["without Holm: any of ten nulls is refuted, 10 claims, 6 pairs"]._replace(expected=0.05))
    monkeypatch.setattr(error_rates, "holm", list)
    refuted = [
        any(row["verdict"] in simulation.DECIDED for row in rows) for rows in simulation._reports(20, 10, 6, 0.0, 1)
    ]
    assert not within(simulation.rate("Holm forgotten", "", refuted, 0.05))


def test_early_looks_keep_the_error_rate_and_looking_without_a_rule_does_not():
    rates = by_name(simulation.looks(400, planned=(4, 6, 8)))
    for name, rate in rates.items():
        if "false positives" in name and rate.expected is not None:
            assert within(rate), rate
    naive = rates["looking without a rule: false positives, looks after 4, 6, 8 pairs"]
    assert not within(naive._replace(expected=0.05))
    assert all(within(rate) for rate in simulation.judged_looks(12))


def test_one_noisy_arm_does_not_hide_in_a_pooled_variance():
    assert all(within(rate) for rate in simulation.pooling(40))


def test_a_diverged_run_is_neither_dropped_nor_outweighed(monkeypatch):
    both, better, alone, at_margin = simulation.divergences(50)
    assert within(both) and within(better) and within(at_margin)
    assert alone.rate > 0.7

    def dropped(row):
        return float("inf") if row["status"] == "diverged" else row["val_loss"]

    from lmablate.claims import measure

    monkeypatch.setattr(measure, "clipped", dropped)
    with pytest.raises(RuntimeError, match="dropped a pair"):
        simulation.divergences(20)


def test_the_published_rates_are_what_theory_gives():
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_ladders = [row for row in rows if row["what"].startswith(("ladder: ", "law: "))]
    assert len(rows) - len(of_ladders) >= 46 and len(of_ladders) >= 35
    for row in rows:
        assert int(row["n"]) >= (power.LADDERS if row in of_ladders else 1000), row
    for row in rows:
        rate, low, high = (float(row[key]) for key in ("rate", "low", "high"))
        assert (low, high) == pytest.approx(
            tuple(stats.binomtest(int(row["hits"]), int(row["n"])).proportion_ci(method="exact")), abs=1e-4
        )
        if not row["expected"]:
            continue
        expected = float(row["expected"])
        if row["what"].startswith("A/A: "):
            assert low <= 0.05 <= high
        elif expected == 0.05:
            assert low <= 0.05, row
        else:
            assert abs(rate - expected) < 0.05, row


@pytest.mark.slow
def test_a_thousand_sets_of_everything():
    slow = ("ladders", "laws")  # tests/test_scaling.py
    for rate in (one for name, part in power.parts(1000).items() if name not in slow for one in part()):
        if rate.expected == 0.05:
            assert within(rate), rate
        elif rate.expected is not None:
            assert abs(rate.rate - rate.expected) < 0.05 and agrees(rate), rate
