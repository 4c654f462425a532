"""Early looks: boundaries as published, error rates as promised, and an e-value that is one."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import integrate, stats

from lmablate.stats import sequential
from lmablate.stats.estimates import t_test
from lmablate.stats.sequential import (
    anytime_interval,
    anytime_p,
    boundaries,
    decide,
    e_value,
    look_rule,
    normal_boundaries,
    repeated_p,
)

FIVE = (2, 4, 6, 8, 10)  # equally spaced looks


@pytest.mark.parametrize(
    ("kind", "published"),  # Lan and DeMets 1983 spending, five looks, two-sided 5 % (Reboussin et al. 2000)
    [
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_boundaries_of_the_normal_statistic_are_the_published_ones(kind, published):
    assert [stats.norm.isf(p / 2) for p in normal_boundaries(kind, FIVE)] == pytest.approx(published, abs=3e-4)


@pytest.mark.parametrize("kind", ["obrien_fleming", "pocock"])
def test_all_of_alpha_is_spent_at_the_end_and_never_more(kind):
    spent = [sequential.spent(kind, share, 0.05) for share in (0.2, 0.5, 0.8, 1.0)]
    assert spent == sorted(spent) and spent[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("planned", [(3, 6), (4, 6, 8), (2, 3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("kind", sequential.KINDS)
def test_studies_without_a_difference_stop_as_often_as_promised(kind, planned):
    draws = np.random.default_rng(5).standard_normal((20_000, planned[-1]))
    t = np.stack([draws[:, :n].mean(1) / draws[:, :n].std(1, ddof=1) * math.sqrt(n) for n in planned], 1)
    n = np.array(planned)
    if kind == "anytime":
        a, v = 1 + n * sequential.SPREAD, n - 1
        stop = a**-0.5 * ((1 + t**2 / v) / (1 + t**2 / (v * a))) ** (n / 2) >= 20
    else:
        stop = 2 * stats.t.sf(abs(t), n - 1) <= np.array(boundaries(kind, planned))
    stopped = stop.any(1).mean()
    if kind == "anytime":
        assert stopped < 0.05
    else:
        assert abs(stopped - 0.05) < 0.005  # 3 standard errors
    naive = (2 * stats.t.sf(abs(t), n - 1) < 0.05).any(1).mean()
    assert naive > 0.08


def test_the_e_value_is_the_ratio_of_mixed_and_central_t_densities():
    values = [0.3, 1.1, -0.2, 0.9, 0.8]
    wide = math.sqrt(sequential.SPREAD)
    n, t = 5, stats.ttest_1samp([0.3, 1.1, -0.2, 0.9, 0.8], 0).statistic
    mixed, _ = integrate.quad(
        lambda d: stats.nct.pdf(t, n - 1, d * math.sqrt(n)) * stats.norm.pdf(d, scale=wide), -8 * wide, 8 * wide
    )
    assert e_value(values) == pytest.approx(mixed / stats.t.pdf(t, n - 1), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_e_value_is_one_on_average_without_a_difference(n):
    def at(t):
        a, v = 1 + n * sequential.SPREAD, n - 1
        return a**-0.5 * ((1 + t**2 / v) / (1 + t**2 / (v * a))) ** (n / 2) * stats.t.pdf(t, v)

    assert 2 * integrate.quad(at, 0, np.inf)[0] == pytest.approx(1.0, abs=1e-6)


def test_the_anytime_interval_holds_just_the_means_that_are_not_refuted():
    values = [0.31, 0.42, 0.38, 0.55, 0.47, 0.36]
    low, high = anytime_interval(values)
    assert e_value(values, low) == pytest.approx(20) and e_value(values, high) == pytest.approx(20)
    assert anytime_interval(values[:2]) is None
    assert anytime_p(values) <= 1 / e_value(values)


def test_a_repeated_p_is_below_alpha_just_where_the_boundary_is_crossed():
    planned = (4, 6, 8)
    for kind in ("obrien_fleming", "pocock"):
        bound = boundaries(kind, planned)[1]
        assert repeated_p(kind, planned, 1, 0.9 * bound) < 0.05 < repeated_p(kind, planned, 1, 1.1 * bound)
    assert repeated_p("pocock", planned, 0, 0.9) == 1.0


def test_a_rule_stops_a_clear_arm_and_leaves_an_open_and_a_diverging_one():
    base = [4.00, 4.01, 3.99, 4.02]
    losses = {
        "rms": base, "far": [x + 0.5 + 0.001 * i for i, x in enumerate(base)], "near": [4.01, 4.0, 4.0, 4.01],
        "lost": [4.5, 4.51, None, 4.52],
    }  # fmt: skip
    look = SimpleNamespace(number=0, planned=(4, 8), baseline="rms", losses=losses)
    for kind in sequential.KINDS:
        assert list(look_rule(kind, comparisons=3)(look)) == ["far"]
    assert t_test([0.5, 0.4, 0.6, 0.7]) < 0.05 and decide("obrien_fleming", (4, 8), 0, [0.5, 0.4, 0.6, 0.7]) is None


def test_the_anytime_rule_stops_for_equality_within_a_margin():
    same = [0.001, -0.001, 0.002, 0.0, -0.002, 0.001]
    assert "lies within 0.05" in decide("anytime", (6, 12), 0, same, margin=0.05)
    assert decide("anytime", (6, 12), 0, same) is None


@pytest.mark.parametrize("planned", [(), (1, 4), (4, 4), (6, 4)])
def test_looks_that_cannot_be_are_refused(planned):
    with pytest.raises(ValueError, match="rising"):
        boundaries("pocock", planned)
