"""Scaling laws, compute multiples, trends, forecasts and ranks on points and ladders whose truth is known."""

import json
import math

import numpy as np
import pytest
from corpus import here
from scipy import stats

from lmablate.analysis.ladders import figure as draw_ladder
from lmablate.claims import ladder_simulation as simulated
from lmablate.claims.ladder_verdicts import words_of
from lmablate.claims.verdict import judge
from lmablate.core.errors import ConfigError
from lmablate.scaling import law as laws
from lmablate.scaling.forecast import forecasts
from lmablate.scaling.forms import FORMS
from lmablate.scaling.isoflop import isoflop
from lmablate.scaling.ladder import ladders
from lmablate.scaling.ladder_summary import calibration_of, lines, summaries
from lmablate.scaling.law import fit
from lmablate.scaling.multiples import Effect, Multiple, difference_of, line, worth
from lmablate.scaling.optimum import best_params, exponent, optimum
from lmablate.scaling.points import Points
from lmablate.scaling.ranks import agreements

REFIT = {
    "E": 1.8172,
    "A": 482.01,
    "B": 2085.43,
    "alpha": 0.3478,
    "beta": 0.3658,
}  # Besiroglu et al. 2024, arXiv 2404.10102


def chinchilla(noise: float, n: int = 240, seed: int = 0) -> Points:
    """Points as wide apart as those of Hoffmann et al.'s figure 4."""
    rng = np.random.default_rng(seed)
    params, tokens = np.exp(rng.uniform(np.log([[4e7], [1e9]]), np.log([[1.6e10], [5e11]]), (2, n)))
    loss = REFIT["E"] + REFIT["A"] * params ** -REFIT["alpha"] + REFIT["B"] * tokens ** -REFIT["beta"]
    return Points.of({"params": params, "tokens": tokens}, loss * np.exp(noise * rng.standard_normal(n)))


@pytest.fixture(scope="module")
def made():
    """A made-up ladder whose effect grows, its frame and its study's record with a forecast of before."""
    frame, record = simulated.study(simulated.TRUTHS["grows"][0], np.random.default_rng(1))
    (ladder,) = ladders(frame, [record])
    arms = [{**one._asdict(), "blind": True} for one in forecasts(ladder, ladder.size("4"), 3)]
    record["forecasts"] = [{"rung": "4", "date": "2026-11-30T12:00:00+00:00", "runs": [], "arms": arms}]
    return ladder, frame, record


def test_a_law_without_noise_is_recovered():
    law = fit(chinchilla(0.0), FORMS["chinchilla"], resamples=0)
    assert law.values == pytest.approx(REFIT, rel=1e-3)
    for form, columns in (("kaplan_n", "params"), ("kaplan_d", "tokens"), ("kaplan_c", "flops")):
        x = np.geomspace(1e5, 1e8, 8)
        found = fit(Points.of({columns: x}, (8.8e13 / x) ** 0.076), FORMS[form], resamples=0)
        assert list(found.values.values()) == pytest.approx([8.8e13, 0.076], rel=1e-3)


def test_a_law_with_noise_and_outliers_is_recovered_within_its_intervals():
    points = chinchilla(0.004)
    points.loss[:5] *= 1.2  # the Huber loss does not follow them
    law = fit(points, FORMS["chinchilla"], resamples=100)
    for name, (low, high) in law.intervals(0.99).items():
        assert low <= REFIT[name] <= high and high - low < 1.5 * REFIT[name]
    assert law.values["alpha"] == pytest.approx(REFIT["alpha"], rel=0.08)


def test_resamples_refitted_at_once_end_where_scipy_ends_one_by_one():
    for form, points in (
        ("compute", simulated._compute_points(4, 3, 0.0025, np.random.default_rng(1))),
        ("chinchilla", simulated._both_points(4, 3, 0.0025, np.random.default_rng(1))),
    ):
        own = FORMS[form]
        law = fit(points, own, resamples=0)
        logs = np.stack([np.log(points.columns[name]) for name in own.columns]) - law.origin[:, None]
        bounds = laws._bounds(own, np.log(points.loss))
        targets = laws.redrawn(law, logs, points.group, 12, 0)
        ours = laws.refitted(own, law.theta, logs, targets, bounds)
        for theta, target in zip(ours, targets, strict=True):
            theirs = laws._polished(own, law.theta, logs, target, bounds)
            at = [laws.huber(own.log_loss(one, logs)[0] - target)[0] for one in (theta, theirs)]
            assert at[0] < at[1] * 1.01


