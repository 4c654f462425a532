"""The claims as data, and the verdict of made-up results frames on them: every verdict in the words a reader gets."""

import json
import math

import made_up
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lmablate.claims import judge, load_claims
from lmablate.claims.claim import GRADES, Hypothesis
from lmablate.claims.evidence import find
from lmablate.claims.report_verdicts import evidence
from lmablate.claims.rows import Table
from lmablate.claims.table import verdict_table
from lmablate.core.errors import ConfigError
from lmablate.core.paths import ROOT
from lmablate.stats import estimates, sequential
from lmablate.stats.multiplicity import holm

# Priority of every claim of the list, by id: 23 of priority 1, 23 of priority 2, 13 of priority 3.
PRIORITIES = {
    1: "A1 A2 F1 F6 G1 G2 H1 L4 L5 L7 N1 N2 N3 N7 N8 P1 R1 R2 R3 R7 S1 S3 X1",
    2: "A4 F2 F3 F4 F7 G3 H2 H4 H5 H6 L1 L3 L6 M1 M4 N4 N5 N9 P2 R4 S2 S4 S5",
    3: "A3 F5 H3 H7 L2 M2 M3 M5 M6 N6 R5 R6 S6",
}
CONTROLS = {
    name for name, claim in load_claims().items() if claim.group == "Controls"
}  # of the pipeline, not of the lecture
SHARED = [0.031, -0.018, 0.007, -0.026, 0.012, 0.024, -0.009, 0.003, -0.015, 0.02]  # what a seed does to both arms
OWN = [0.004, -0.003, 0.001, -0.005, 0.002, 0.003, -0.001, 0.0, -0.002, 0.005]  # and to one alone


def arm(n, effect=0.0, wobble=1.0, /, **columns):
    """`n` seeds of an arm whose loss is 4 nats plus `effect` per cent, with a spread of 0.08 per cent of its own."""
    own = OWN[3:] + OWN[:3] if effect else OWN
    return made_up.rows([4 + 0.04 * effect + SHARED[i] + wobble * own[i] for i in range(n)], **columns)


def verdict(name, *arms, **keywords):
    """The row of one claim, which must be JSON without NaN."""
    frame = made_up.frame(*arms)
    found = judge(frame, requested={sweep: [name] for sweep in frame["sweep"]}, **keywords)
    json.dumps(found, allow_nan=False)
    assert json.dumps(found).find("NaN") < 0
    words = json.dumps(found).lower()
    assert " nan" not in words
    return next(row for row in found if row["id"] == name)


def said(row):
    return " | ".join(
        [row["reason"], *(test["reason"] for test in row["tests"]), *(n for t in row["tests"] for n in t["notes"])]
    )


# The list


def test_every_claim_is_carried_over_with_its_priority():
    claims = load_claims()
    expected = {name: priority for priority, names in PRIORITIES.items() for name in names.split()}
    assert len(expected) == 59
    assert "AA" in CONTROLS and claims.keys() - CONTROLS == expected.keys()
    assert {name: claims[name].priority for name in expected} == expected


def test_published_numbers_have_a_source_and_a_grade():
    claims = load_claims()
    numbers = [(claim.id, one) for claim in claims.values() for one in claim.published]
    assert len(numbers) > 130
    assert {one.grade for _, one in numbers} == set(GRADES)
    assert all(one.source for _, one in numbers)
    assert {claim.id for claim in claims.values() if not claim.published} == {"X1", *CONTROLS} - {"BAD"}


def mean(*values):
    return sum(values) / len(values)


def change(plus, minus):
    return 100 * (plus - minus) / minus


# Effects recomputed from the numbers as printed: per cent of the side a claim is measured against, of losses in nats.
EFFECTS = {
    "A1": [change(math.log(13.54), math.log(13.15))],
    "F1": [
        change(mean(1.789, 1.792, 1.803), mean(1.838, 1.838, 1.847)),
        change(mean(1.636, 1.633, 1.645), mean(1.677, 1.679, 1.683)),
    ],
    "F2": [change(1.789, 1.792), change(1.636, 1.633)],
    "F3": [change(1.838, mean(1.847, 1.838)), change(1.679, mean(1.683, 1.677))],
    "BAD": [change(1.932, 1.838)],
    "F6": [100 * ((100 + 4.8) / (100 + mean(0, 0.05, 0.3)) - 1)],
    "N1": [change(1.645, 1.68)], "N7": [change(1.821, 1.838)], "N8": [change(3.68, 3.50)], "G2": [change(3.28, 3.30)],
    "R1": [change(2.759, 2.809), change(2.173, 2.240)],
    "R2": [change(mean(1.439, 1.5201, 1.390), mean(1.374, 1.4364, 1.349))],
    "H1": [100 * ((100 + 2.7) / (100 + mean(0.4, 0.05, 0.1)) - 1)], "H2": [change(1.831, 1.857)],
    "H7": [change(1.838, 1.834)], "S2": [change(math.log(10.84), math.log(11.19))],
}  # fmt: skip


