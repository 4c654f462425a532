"""The learning rate's fit against closed forms, and the settings of a study."""

import math

import numpy as np
import pytest

from lmablate.core.errors import ConfigError
from lmablate.sweeper.fit import beyond, fit_lr
from lmablate.sweeper.settings import (
    SeedPair,
    SeedSettings,
    StudySettings,
    TuneSettings,
    expand_arms,
    read_study,
    seed_pairs,
)
from lmablate.sweeper.tuning import Cell, Tuning

GRID = [0.00075, 0.0015, 0.003, 0.006, 0.012]


def parabola(best: float, floor: float = 2.0, curve: float = 0.05):
    return {lr: floor + curve * math.log(lr / best) ** 2 for lr in GRID}


@pytest.mark.parametrize("best", [0.0012, 0.003, 0.0041, 0.0078])
def test_the_minimum_of_a_parabola_in_log_lr_is_found(best):
    fit = fit_lr(parabola(best))
    assert fit.lr == pytest.approx(best, rel=2e-3)  # three digits are kept
    assert fit.predicted == pytest.approx(2.0)
    assert fit.residual == pytest.approx(0.0, abs=1e-12)
    a, b, c = fit.coefficients
    assert a == pytest.approx(0.05)
    x = np.log(np.array(fit.used))
    assert a * x**2 + b * x + c == pytest.approx([parabola(best)[lr] for lr in fit.used])


def test_least_squares_agree_with_the_normal_equations():
    losses = dict(zip(GRID, [2.31, 2.12, 2.05, 2.11, 2.4], strict=True))
    x, y = np.log(GRID), np.array(list(losses.values()))
    design = np.stack([x**2, x, np.ones_like(x)], axis=1)
    solved = np.linalg.solve(design.T @ design, design.T @ y)
    fit = fit_lr(losses)
    assert fit.coefficients == pytest.approx(tuple(solved), rel=1e-6)
    assert math.log(fit.lr) == pytest.approx(-solved[1] / (2 * solved[0]), abs=2e-3)
    assert fit.residual == pytest.approx(np.sqrt(np.mean((design @ solved - y) ** 2)), rel=1e-6)


def test_a_cliff_cannot_push_the_optimum_past_the_neighbours():
    fit = fit_lr(dict(zip(GRID, [2.2, 2.1, 2.05, 2.06, 7.0], strict=True)))
    assert GRID[1] <= fit.lr <= GRID[3]


@pytest.mark.parametrize(("losses", "edge"), [([2.0, 2.1, 2.2, 2.3, 2.4], "low"), ([2.4, 2.3, 2.2, 2.1, 2.0], "high")])
def test_a_best_point_at_the_edge_is_said(losses, edge):
    fit = fit_lr(dict(zip(GRID, losses, strict=True)))
    assert fit.edge == edge
    assert fit.lr == (GRID[0] if edge == "low" else GRID[-1])
    assert "tried" in fit.words


def test_a_neighbour_that_diverged_bounds_the_optimum():
    fit = fit_lr(dict(zip(GRID, [2.4, 2.3, 2.2, None, None], strict=True)))
    assert (fit.lr, fit.edge) == (0.003, None)
    assert "0.006 beside it diverged" in fit.words


def test_an_arm_where_every_rate_diverged_is_said_in_words():
    fit = fit_lr(dict.fromkeys(GRID))
    assert fit.lr is None
    assert fit.words == "every learning rate from 0.00075 to 0.012 diverged"


def test_the_grid_goes_on_at_its_own_ratio():
    assert beyond([1e-3, 2e-3, 4e-3], "high") == 8e-3
    assert beyond([1e-3, 2e-3, 4e-3], "low") == 5e-4
    assert beyond([1e-3, 3e-3], "high") == 9e-3


def tuning(mode: str, extend: int = 2, **cross) -> Tuning:
    tune = TuneSettings(mode=mode, factors=[0.5, 1.0, 2.0], seeds=[1000], extend=extend, cross=cross or None)
    return Tuning(tune, {"a": 1e-3, "b": 1e-3})


def run(t: Tuning, loss) -> int:
    """Answer every point until nothing is left to add; returns the number of batches."""
    batches = 0
    while True:
        batches += 1
        for cell, lr in t.points():
            t.record(cell, lr, 1000, loss(cell, lr))
        if not t.extend():
            return batches


def test_an_edge_is_followed_and_only_for_the_arm_that_has_it():
    t = tuning("per_arm")
    best = {"a": 1.1e-3, "b": 3.5e-3}
    assert run(t, lambda cell, lr: 2 + 0.1 * math.log(lr / best[cell.arm]) ** 2) == 3
    assert t.grids[Cell("a", ())] == [5e-4, 1e-3, 2e-3]
    assert t.grids[Cell("b", ())] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    assert t.choice("b")[1] == pytest.approx(3.5e-3, rel=2e-3)