def test_the_best_size_of_a_budget_is_the_minimum_of_the_law():
    law = fit(chinchilla(0.002), FORMS["chinchilla"], resamples=40)
    one = optimum(law, 1e21)
    around = [
        law.loss({"params": np.array([one.params * f]), "tokens": np.array([1e21 / 6 / one.params / f])})[0]
        for f in (0.9, 1, 1.1)
    ]
    assert around[1] < min(around[0], around[2]) and one.loss == pytest.approx(around[1])
    assert one.params_interval[0] < one.params < one.params_interval[1]
    ratio = best_params(law.values, 1e22) / best_params(law.values, 1e21)
    assert ratio == pytest.approx(10 ** exponent(law.values))


def test_isoflop_minima_follow_the_exponent_of_the_law():
    rng = np.random.default_rng(3)
    best = [(c, best_params(REFIT, c)) for c in (1e19, 1e20, 1e21, 1e22)]
    flops, params = (
        np.array(v) for v in zip(*((c, n * f) for c, n in best for f in (0.4, 0.6, 1.0, 1.6, 2.5)), strict=True)
    )
    loss = REFIT["E"] + REFIT["A"] * params ** -REFIT["alpha"] + REFIT["B"] * (flops / 6 / params) ** -REFIT["beta"]
    points = Points.of({"flops": flops, "params": params}, loss * np.exp(3e-4 * rng.standard_normal(len(loss))))
    found = isoflop(points, resamples=60)
    assert found.a == pytest.approx(exponent(REFIT), abs=0.03) and found.interval[0] < found.a < found.interval[1]
    with pytest.raises(ConfigError, match="no minimum"):
        isoflop(Points.of({"flops": flops, "params": params}, params**-0.1))


def csv_of(folder, text: str):
    path = folder / "points.csv"
    path.write_text(text)
    return path


def test_the_command_fits_anybodys_points_and_writes_law_and_figure(tmp_path):
    points = chinchilla(0.003, n=60)
    rows = zip(points.columns["params"], points.columns["tokens"], points.loss, strict=True)
    path = csv_of(tmp_path, "params,tokens,loss,who\n" + "".join(f"{n},{d},{loss},me\n" for n, d, loss in rows))
    done = here(
        "lmablate.cli.scaling",
        "fit",
        str(path),
        "--form",
        "chinchilla",
        "--out",
        str(tmp_path / "law"),
        "--budget",
        "1e21",
        "--resamples",
        "40",
    )
    assert done.returncode == 0, done.stderr
    law = json.loads((tmp_path / "law" / "law.json").read_text())
    assert set(REFIT) <= set(law["values"]) and set(law["intervals"]) == set(law["values"])
    assert all(low <= law["values"][name] <= high for name, (low, high) in law["intervals"].items())
    assert (tmp_path / "law" / "law.png").stat().st_size > 10_000 and "the best is" in done.stdout


@pytest.mark.parametrize(
    ("text", "form", "says"),
    [
        ("size,loss\n1,2\n", "chinchilla", "needs the column params and tokens; it has size, loss"),
        ("params,tokens,loss\n1,2,3\n", "compute", r"add flops \(6 \* params \* tokens is usual\)"),
        ("flops,loss\n1,2\n2,nan\n", "compute", "line 3: loss=nan"),
        ("flops,loss\n1,2\n-2,3\n", "compute", "line 3: flops=-2"),
        ("flops,loss\n1,2\n,3\n", "compute", "line 3: flops=nothing"),
        ("flops,loss\n1,2\n2,3\n2,3\n", "compute", "2 different flops: a law needs 3"),
        ("flops,loss\n1,2\n2,3\n3,2\n", "compute", "3 points for the 3 parameters"),
        ("flops,loss\n", "compute", "no line below"),
        (
            "params,tokens,loss\n" + "".join(f"{n},{20 * n},{9 / n}\n" for n in range(1, 9)),
            "chinchilla",
            "grow together",
        ),
    ],
)
def test_points_that_carry_no_law_are_refused_with_the_mend(tmp_path, text, form, says):
    done = here("lmablate.cli.scaling", "fit", str(csv_of(tmp_path, text)), "--form", form)
    assert done.returncode == 2
    import re

    assert re.search(says, done.stderr), done.stderr


def test_a_multiple_is_the_inverse_of_the_law():
    flops = np.geomspace(1e12, 1e15, 6)
    law = fit(Points.of({"flops": flops}, 1.9 + 60 * flops**-0.14), FORMS["compute"], resamples=0)
    for y in (-0.5, 0.0, 0.3):
        assert float(worth(law, 1e13, difference_of(law, 1e13, y))[0]) == pytest.approx(y, abs=1e-6)
    assert np.isnan(worth(law, 1e13, -3.0)[0])  # no compute gets below the floor