def test_published_effects_are_those_of_the_printed_numbers():
    claims = load_claims()
    carried = {c.id: [one.effect for one in c.published if one.effect is not None] for c in claims.values()}
    assert {name for name, effects in carried.items() if effects} == set(EFFECTS)
    for name, effects in EFFECTS.items():
        assert carried[name] == pytest.approx(effects, abs=0.06), name


def test_a_claim_names_a_sweep_that_is_there_and_a_sweep_claims_that_are_there():
    import yaml

    claims, asked = load_claims(), {}
    for path in (ROOT / "sweeps").glob("*.yaml"):
        for name in yaml.safe_load(path.read_text())["sweep"].get("claims") or ():
            asked.setdefault(name, []).append(path.stem)
    assert set(asked) <= claims.keys()
    for claim in claims.values():
        if claim.sweep and claim.tests:
            assert claim.sweep in asked.get(claim.id, []), claim.id


def test_the_control_is_the_arm_that_its_sweep_trains():
    import yaml

    arms = yaml.safe_load((ROOT / "sweeps" / "sanity.yaml").read_text())["sweep"]["arms"]
    key, value = arms["rope again"][0].split("=")
    assert load_claims()["AA"].tests[0].plus == {key: float(value)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terms": [], "plus": None}, "give plus and minus, or terms"),
        ({"margin": 0}, "greater than 0"),
        ({"direction": "better"}, "direction"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_hypothesis_is_refused(change, words):
    right = {
        "says": "x",
        "plus": {"norm": "rms"},
        "minus": {"norm": "layer"},
        "metric": "val_loss",
        "direction": "lower",
        "margin": 1,
    }
    Hypothesis.model_validate(right)
    with pytest.raises(ValueError, match=words):
        Hypothesis.model_validate({**right, **change})


def test_a_wrong_file_of_claims_is_named(tmp_path, monkeypatch):
    from lmablate.claims import claim

    monkeypatch.setattr(claim, "FOLDER", tmp_path)
    (tmp_path / "odd.yaml").write_text("group: g\nclaims:\n  - id: Q1\n    priority: 9\n")
    with pytest.raises(ConfigError, match=r"odd\.yaml, claim Q1"):
        load_claims.__wrapped__()


# Every verdict


def test_supported():
    row = verdict("R2", arm(6), arm(6, 3.0, posemb="none"))
    assert row["verdict"] == "supported" and "as claimed" in row["reason"]
    (test,) = row["tests"]
    assert test["effect"] == pytest.approx(3.0, abs=0.1) and test["n"] == 6
    low, high = test["interval_95"]
    assert low < test["effect"] < high
    expected = stats.ttest_1samp(test["values"], 0)
    assert test["p"] == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert test["correlation"] == pytest.approx(
        np.corrcoef([4 + SHARED[i] + OWN[i] for i in range(6)], [SHARED[i] + (OWN[3:] + OWN[:3])[i] for i in range(6)])[
            0, 1
        ]
    )


def test_contradicted():
    row = verdict("R2", arm(6), arm(6, -3.0, posemb="none"))
    assert row["verdict"] == "contradicted" and "opposite" in row["reason"]


def test_no_difference_for_a_claim_of_one_and_support_for_a_claim_of_none():
    row = verdict("R2", arm(8), arm(8, 0.02, posemb="none"))
    assert row["verdict"] == "no difference" and "within 0.5 %" in row["reason"]
    row = verdict("N7", arm(8), arm(8, 0.02, norm="layer"))
    assert row["verdict"] == "supported" and "within 0.5 % either way" in row["reason"]
    (test,) = row["tests"]
    assert test["p_claim"] == pytest.approx(estimates.tost(test["values"], 0.5))


def test_a_real_difference_below_the_margin_is_no_difference_and_says_that_it_is_not_zero():
    row = verdict("R2", arm(10), arm(10, 0.3, 0.5, posemb="none"))
    assert row["verdict"] == "no difference" and "though not 0" in row["reason"]


def test_a_claim_of_equality_is_contradicted_by_more_than_the_margin_alone():
    assert verdict("N7", arm(8), arm(8, -2.0, norm="layer"))["verdict"] == "contradicted"
    row = verdict("N7", arm(8), arm(8, 0.55, norm="layer"))
    assert row["verdict"] == "not decided" and "neither shown to lie within" in row["reason"]


def test_not_decided_says_how_many_more_seeds_and_these_would_do():
    row = verdict("R2", arm(4), arm(4, 0.55, 6, posemb="none"))
    assert row["verdict"] == "not decided"
    assert f"{row['more_seeds']} more seeds would decide" in row["reason"]
    (test,) = row["tests"]
    assert 3 <= row["more_seeds"] <= 200
    from lmablate.stats import planning

    n, effect = 4 + row["more_seeds"], test["effect"] / test["sd"]
    assert planning.power(effect, n) >= 0.9 or planning.tost_power(0.5 / test["sd"], n, effect=effect) >= 0.9


def test_not_testable_at_this_scale():
    row = verdict("R6", arm(6), arm(6, 3.0, posemb="alibi"))
    assert row["verdict"] == "not testable at this scale"
    assert "1,000,000,000 parameters; these have 1,300,000" in row["reason"]
    row = verdict("A2", arm(2))
    assert row["verdict"] == "not testable at this scale" and "timing of decoding" in row["reason"]
    assert row["tests"] == []


def test_one_sided_claims():
    assert verdict("N1", arm(8, norm_position="post"), arm(8, 0.02))["verdict"] == "supported"
    row = verdict("N1", arm(8, norm_position="post"), arm(8, 3.0))
    assert row["verdict"] == "contradicted" and "more than 0.5 % higher" in row["reason"]


def test_a_claim_in_several_settings_is_as_good_as_its_worst():
    good, bad = {"model__n_layers": 4}, {"model__n_layers": 8}
    row = verdict(
        "R2", arm(6, **good), arm(6, 3, posemb="none", **good), arm(6, **bad), arm(6, -3, posemb="none", **bad)
    )
    assert [(test["where"], test["verdict"]) for test in row["tests"]] == [
        ({"model.n_layers": "4"}, "supported"), ({"model.n_layers": "8"}, "contradicted"),
    ]  # fmt: skip
    assert row["verdict"] == "contradicted" and "1 of 2 tests" in row["reason"]


def test_a_grid_of_two_axes_gives_the_mean_over_the_other_axis_and_names_both_effects():
    """The main effect of a factorial design: from 8 pairs on it is Student's paired test on the means of each seed."""
    cells = {("rope", "rms"): 0.0, ("none", "rms"): 3.0, ("rope", "layer"): 1.0, ("none", "layer"): 2.0}
    arms = [arm(8, effect, i + 1, posemb=posemb, norm=norm) for i, ((posemb, norm), effect) in enumerate(cells.items())]
    row = verdict("R2", *arms)
    (test,) = row["tests"]
    losses = dict(zip(cells, ([r["val_loss"] for r in rows] for rows in arms), strict=True))
    means = {x: np.mean([losses[x, "rms"], losses[x, "layer"]], axis=0) for x in ("rope", "none")}
    p = stats.ttest_rel(means["none"], means["rope"]).pvalue
    assert test["p"] == pytest.approx(p) and test["where"] == {} and test["n"] == 8
    assert test["effect"] == pytest.approx(100 * (means["none"].mean() / means["rope"].mean() - 1))
    own = [100 * (np.mean(losses["none", norm]) / np.mean(losses["rope", norm]) - 1) for norm in ("rms", "layer")]
    assert f"a mean over settings: {own[0]:+.2f} % at norm=rms, {own[1]:+.2f} % at norm=layer" in said(row)
    apart = verdict("R2", *arms[:3], arm(5, 2.0, posemb="none", norm="layer"))  # other pairs: two tests
    assert [test["where"] for test in apart["tests"]] == [{"norm": "rms"}, {"norm": "layer"}]


TEXTS = ("kjv", "sotu")


def on_both_texts(*arms):
    """The row of a claim that must hold on two texts."""
    claim = load_claims()["R2"].model_copy(update={"texts": list(TEXTS)})
    found = judge(made_up.frame(*arms), requested={None: ["R2"]}, claims={"R2": claim})
    return next(row for row in found if row["id"] == "R2")


def of_mixture(rows, **losses):
    """The rows of runs on a mixture, whose loss on each text is the row's, times a factor."""
    for row in rows:
        row |= {"data": "both", "data.val_tokens": 200, "data.val_bytes": 800}
        for text, factor in losses.items():
            loss = row["val_loss"]
            row |= {f"data.texts.{text}.val_tokens": 100, f"data.texts.{text}.val_bytes": 400}
            row |= {f"val_loss_{text}": loss and factor * loss, f"val_bpb_{text}": loss and factor * loss / 2.5}
    return rows


def test_a_claim_for_two_texts_is_tested_on_each_alone():
    kjv, sotu = ({"data": text} for text in TEXTS)
    row = on_both_texts(
        arm(6, **kjv), arm(6, 3, posemb="none", **kjv), arm(6, **sotu), arm(6, 3, posemb="none", **sotu)
    )
    assert row["verdict"] == "supported" and [test["where"]["text"] for test in row["tests"]] == list(TEXTS)
    row = on_both_texts(
        arm(6, **kjv), arm(6, 3, posemb="none", **kjv), arm(6, **sotu), arm(6, -3, posemb="none", **sotu)
    )
    assert row["verdict"] == "contradicted" and "1 of 2 tests" in row["reason"]
    row = on_both_texts(arm(6, **kjv), arm(6, 3, posemb="none", **kjv))
    assert row["verdict"] == "not decided" and "on sotu, where the claim must hold too" in row["reason"]


def test_a_mixture_is_evidence_on_each_of_its_texts_by_the_text_s_own_loss():
    base = of_mixture(arm(6), kjv=1.0, sotu=1.2)
    worse = of_mixture(arm(6, 3, posemb="none"), kjv=1.0, sotu=1.2)
    row = on_both_texts(base, worse)
    assert row["verdict"] == "supported" and [test["n"] for test in row["tests"]] == [6, 6]
    sotu = row["tests"][1]
    assert sotu["where"] == {"text": "sotu"} and sotu["effect_in_units"] == pytest.approx(0.12 * 1.2, abs=0.01)
    lost = of_mixture(arm(6, 3, posemb="none"), kjv=1.0, sotu=1.15)
    assert on_both_texts(base, lost)["verdict"] == "contradicted", "worse on one, better on the other"
    gone = of_mixture(made_up.rows([None] * 6, posemb="none"), kjv=1.0, sotu=1.2)
    assert on_both_texts(base, gone)["verdict"] == "supported", "diverged runs count with the loss before training"


def test_averages_over_options_are_contrasts_of_all_their_arms():
    gated = [arm(6, -2.0 + 0.1 * i, activation=name) for i, name in enumerate(("swiglu", "geglu", "reglu"))]
    plain = [
        arm(6, 0.1 * i, activation=name, activation__gated=False, model__d_ff=512)
        for i, name in enumerate(("silu", "gelu", "relu"))
    ]
    row = verdict("F1", *gated, *plain)
    assert row["verdict"] == "supported"
    assert row["tests"][0]["effect"] == pytest.approx(-2.0, abs=0.1)
    assert len(row["tests"][0]["plus"]) == len(row["tests"][0]["minus"]) == 3


# Trouble, in words


def test_one_seed():
    row = verdict("R2", arm(1), arm(1, 3.0, posemb="none"))
    assert row["verdict"] == "not decided" and row["more_seeds"] == 3
    assert "1 paired seed, of at least 4: a difference cannot be told from noise" in row["reason"]
    assert row["tests"][0]["interval_95"] is None and row["tests"][0]["sd"] is None


def test_unequal_seeds_and_a_missing_run_are_named():
    row = verdict("R2", arm(8), arm(6, 3.0, posemb="none"))
    assert row["tests"][0]["n"] == 6 and row["tests"][0]["unpaired"] == 2
    assert "2 runs without a partner: posemb=none lacks seeds 6, 7" in said(row)
    row = verdict("R2", arm(8), [r for r in arm(8, 3.0, posemb="none") if r["init_seed"] != 3])
    assert "1 run without a partner: posemb=none lacks seed 3" in said(row)


def test_rows_of_unequal_numerics_are_not_paired():
    row = verdict("R2", arm(6), arm(6, 3.0, posemb="none", numerics="cuda bf16 compiled"))
    assert row["verdict"] == "not decided"
    assert "no pair of runs shares seeds and numerics in all arms" in row["reason"]
    assert "on different numerics (cpu fp32 eager; cuda bf16 compiled) are not paired" in said(row)


def test_precisions_are_compared_where_a_claim_asks_for_them_and_other_numerics_never():
    def arms(effect, device="cpu"):
        out = []
        for precision, change in (("fp32", 0.0), ("bf16", effect)):
            where = {
                "trainer__precision": precision,
                "numerics": f"{device if precision == 'bf16' else 'cpu'} {precision} eager",
            }
            out.append(arm(8, 0.01, activation="swiglu", **where))
            out.append(arm(8, 1.0 + change, activation="gelu", activation__gated=False, **where))
        return out

    row = verdict("BF16", *arms(0.0))
    assert row["verdict"] == "supported" and row["tests"][0]["n"] == 8
    row = verdict("BF16", *arms(3.0))
    assert row["verdict"] == "contradicted" and row["tests"][0]["effect"] == pytest.approx(3.0, abs=0.2)
    row = verdict("BF16", *arms(0.0, device="cuda"))
    assert row["verdict"] == "not decided" and "no pair of runs shares seeds and numerics" in row["reason"]


def test_a_diverged_run_counts_and_no_pair_is_dropped():
    lost = arm(8, -1.0, posemb="none")
    lost[2] |= {"status": "diverged", "val_loss": None}
    row = verdict("R2", arm(8), lost)
    (test,) = row["tests"]
    assert test["n"] == 8 and test["diverged"] == {"plus": [1, 8], "minus": [0, 8]}
    assert test["effect"] == pytest.approx(-1.0 + (100 * (7.6 - 4) / 4 + 1) / 8, abs=0.2)
    assert "1 of 8 against 0 of 8 runs diverged; they count with the loss before training" in said(row)
    assert "over the 7 pairs that finished the effect is -0.99 %" in said(row)
    assert test["finished"] == {"n": 7, "effect": pytest.approx(-0.99, abs=0.01)}
    assert row["verdict"] != "contradicted", "seven better runs do not make up for a lost one"


def collapsed(runs, *seeds, unigram=6.0):
    """The arm with runs of these seeds at the loss of a unigram model, which a stack can fall to and stay at."""
    for row in runs:
        row["data.unigram_val_loss"] = unigram
        if row["init_seed"] in seeds:
            row["val_loss"] = 0.998 * unigram
    return runs


def test_a_run_that_learned_nothing_counts_as_lost_though_it_completed():
    row = verdict("N1", collapsed(arm(8, 0.3, norm_position="post"), 2), collapsed(arm(8)))
    (test,) = row["tests"]
    assert test["n"] == 8 and test["diverged"] == {"plus": [0, 8], "minus": [1, 8]}
    assert row["verdict"] == "supported", "all of eight pairs lie below the margin, however far one of them"
    assert "0 of 8 against 1 of 8 runs diverged or learned nothing; they count with the loss they ended at" in said(row)
    assert "over the 7 pairs that finished the effect is -0.3" in said(row)
    row = verdict("N1", collapsed(arm(4, 0.3, norm_position="post"), 2), collapsed(arm(4)))
    assert row["verdict"] == "not decided" and "1 more seed would decide, if they point the same way" in said(row)


def test_an_arm_that_is_lost_more_often_is_never_shown_to_be_no_worse():
    better = collapsed(arm(8, -3.0), 2)
    assert verdict("N1", collapsed(arm(8, norm_position="post")), better)["verdict"] == "not decided"


def test_a_text_without_order_has_nothing_to_lose():
    shuffled = [collapsed(arm(6, **own), *range(6)) for own in ({}, {"posemb": "none"})]
    for row in [row for own in shuffled for row in own]:
        row["data.shuffle_tokens"] = True
    assert verdict("R2", *shuffled)["tests"][0]["diverged"] == {"plus": [0, 6], "minus": [0, 6]}


def test_an_arm_that_always_diverges_is_worse_and_says_so():
    row = verdict("R2", arm(6), made_up.rows([None] * 6, posemb="none"))
    assert row["verdict"] == "supported" and "6 of 6 against 0 of 6 runs diverged" in said(row)
    row = verdict("R2", arm(6), made_up.rows([None] * 6, posemb="none", init_val_loss=None))
    assert row["verdict"] == "not decided"
    assert "6 of 6 pairs have a run without a validation loss and are left out" in said(row)


def test_arms_without_runs_and_arms_that_differ_in_more_than_was_asked():
    assert "no finished run with posemb=none" in verdict("R2", arm(4))["reason"]
    row = verdict("R2", arm(6), arm(6, 3.0, posemb="none", optim__weight_decay=0.0))
    assert "also differ in optim.weight_decay" in row["reason"]


def test_tuning_runs_are_never_evidence():
    row = verdict("R2", arm(6, stage="tune"), arm(6, 3.0, posemb="none", stage="tune"))
    assert "runs of tuning stages are not evidence" in row["reason"] and row["verdict"] == "not decided"
    both = arm(6), arm(6, 3.0, posemb="none")
    tuned = arm(6, 9.0, posemb="none", stage="tune", optim__lr=0.1)
    evaluated = [[{**row, "stage": "evaluate"} for row in rows] for rows in both]
    assert verdict("R2", *evaluated, tuned)["tests"][0]["effect"] == pytest.approx(3.0, abs=0.1)


def test_a_sensitivity_is_measured_on_the_whole_grid_of_a_tuning_stage():
    """Nothing was picked on it yet; of every other metric it is no evidence."""
    rows = []
    for option, cost in (("none", 1.0), ("qk_norm", 0.3)):
        for lr in (0.001, 0.003, 0.01):
            rows += arm(3, 25 * cost * abs(math.log(lr / 0.003)), stability=option, optim__lr=lr, stage="tune")
    wider, at_best = verdict("S1", rows)["tests"]
    assert wider["metric"] == "lr_sensitivity" and wider["n"] == 3
    assert wider["effect"] == pytest.approx(-70, abs=3)
    assert "runs of tuning stages are not evidence" in at_best["reason"] and at_best["effect"] is None


def test_losses_through_longer_windows_are_evidence_of_what_holds_there(monkeypatch):
    arms = [arm(4, posemb=name) for name in ("sinusoidal", "rope", "alibi", "t5")]
    there = {"sinusoidal": 6.0, "rope": 5.0, "alibi": 4.0, "t5": 4.1}
    frame = made_up.frame(*arms)
    frame.attrs["folders"] = ["somewhere"]
    longer = [
        {"run_id": run_id, "text": "validation", "changes": changes, "sliding": sliding, "times": times, "nats_per_token": loss}
        for run_id, name, i in zip(frame["run_id"], frame["posemb"], range(len(frame)), strict=True)
        for times, sliding, changes, loss in [
            (4.0, False, "", there[name] + 0.01 * (i % 3)), (4.0, True, "", 99.0), (4.0, False, "posemb=x", 99.0), (1.0, False, "", 4.0)
        ]
    ]  # fmt: skip
    monkeypatch.setattr("lmablate.claims.rows.load_evaluations", lambda folders: pd.DataFrame(longer))
    fails, holds = next(row for row in judge(frame, requested={None: ["R3"]}) if row["id"] == "R3")["tests"]
    assert fails["effect"] == pytest.approx(20, abs=0.5) and fails["verdict"] == "supported"
    assert holds["effect"] == pytest.approx(100 * (5 / 4.05 - 1), abs=0.5) and holds["verdict"] == "supported"


def study(**arms):
    return {"sweep": "made", "claims": [], "arms": arms, "looks": {}}


def test_an_optimum_at_the_edge_and_an_arm_where_every_rate_diverged():
    points = [{"lr": lr, "loss": 4.0} for lr in (0.001, 0.002)]
    lost = [{"lr": lr, "loss": None} for lr in (0.001, 0.002, 0.004)]
    record = study(
        rope={"lr": 0.002, "fit": {"lr": 0.002, "edge": "high"}, "grid": points},
        none={"lr": 0.001, "fit": {"lr": None, "edge": None}, "grid": lost},
        other={"lr": 0.002, "fit": {"lr": 0.002, "edge": "high"}, "grid": points},
    )
    own = {"sweep": "made", "stage": "evaluate"}
    arms = arm(6, arm="rope", **own), made_up.rows([None] * 6, posemb="none", arm="none", **own)
    words = said(verdict("R2", *arms, studies=[record]))
    assert "rope: its best learning rate, 0.002, is the highest tried, so its loss may yet fall" in words
    assert "none: every learning rate from 0.001 to 0.004 diverged in tuning" in words
    assert "other" not in words


def test_a_grid_that_nobody_tuned_is_read_at_the_best_common_rate():
    arms = [
        arm(4, 0.5 * abs(i - 1) + (2 if p == "none" else 0), posemb=p, optim__lr=lr)
        for p in ("rope", "none")
        for i, lr in enumerate((1e-3, 2e-3, 4e-3))
    ]
    row = verdict("R2", *arms)
    assert "at the learning rate 0.002, the best of 3 for these arms together" in said(row)
    assert row["tests"][0]["effect"] == pytest.approx(2.0, abs=0.1)
    edge = verdict("R2", *arms[1:3], *arms[4:])
    assert "0.002 is the lowest learning rate tried, so the best may lie beyond" in said(edge)


def test_unmatched_parameters_and_equal_losses_are_said():
    assert "parameters differ by 15.4%" in said(verdict("R2", arm(6), arm(6, 3, posemb="none", n_params=1_500_000)))
    same = verdict("R2", arm(6), arm(6, posemb="none"))
    assert "all pairs agree to the last bit: do the arms really differ?" in said(same)


def test_a_matched_claim_compares_equal_sizes_only():
    row = verdict("F2", arm(6), arm(6, 1.0, activation="geglu", n_params_non_embedding=900_000))
    assert "no arms with equal non-embedding parameters (within 1%)" in row["reason"]


def test_sensitivity_to_the_learning_rate_is_wortsmans():
    rates, losses = (1e-3, 1e-2, 1e-1), {"none": (4.0, 4.4, None), "qk_norm": (4.0, 4.1, 4.2)}
    arms = [
        made_up.rows({s: None if loss is None else loss + SHARED[s] for s in range(4)}, stability=name, optim__lr=lr)
        for name, own in losses.items() for lr, loss in zip(rates, own, strict=True)
    ]  # fmt: skip
    test = verdict("S1", *arms)["tests"][0]
    sensitive, robust = np.mean([0, 0.4, 3.6 - np.array(SHARED[:4]).mean()]), 0.1
    assert test["effect"] == pytest.approx(100 * (robust - sensitive) / sensitive, abs=0.5)
    lost = [made_up.rows([None] * 4, stability="qk_norm", optim__lr=lr) for lr in rates]
    row = verdict("S1", *arms[:3], *lost)
    assert row["tests"][0]["effect"] is None
    assert "4 of 4 pairs have a run without three learning rates in common, one of which trains" in said(row)


def test_divergence_is_an_endpoint_of_its_own():
    known = load_claims()["N6"]
    test = {"says": "Post-norm diverges more often", "metric": "diverged", "direction": "higher", "margin": 10}
    test |= {"plus": {"norm_position": "post"}, "minus": {"norm_position": "deepnorm"}}
    claims = {"N6": known.model_copy(update={"tests": [Hypothesis.model_validate(test)]})}
    lost = made_up.rows([None] * 9 + [4.0], norm_position="post")
    row = verdict("N6", arm(10, norm_position="deepnorm"), lost, claims=claims)
    (test,) = row["tests"]
    assert row["verdict"] == "supported" and test["unit"] == "percentage points"
    assert test["effect"] == pytest.approx(90)
    assert test["p"] == pytest.approx(stats.fisher_exact([[9, 1], [0, 10]]).pvalue)


def test_crossed_seeds_count_once_a_draw_of_the_weights():
    def crossed(effect, **columns):
        out = []
        for i in range(4):
            for d in range(3):
                (row,) = made_up.rows({i: 4 + 0.04 * effect + SHARED[i] + SHARED[4 + d] + OWN[(i + d) % 10]}, **columns)
                out.append({**row, "data_seed": d})
        return out

    row = verdict("R2", crossed(0), crossed(3.0, posemb="none"))
    assert row["tests"][0]["n"] == 4
    assert "12 crossed pairs of seeds count as 4: one for each draw of the weights" in said(row)


# The family


def test_holm_runs_over_all_tests_of_a_report():
    arms = arm(6), arm(6, 0.2, 2, posemb="none"), arm(6, 3.0, norm="layer"), arm(6, 0.1, posemb="alibi")
    found = [t for row in judge(made_up.frame(*arms)) for t in row["tests"] if t["n"]]
    assert len(found) >= 2 and {t["family"] for t in found} == {len(found)}
    against = [t["p"] if t["direction"] in ("lower", "higher") else t["p_beyond"] for t in found]
    assert [t["p_holm"] for t in found] == pytest.approx(holm(against))
    assert [t["p_claim_holm"] for t in found] == pytest.approx(holm([t["p_claim"] for t in found]))


def test_evidence_that_was_looked_at_early_is_judged_by_its_rule():
    arms = arm(6, sweep="made"), arm(6, 0.1, posemb="none", sweep="made")
    for rule in sequential.KINDS:
        record = {**study(), "looks": {"planned": [4, 6, 8], "rule": rule}}
        plain, looked = verdict("R2", *arms)["tests"][0], verdict("R2", *arms, studies=[record])["tests"][0]
        assert looked["p"] > plain["p"] and looked["p_claim"] > plain["p_claim"]
        assert looked["interval_95"][1] - looked["interval_95"][0] > plain["interval_95"][1] - plain["interval_95"][0]
        assert f"judged by the rule of its early looks ({rule}, after 4, 6, 8 pairs)" in " ".join(looked["notes"])


def test_variance_is_pooled_only_where_the_spreads_allow_it():
    rng = np.random.default_rng(7)
    table = rng.standard_normal((4, 5)) * 0.01 + 4
    others = [made_up.rows(list(table[i]), activation=name) for i, name in enumerate(("silu", "gelu", "relu"))]
    middle, own = table[:3].mean(0) - 0.1, rng.standard_normal(5)
    calm = made_up.rows(list(middle + 0.002 * own), activation="swiglu")
    pooled = verdict("F1", *others, calm)["tests"][0]
    assert pooled["pooled"]["df"] == 12 and "variance pooled over the arms (12 degrees" in " ".join(pooled["notes"])
    sd = pooled["pooled"]["sd"] / (pooled["effect_in_units"] / pooled["effect"]) * math.sqrt(1 + 1 / 3)
    assert pooled["p"] == pytest.approx(2 * stats.t.sf(abs(pooled["effect"]) / (sd / math.sqrt(5)), 12))
    losses = {name: list(table[i]) for i, name in enumerate(("a", "b", "c"))} | {"d": list(middle + 0.02 * own)}
    assert estimates.pooled(losses).p_equal > 0.2, "Levene's test alone would pool"
    wide = verdict("F1", *others, made_up.rows(losses["d"], activation="swiglu"))["tests"][0]
    assert wide["pooled"] is None
    assert wide["p"] == pytest.approx(stats.ttest_1samp(wide["values"], 0).pvalue)


# Where the rows are from


def test_runs_that_one_study_tuned_on_are_evidence_in_another():
    runs = made_up.frame(arm(4), arm(4, 3, posemb="none"))
    ids = list(runs["run_id"])
    uses = [{"run_id": run, "arm": "x", "stage": "tune"} for run in ids]
    one, two = {"sweep": "one", "runs": uses}, {"sweep": "two", "runs": [{**use, "stage": "evaluate"} for use in uses]}
    assert set(evidence(runs, [one])["stage"]) == {"tune"}
    both = evidence(runs, [one, two])
    assert len(both) == 2 * len(ids)
    test = load_claims()["R2"].tests[0]
    assert not find(Table.of(evidence(runs, [one])), test).samples
    assert len(find(Table.of(both), test).samples[0].pairs) == 4
    assert evidence(runs, []) is runs


def test_the_table_has_a_row_a_test_and_one_for_a_claim_without():
    found = judge(made_up.frame(arm(6), arm(6, 3.0, posemb="none")), requested={None: ["A2"]})
    table = verdict_table(found)
    assert set(table["claim"]) >= {"R2", "A2"}
    r2 = table[table["claim"] == "R2"].iloc[0]
    assert r2["verdict"] == "supported" and r2["published_effect"] == 4.53 and r2["low"] < r2["effect"] < r2["high"]
    assert pd.isna(table[table["claim"] == "A2"].iloc[0]["effect"])