def test_the_grid_stops_growing_and_says_so():
    t = tuning("per_arm", extend=2)
    assert run(t, lambda cell, lr: -math.log(lr)) == 3
    assert max(t.grids[Cell("a", ())]) == 8e-3
    assert "0.008, but the best learning rate, 0.008, is the highest tried, after 2 extensions" in t.notes()[0]


def test_an_arm_that_always_diverges_is_looked_for_below_and_then_evaluated_at_the_lowest_rate():
    t = tuning("per_arm", extend=1)
    run(t, lambda cell, lr: None if cell.arm == "b" else 2 + 0.1 * math.log(lr / 1e-3) ** 2)
    assert t.choice("b") == ((), 2.5e-4)
    assert "every learning rate from 0.00025 to 0.002 diverged: evaluated at the lowest tried" in t.notes()[1]


def test_a_shared_rate_is_the_best_of_the_mean_and_never_one_at_which_an_arm_diverges():
    t = tuning("shared", extend=0)
    run(t, lambda cell, lr: 2 + 0.1 * math.log(lr / (7e-4 if cell.arm == "a" else 2e-3)) ** 2)
    assert (
        t.choice("a", shared=True)[1]
        == t.choice("b", shared=True)[1]
        == pytest.approx(math.sqrt(7e-4 * 2e-3), rel=3e-3)
    )
    t = tuning("shared", extend=0)
    run(t, lambda cell, lr: None if cell.arm == "b" and lr > 1e-3 else 2 - math.log(lr))
    assert t.choice("a", shared=True)[1] == 1e-3


def test_other_keys_are_chosen_with_the_rate():
    t = tuning("per_arm", **{"optim.weight_decay": [0.0, 0.1]})
    better = {"a": "optim.weight_decay=0.1", "b": "optim.weight_decay=0.0"}
    run(t, lambda cell, lr: 2 + 0.1 * math.log(lr / 1e-3) ** 2 + 0.5 * (cell.settings != (better[cell.arm],)))
    assert {arm: t.choice(arm)[0] for arm in "ab"} == {arm: (word,) for arm, word in better.items()}


NODE = {"question": "?", "claims": [], "scales": {}, "arms": {"a": [], "b": ["norm=layer"]}}
TUNE = {"mode": "per_arm", "factors": [0.5, 1.0, 2.0], "seeds": [1000], "extend": 1, "cross": None}


@pytest.mark.parametrize(
    ("mode", "pairs"),
    [
        ("paired", [(0, 0), (1, 1), (2, 2)]),
        ("init", [(0, 0), (1, 0), (2, 0)]),
        ("data", [(0, 0), (0, 1), (0, 2)]),
        ("crossed", [(a, b) for a in range(3) for b in range(3)]),
    ],
)
def test_what_a_seed_moves(mode, pairs):
    for values in (3, [0, 1, 2]):
        assert seed_pairs(SeedSettings(values=values, mode=mode)) == [SeedPair(*pair) for pair in pairs]


def test_arms_are_multiplied_by_other_keys():
    study = StudySettings(
        **NODE, seeds=SeedSettings(values=1, mode="paired"), cross={"schedule.warmup_fraction": [0.05, 0.0]}
    )
    arms = {arm.name: arm.overrides for arm in expand_arms(study)}
    assert list(arms) == [f"{name}, warmup_fraction {w}" for name in "ab" for w in ("0.05", "0.0")]
    assert arms["b, warmup_fraction 0.0"] == ("norm=layer", "schedule.warmup_fraction=0.0")


@pytest.mark.parametrize(
    ("node", "tune", "says"),
    [
        ({"seeds": [5, 1000]}, {}, "share 1000"),
        ({"seeds": {"values": [1000, 1001], "mode": "data"}}, {}, "share 1000"),
        ({"seeds": [1, 1]}, {}, "a seed stands there twice"),
        ({"arms": {}}, {}, "at least one arm"),
        ({"arms": {"a": ["seed=3"]}}, {}, "a sets seed"),
        ({"cross": {"optim.lr": [1e-3]}}, {}, "optim.lr is the study's own"),
        ({"cross": {"model.bias": [True, True]}}, {}, "each once"),
        ({"looks": [2, 9]}, {}, "at most the 3 pairs"),
        ({"looks": [1, 2]}, {}, "greater than 1"),
        ({"look_rule": "pocock"}, {}, "no effect without sweep.looks"),
        ({"seeds": {"values": 0, "mode": "paired"}}, {}, "greater than 0"),
        ({"seeds": {"values": 2, "mode": "both"}}, {}, "'paired', 'init', 'data' or 'crossed'"),
        ({"armz": {}}, {}, "armz: unknown key"),
        ({}, {"factors": []}, "tune.factors"),
        ({}, {"factors": [1.0, 1.0]}, "twice"),
        ({}, {"factors": [-1.0]}, "greater than 0"),
        ({}, {"seeds": None}, "tune.seeds"),
    ],
)
def test_settings_that_make_no_study_are_refused_in_words(node, tune, says):
    with pytest.raises(ConfigError) as caught:
        read_study({**NODE, "seeds": 3, **node}, {**TUNE, **tune}, {})
    assert says in str(caught.value)
