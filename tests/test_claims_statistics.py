"""Claims on a statistic over many runs, held against closed forms, scikit-learn's definition of the area, and known surfaces."""

import made_up
import numpy as np
import pytest
from test_claims import arm, verdict

from lmablate.claims.claim import load_claims
from lmablate.claims.statistics import (
    area_interval,
    best_depth_slope,
    early_logit_auc,
    rate_share,
    seed_spread,
    survival,
)
from lmablate.diagnostics.spikes import early_attention_logit
from lmablate.report.claim_tables import by_study, lines


def with_logits(logits, losses, **columns):
    rows = made_up.rows(losses, **columns)
    return [row | {"diagnostics.early_max_attention_logit": logit} for row, logit in zip(rows, logits, strict=True)]


def test_the_area_is_the_chance_that_a_run_that_diverges_had_the_larger_logit():
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=30), 1)
    losses = [None if x else 4.0 for x in rng.random(30) < 0.4]
    rows = [row | {"run_id": str(i)} for i, row in enumerate(with_logits(logits, losses))]
    bad = np.array([loss is None for loss in losses])
    from scipy import stats

    u = stats.mannwhitneyu(logits[bad], logits[~bad]).statistic
    found = early_logit_auc(rows)
    assert found.value == pytest.approx(u / (bad.sum() * (~bad).sum()))
    assert found.interval[0] < found.value < found.interval[1]


def test_the_areas_interval_covers_the_truth_and_is_wide_where_all_are_told_apart():
    """Normal logits at distance d have an area of Phi(d / sqrt 2)."""
    from scipy import stats

    rng, m, n, area = np.random.default_rng(1), 8, 20, 0.9
    distance = np.sqrt(2) * stats.norm.ppf(area)
    bad, good = rng.normal(distance, 1, (1000, m, 1)), rng.normal(0, 1, (1000, 1, n))
    held = [low <= area <= high for low, high in (area_interval(a, m, n) for a in (bad > good).mean((1, 2)))]
    assert 0.92 <= np.mean(held) <= 0.985
    low, high = area_interval(1.0, 6, 12)
    assert high == 1 and 0.6 < low < 0.9


@pytest.mark.parametrize(
    ("good", "said"),
    [(1.0, "supported"), (7.9, "not decided"), (30.0, "contradicted")],
)
def test_a_logit_foretells_divergence_where_its_area_is_large(good, said):
    n = 40
    columns = {"sweep": "stability", "stability": "none"}
    lost = with_logits(np.linspace(8, 12, n), [None] * n, **columns)
    kept = with_logits(np.linspace(good, good + 1, n), [4.0] * n, **columns, data__x=1)
    row = verdict("S5", lost, kept)
    assert (row["verdict"], row["tests"][0]["unit"]) == (said, "area under the curve")
    text = " ".join(lines([row]))
    assert "pairs" not in text and "%" not in text
    assert by_study([row])[0]["claims"][0]["tests"][0]["margin_words"] == "–"


def test_without_runs_that_diverge_the_claim_says_what_it_needs():
    row = verdict("S5", with_logits([1.0] * 4, [4.0] * 4, sweep="stability", stability="none"))
    assert row["verdict"] == "not decided"
    assert "at least 3 that diverged after it and 3 that did not, and has 0 and 4" in row["reason"]


def test_the_early_logit_is_the_one_nearest_to_a_twentieth_of_the_run():
    records = [{"step": s, "diag/max_attention_logit": float(s)} for s in (0, 50, 100, 150)] + [{"step": 90, "lr": 1.0}]
    assert early_attention_logit(records, 1900) == 100
    assert early_attention_logit(records, 1000) == 50
    assert early_attention_logit(records, 100_000) is None  # none of them is at 1 % yet
    assert early_attention_logit(records[:1], 1000) is None


def tuned(sweep, of_rate, of_arm):
    effects = {
        (name, rate): k * of_rate + own
        for name, own in (("a", 0.0), ("b", of_arm))
        for k, rate in enumerate((1.0, 2.0, 4.0))
    }
    same = {"sweep": sweep, "stage": "tune"}
    return [row for (name, rate), effect in effects.items() for row in arm(1, effect, arm=name, optim__lr=rate, **same)]


def test_the_share_of_the_rate_is_that_of_a_two_way_layout():
    """Rates at 0, x and 2x have a variance of 2/3 x^2, and arms at 0 and y one of y^2 / 4."""
    x, y = 3.0, 2.0
    rows = [row for i in range(5) for row in tuned(f"study{i}", x, y)]
    found = rate_share(rows)
    noise = 0.06  # the seeds' own part of the made-up losses
    assert found.value == pytest.approx((2 / 3 * x**2) / (2 / 3 * x**2 + y**2 / 4), abs=noise)
    assert found.n == 5 and found.interval[0] <= found.value <= found.interval[1]
    assert "needs 4 studies" in rate_share([row for i in range(3) for row in tuned(f"study{i}", x, y)]).problem


