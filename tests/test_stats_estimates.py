"""Estimates held against scipy, statsmodels, closed forms and published tables."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from lmablate.stats import curves, estimates, planning
from lmablate.stats.counts import clopper_pearson, fisher
from lmablate.stats.multiplicity import holm
from lmablate.stats.noise import seed_noise

RNG = np.random.default_rng(0)
SAMPLES = [list(RNG.normal(0.3, 1.0, n)) for n in (2, 3, 5, 8, 13)]


@pytest.mark.parametrize("values", SAMPLES, ids=len)
def test_interval_and_t_test_are_scipys(values):
    result = stats.ttest_1samp(values, 0.1)
    assert estimates.t_test(values, 0.1) == pytest.approx(result.pvalue)
    assert estimates.interval(values) == pytest.approx(tuple(result.confidence_interval(0.95)))


@pytest.mark.parametrize("values", SAMPLES, ids=len)
@pytest.mark.parametrize("margin", [0.2, 1.0, 4.0])
def test_tost_is_that_of_statsmodels(values, margin):
    p, *_ = ttost_paired(np.array(values), np.zeros(len(values)), -margin, margin)
    assert estimates.tost(values, margin) == pytest.approx(p)


@pytest.mark.parametrize("values", SAMPLES[1:], ids=len)
def test_sign_flip_is_scipys_permutation_test(values):
    exact = stats.permutation_test((np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert estimates.sign_flip(values) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize(("n", "lowest"), [(4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078125), (10, 0.001953125)])
def test_sign_flip_cannot_fall_below_two_in_two_to_the_n(n, lowest):
    assert estimates.sign_flip([1.0 + i / 10 for i in range(n)]) == lowest


def test_sign_flip_of_many_pairs_is_close_to_the_t_test():
    values = np.random.default_rng(1).normal(0.35, 1, 40)
    assert estimates.sign_flip(values) == pytest.approx(estimates.t_test(list(values)), abs=0.02)


def test_the_bootstrap_interval_holds_the_mean_and_needs_three_values():
    ((low, high),) = estimates.bootstrap_intervals([SAMPLES[4]])
    t_low, t_high = estimates.interval(SAMPLES[4])
    assert t_low < low < np.mean(SAMPLES[4]) < high < t_high
    several = [*SAMPLES, [value + 0.1 * i for i, value in enumerate(SAMPLES[3])]]  # two of one size
    assert estimates.bootstrap_intervals(several) == [estimates.bootstrap_intervals([one])[0] for one in several]
    assert estimates.bootstrap_intervals([[1.0, 2.0], [2.0, 2.0, 2.0]]) == [None, (2.0, 2.0)]


def test_pairs_that_agree_to_the_bit_give_numbers_and_no_nan():
    assert estimates.t_test([0.0] * 4) == 1.0
    assert estimates.t_test([0.1] * 4) == 0.0
    assert estimates.tost([0.0] * 4, 0.1) == 0.0
    assert estimates.tost([0.2] * 4, 0.1) == 1.0
    assert estimates.correlation([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) is None
    assert estimates.t_test([0.3]) == 1.0 and estimates.tost([0.0], 1.0) == 1.0


def test_the_pooled_spread_is_the_residual_of_a_two_way_layout():
    from statsmodels.formula.api import ols

    table = np.random.default_rng(2).normal(size=(4, 6)) + np.arange(6) + 3 * np.arange(4)[:, None]
    found = estimates.pooled(dict(enumerate(table.tolist())))
    frame = {"y": table.ravel(), "arm": np.repeat(range(4), 6), "pair": np.tile(range(6), 4)}
    model = ols("y ~ C(arm) + C(pair)", frame).fit()
    assert (found.sd**2, found.df) == pytest.approx((model.mse_resid, model.df_resid))
    rest = model.resid.to_numpy().reshape(4, 6)
    assert found.p_equal == pytest.approx(stats.levene(*rest, center="median").pvalue)


def test_unequal_spreads_are_told_from_equal_ones():
    rng = np.random.default_rng(3)
    equal = estimates.pooled({i: list(rng.normal(0, 1, 12)) for i in range(4)})
    wide = estimates.pooled({i: list(rng.normal(0, 20 if i == 3 else 1, 12)) for i in range(4)})
    assert equal.p_equal > 0.2 > 0.01 > wide.p_equal
    assert estimates.pooled({0: [1.0, 2.0, 3.0], 1: [2.0, 3.0, 5.0]}) is None


def test_a_contrast_that_is_wider_than_the_rest_is_found_by_an_f_test():
    rng = np.random.default_rng(5)
    table = rng.normal(size=(4, 6)) + 3 * rng.normal(size=6)
    table[0] *= 3
    arms, weights = dict(enumerate(table.tolist())), {0: 1.0, 1: -1 / 3, 2: -1 / 3, 3: -1 / 3}
    own, rest = table[0] - table[1:].mean(0), table[1:]
    rest = (
        rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean()
    )  # what is left are the other arms among themselves
    ratio = own.var(ddof=1) / (4 / 3) / ((rest**2).sum() / 10)
    found = estimates.pooled(arms)
    assert estimates.wider(arms, weights, found) == pytest.approx(stats.f.sf(ratio, 5, 10))
    table[0] = table[1:].mean(0) + 0.1 * rng.normal(size=6)
    arms = dict(enumerate(table.tolist()))
    assert estimates.wider(arms, weights, estimates.pooled(arms)) > 0.5


@pytest.mark.parametrize(("count", "n"), [(0, 5), (2, 7), (7, 7), (3, 40)])
def test_fractions_have_the_intervals_of_statsmodels(count, n):
    expected = proportion_confint(count, n, method="beta")
    assert clopper_pearson(count, n) == pytest.approx(tuple(0.0 if math.isnan(x) else x for x in expected))
    for wrong in ((n + 1, n), (-1, n), (0, 0)):
        with pytest.raises(ValueError):
            clopper_pearson(*wrong)


def test_fishers_test_of_the_lady_tasting_tea():
    assert fisher((3, 4), (1, 4)) == pytest.approx(34 / 70)


@pytest.mark.slow
def test_holm_is_that_of_statsmodels():
    for p in itertools.permutations([0.001, 0.01, 0.03, 0.2]):
        assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert holm([]) == []


# How many seeds: the tables of a simulation of paired tests, 90 % power


@pytest.mark.parametrize(("effect", "pairs"), [(1, 13), (1.5, 7), (2, 5), (2.5, 5), (3, 4), (4, 3), (5, 3), (6, 3)])
def test_pairs_for_a_difference(effect, pairs):
    assert planning.pairs_needed(effect) == pairs
    assert planning.power(effect, pairs) == pytest.approx(TTestPower().power(effect, pairs, 0.05), abs=1e-6)


@pytest.mark.parametrize(
    ("effect", "pairs"), [(1.5, 15), (2, 11), (2.5, 9), (3, 8), (4, 6), (5, 6), (6, 5), (8, 5), (10, 4)]
)
def test_pairs_for_the_first_of_forty_claims(effect, pairs):
    assert planning.pairs_needed(effect, 0.05 / 40) == pairs


@pytest.mark.parametrize(
    ("margin", "pairs"), [(1, 13), (1.25, 9), (1.5, 7), (1.75, 6), (2, 5), (2.5, 4), (3, 4), (4, 3), (5, 3)]
)
def test_pairs_for_equivalence(margin, pairs):
    assert planning.tost_pairs_needed(margin) == pairs


@pytest.mark.parametrize(
    ("n", "own", "forty", "pooled"),
    [
        *((3, 3.92, 24.75, 1.90), (4, 2.50, 8.70, 1.65), (5, 1.96, 5.16, 1.47), (6, 1.67, 3.74, 1.35)),
        *((8, 1.34, 2.55, 1.17), (10, 1.15, 2.02, 1.04)),
    ],
)
def test_detectable_effects(n, own, forty, pooled):
    assert planning.detectable(n) == pytest.approx(own, abs=0.015)
    assert planning.detectable(n, 0.05 / 40) == pytest.approx(forty, rel=0.004)
    assert planning.detectable(n, df=60) == pytest.approx(pooled, abs=0.015)


def test_what_cannot_be_found_is_said_so():
    assert planning.pairs_needed(0.01) is None
    assert planning.tost_pairs_needed(1.0, effect=1.0) is None
    with pytest.raises(ValueError, match="needs two"):
        planning.detectable(1)
    assert planning.sd_factors(8) == pytest.approx((0.66, 2.04), abs=0.005)
    assert planning.paired_sd(1.0, 0.5) == pytest.approx(1.0)


# Curves


def test_lr_sensitivity_is_the_mean_clipped_distance_to_the_best():
    losses = {1e-3: 2.4, 1e-2: 2.0, 1e-1: None, 1.0: 30.0}
    assert curves.lr_sensitivity(losses, 7.0) == pytest.approx((0.4 + 0.0 + 5.0 + 5.0) / 4)


def test_effective_compute_inverts_a_known_power_law():
    tokens = np.geomspace(1e5, 1e7, 12)
    losses = 5.0 - 0.3 * np.log(tokens / 1e5)
    assert curves.effective_compute(tokens, losses, 5.0 - 0.3 * math.log(50)).factor == pytest.approx(0.5, rel=0.01)
    assert curves.effective_compute(tokens, losses, losses[-1] - 0.3 * math.log(1.5)).factor == pytest.approx(
        1.5, rel=0.01
    )
    for target, words in ((losses[-1] - 1.0, "more than 2 times"), (9.0, "at its first evaluation")):
        found = curves.effective_compute(tokens, losses, target)
        assert found.factor is None and words in found.words
    assert "fewer than three" in curves.effective_compute([1, 2], [3.0, 2.0], 2.5).words


# Noise


def grid(y, inits, orders):
    import pandas as pd

    rows = [
        {
            "run_id": f"{i}.{d}",
            "status": "completed",
            "init_seed": i,
            "data_seed": d,
            "numerics": "cpu",
            "val_loss": y(i, d),
        }
        for i in inits
        for d in orders
    ]
    return pd.DataFrame(rows)


def test_a_crossed_grid_tells_the_draw_of_weights_from_the_order_of_data():
    rng = np.random.default_rng(4)
    a, b, rest = rng.normal(0, 0.3, 60), rng.normal(0, 0.1, 60), rng.normal(0, 0.05, (60, 60))
    found = seed_noise(grid(lambda i, d: a[i] + b[d] + rest[i, d], range(60), range(60)))
    assert (found.init, found.data, found.rest) == pytest.approx((0.3, 0.1, 0.05), rel=0.15)
    assert found.total == pytest.approx(math.hypot(found.init, found.data, found.rest))


def test_one_seed_held_gives_the_spread_of_the_other():
    losses = [2.0, 2.1, 2.4]
    sd = np.std(losses, ddof=1)
    assert seed_noise(grid(lambda i, d: losses[i], range(3), [0])).init == pytest.approx(sd)
    assert seed_noise(grid(lambda i, d: losses[d], [0], range(3))).data == pytest.approx(sd)
    assert "unknown" in seed_noise(grid(lambda i, d: 2.0, [0], [0])).words