def test_an_effect_that_grows_is_found_with_its_forecast_and_its_words(made):
    _, frame, record = made
    (one,) = summaries(frame, [record])
    (arm,) = one["effects"]
    assert arm["trend"] == "grows" and arm["multiples"][-1]["value"] == pytest.approx(1.5, rel=0.12)
    assert arm["multiples"][0]["seconds"] == pytest.approx(arm["multiples"][0]["value"])
    assert one["forecasts"][0]["held"] and calibration_of([one])["words"].startswith("1 of 1 forecasts held")
    assert {"compute", "kaplan_n", "kaplan_c"} == set(one["laws"])  # tokens grow with parameters: no law of both
    assert any("grows: " in line for line in lines(one))
    assert json.loads(json.dumps(one["agreements"], allow_nan=False)) == one["agreements"]  # as it is published
    assert json.dumps(one, allow_nan=False)


def test_a_forecast_made_after_its_rung_does_not_count(made):
    _, frame, record = made
    (entry,) = record["forecasts"]
    late = {**record, "forecasts": [{**entry, "arms": [{**one, "blind": False} for one in entry["arms"]]}]}
    (one,) = summaries(frame, [late])
    assert calibration_of([one])["n"] == 0 and "does not count" in "\n".join(lines(one))


def test_a_forecast_of_a_rung_at_which_a_run_is_lost_has_no_outcome_and_says_why(made):
    _, frame, record = made
    lost = frame.copy()
    lost.loc[lost["run_id"] == "arm41", ["status", "val_loss"]] = ["diverged", None]
    (one,) = summaries(lost, [record])
    assert calibration_of([one])["n"] == 0 and "a run diverged or learned nothing at 4" in "\n".join(lines(one))


@pytest.mark.parametrize(("scatter", "off"), [(0.0, False), (0.01, True)])
def test_rungs_off_the_line_give_its_slope_their_own_spread(made, scatter, off):
    ladder, _, _ = made
    flops = {rung: ladder.size(rung) for rung in ladder.rungs}
    by_rung = {r: [0.01 + scatter * (-1) ** i + chance for chance in (-1e-3, 0, 1e-3)] for i, r in enumerate(flops)}
    fit = line(by_rung, flops, ladder.law(resamples=0))
    assert (fit.misfit < 0.05, fit.df) == (off, len(flops) - 2 if off else 3 * len(flops) - 2)
    half = 2 * math.sqrt(fit.cov[1, 1])
    assert (half > abs(fit.slope)) or not off


def test_seconds_of_runs_that_were_trained_at_once_are_not_compared(made):
    _, frame, record = made
    minutes = [f"2026-11-30T12:{i:02d}:00+00:00" for i in range(len(frame) + 2)]
    for width, known in ((1, True), (2, False)):
        timed = frame.assign(
            **{"provenance.started": minutes[:-2], "provenance.finished": minutes[width:][: len(frame)]}
        )
        (ladder,) = ladders(timed, [record])
        assert {run.seconds is not None for run in ladder.runs} == {known}


def test_a_ladder_without_any_effect_is_a_figure_that_says_why(made):
    _, frame, record = made
    lost = frame.assign(**{"data.unigram_val_loss": 1.0})
    (found,) = summaries(lost, [record])
    (said,) = (text.get_text() for text in draw_ladder(found).texts)
    assert "no law goes through that" in said or "nothing is fitted" in said


@pytest.mark.parametrize("end", [{"status": "diverged", "val_loss": None}, {"data.unigram_val_loss": 1.0}])
def test_nothing_is_fitted_through_a_rung_at_which_a_run_is_lost(made, end):
    _, frame, record = made
    for arm, says in (
        ("arm", "arm diverged or learned nothing at 2"),
        ("base", "base diverged or learned nothing at 2"),
    ):
        lost = frame.assign(**{"data.unigram_val_loss": None})
        lost.loc[lost["run_id"] == f"{arm}20", list(end)] = list(end.values())
        (ladder,) = ladders(lost, [record])
        (one,) = forecasts(ladder, 1e14, 3)
        assert one.interval is None and "learned nothing at 2" in one.problem
        (found,) = summaries(lost, [record])
        assert says in (found["problem"] or found["effects"][0]["words"])


def test_ranks_of_small_rungs_are_counted_against_the_largest():
    frame, record = simulated.study(simulated.LadderTruth((1.5, 1.5)), np.random.default_rng(4))
    (ladder,) = ladders(frame, [record])
    found = agreements(ladder)
    assert [(one.rung, one.target) for one in found] == [(str(i), "4") for i in range(4)]
    assert all(one.accuracy == 1.0 and one.spearman is None for one in found)
    three = ladder._replace(arms=("base", "arm", "third"), runs=(*ladder.runs, *(
        run._replace(arm="third", loss=run.loss + (0.5 if run.rung == "4" else -0.5)) for run in ladder.runs if run.arm == "arm"
    )))  # fmt: skip
    for one in agreements(three):  # the third arm is best below and worst at the top: one of three pairs agrees
        assert one.accuracy == pytest.approx(1 / 3) and one.spearman == pytest.approx(-0.5)