def surface(slope, seeds=4):
    """Losses with a best depth of ``width^slope`` along equal size, ``ln depth = slope ln width + 0.5``."""
    rng, rows = np.random.default_rng(3), []
    for seed in range(seeds):
        for width in (32, 48, 64):
            for depth in (1, 2, 4, 8, 16):
                w, d = np.log(width), np.log(depth)
                size, shape = 2 * w + d, d - w / 2  # of a move along equal size, shape changes by 5/4 of the depth's
                best = (slope - 0.5) / (2 + slope) * size  # the line d = slope w in these coordinates
                loss = 6 - 0.2 * size + 0.02 * (shape - best) ** 2 + 0.002 * rng.normal()
                row = {"stage": "evaluate", "status": "completed", "init_seed": seed, "val_loss": loss}
                rows.append(row | {"model.d_model": width, "model.n_layers": depth})
    return rows


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_slope_of_the_best_depth_is_recovered_from_a_known_surface(slope):
    found = best_depth_slope(surface(slope))
    assert found.value == pytest.approx(slope, abs=0.15)
    assert found.interval[0] <= slope <= found.interval[1]


def test_a_surface_without_a_best_depth_or_with_few_sizes_says_so():
    rows = [row | {"val_loss": 5 - 0.1 * np.log(row["model.n_layers"])} for row in surface(1.0)]
    assert "no best depth" in best_depth_slope(rows).problem
    assert "needs 3 widths" in best_depth_slope([row for row in rows if row["model.d_model"] < 64]).problem


@pytest.mark.parametrize("crossed", [True, False])
def test_the_spread_of_seeds_is_recovered_and_its_interval_keeps_its_level(crossed):
    rng, covered, found = np.random.default_rng(5), 0, []
    seeds = [(i, d) for i in range(4) for d in range(4)] if crossed else [(i, i) for i in range(5)]
    for _ in range(200):
        draws, orders = rng.normal(size=(2, 5)) * 0.003
        rows = [
            {"sweep": "noise_floor", "arm": arm, "stage": "evaluate", "status": "completed", "numerics": "a", "run_id": f"{arm}{i}{d}",
             "init_seed": i, "data_seed": d, "val_loss": 3.0 + draws[i] + orders[d]}
            for arm in ("base", "gelu") for i, d in seeds
        ]  # fmt: skip
        one = seed_spread(rows)
        found.append(one.value)
        covered += one.interval[0] <= 100 * 0.003 * 2**0.5 / 3 <= one.interval[1]
    assert np.mean(np.square(found)) ** 0.5 == pytest.approx(100 * 0.003 * 2**0.5 / 3, rel=0.1)
    assert covered >= 185  # of 200, at 95 %
    assert "several draws" in seed_spread(rows[:1]).problem


def test_survival_counts_decided_claims_that_a_design_helps_once_each():
    known = load_claims()
    names = [
        c.id
        for c in known.values()
        if c.tests and all(t.direction in ("lower", "higher") and t.metric == "val_loss" for t in c.tests)
    ]
    names = [name for name in names if known[name].group not in ("Controls", "Scaling and method")][:5]
    words = ["supported", "no difference", "contradicted", "supported", "not decided"]
    rows = [
        {"id": n, "study": known[n].sweep, "verdict": w, "short_run": False} for n, w in zip(names, words, strict=True)
    ]
    found = survival([{"id": names[1], "study": "another", "verdict": "supported", "short_run": False}, *rows], known)
    assert (found.value, found.n) == (0.5, 4)
    assert found.interval == pytest.approx((0.0676, 0.9324), abs=1e-3)  # Clopper and Pearson, 2 of 4


def test_what_a_run_measured_or_says_of_itself_tells_no_arms_apart():
    """The rule's message on a rate and the accuracy at other lengths are results, and a rate is followed by its own column."""
    columns = {"config__lr_from": "optim.lr=rule is 0.003", "val_accuracy_by_length__20": 0.5}
    row = verdict(
        "N7", arm(4, 0.0, **columns), arm(4, 0.0, norm="layer", config__lr_from=None, val_accuracy_by_length__20=0.25)
    )
    assert row["tests"][0]["n"] == 4


@pytest.mark.parametrize(("max_length", "own"), [(None, 20), (16, 16)])
def test_the_error_beyond_the_training_length_is_the_mean_over_longer_examples(max_length, own):
    def of(posemb, *shares):
        lengths = {
            f"val_accuracy_by_length__{round(f * own)}": share for f, share in zip((0.5, 1.5, 2), shares, strict=True)
        }
        task = {
            "data": "copy",
            "data__max_length": max_length,
            "data__length_factors": (0.5, 1.5, 2.0),
            "model__context_length": 40,
        }
        return arm(4, 0.0, posemb=posemb, sweep="length_tasks", **task, **lengths)

    tests = verdict("R5", of("rope", 1.0, 0.25, None), of("none", 1.0, 0.5, 0.25), of("t5", 1.0, 0.75, 0.5))["tests"]
    assert [test["effect"] for test in tests] == pytest.approx([100 * (0.625 / 0.875 - 1), 100 * (0.375 / 0.875 - 1)])