def multiple(rung: str, difference: float, differs: bool) -> Multiple:
    return Multiple(rung, 1e12, 1e5, 3, difference, 0.0, 0.0, 1.0, (1.0, 1.0), None, 0.0, differs)


@pytest.mark.parametrize(
    ("trend", "signs", "gone", "verdict", "words"),
    [
        ("steady", "---", None, "supported", "at the largest rung and steady"),
        ("grows", "0--", None, "supported", "and growing"),
        ("fades", "---", None, "supported", "but fading"),
        ("fades", "-00", "b", "not decided", "supported at small sizes, and nothing is left of it from b on"),
        ("turns", "+0-", None, "supported", "contradicted at small sizes, supported at the largest rung: it turns"),
        ("turns", "-0+", None, "contradicted", "supported at small sizes, contradicted at the largest rung"),
        ("fades", "+00", None, "not decided", "contradicted at small sizes and turning"),
        ("no effect shown", "000", None, "not decided", "no effect shown at any rung"),
    ],
)
def test_a_verdict_on_a_ladder_reads_from_small_to_large(trend, signs, gone, verdict, words):
    rungs = [
        multiple(name, {"-": -0.1, "+": 0.1, "0": 0.0}[sign], sign != "0")
        for name, sign in zip("abc", signs, strict=True)
    ]
    found = words_of(Effect("x", "y", tuple(rungs), 0.1, (0.0, 1.0), trend, 0.5, gone, ""), claimed=-1)
    assert found[0] == verdict and words in found[1]


def test_claims_on_laws_and_on_arms_are_judged_from_a_ladder(made):
    _, frame, record = made
    columns = {"norm": ["layer" if run.startswith("arm") else "rms" for run in frame["run_id"]]}
    seeds = [int(run[-1]) for run in frame["run_id"]]
    runs = frame.assign(
        **columns, sweep="made_up", stage="evaluate", arm=frame["run_id"].str[:-1], init_seed=seeds, data_seed=seeds,
        science_version=1, n_params=frame["n_params_non_embedding"], init_val_loss=7.0, tokens_per_param=20.0,
        **{"model.d_model": frame["n_params_non_embedding"]},
    )  # fmt: skip
    runs.attrs["axes"] = ["norm"]
    base = simulated_claim()
    known = {"x": base, "y": base.model_copy(update={"id": "y", "evidence": None}), **law_claims()}
    rows = {row["id"]: row for row in judge(runs, studies=[record], claims=known)}
    assert rows["x"]["verdict"] == "supported" and "and growing" in rows["x"]["reason"]
    assert rows["y"]["ladder"]["trend"] == "grows" and "growing" not in rows["y"]["reason"]
    assert rows["L1"]["verdict"] == "not decided" and "tokens grow with params" in rows["L1"]["reason"]
    assert rows["L2"]["verdict"] == "not decided" and "grow together" in rows["L2"]["reason"]
    even = {row["id"]: row for row in judge(runs.assign(tokens=1e6), studies=[record], claims=known)}
    assert even["L1"]["verdict"] == "supported" and "alpha of kaplan_n is 0.0" in even["L1"]["reason"]
    alone = {row["id"]: row for row in judge(runs, studies=[], claims=known)}
    assert alone["x"]["verdict"] == "not decided" and "train a ladder" in alone["x"]["reason"]


def simulated_claim():
    from lmablate.claims.simulation import claim

    return claim("x", "lower", 0.01).model_copy(update={"evidence": "ladder", "said_of": 1e9})


def law_claims():
    from lmablate.claims.claim import load_claims

    return {name: load_claims()[name] for name in ("L1", "L2")}


def agrees(rate) -> bool:
    return stats.binomtest(rate.hits, rate.n, rate.expected).pvalue > 0.001


def test_a_few_made_up_ladders_claim_little_and_hold_their_forecasts():
    rates = simulated.multiples(10, ["no effect"])
    assert all(agrees(rate) for rate in rates)


@pytest.mark.slow
def test_ladders_claim_nothing_that_is_not_there_tell_trends_apart_and_forecast_as_often_as_they_say():
    rates = {f"{rate.what}, {rate.setting.partition(':')[0]}": rate for rate in simulated.multiples(400)}
    for name, rate in rates.items():
        if "forecast" in name:
            assert 0.86 <= rate.rate <= 0.94, rate
        elif "another trend" in name or "other than 1" in name:
            assert rate.rate <= 0.05 + 2 * (0.05 * 0.95 / rate.n) ** 0.5, rate
        else:
            assert rate.rate >= 0.7, rate


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compute", "chinchilla"])
def test_intervals_of_laws_cover_the_truth_as_often_as_they_say(form):
    for rate in simulated.coverage(400, form):
        assert rate.low <= 0.94 and rate.high >= 0.86, rate
