"""The report of tuned studies: verdicts first, arms by their names, tuning apart, learning rates and what they cost."""

import json

import fake_results
import pytest
from test_report import read_csv, report

from lmablate.claims import load_claims
from lmablate.claims.report_verdicts import evidence, verdicts
from lmablate.core.paths import ROOT
from lmablate.report.claim_tables import minus
from lmablate.report.tuned_studies import compared, sensitivities, shown
from lmablate.results import load_history, load_runs
from lmablate.results.studies import load_studies

AGAIN = load_claims()["AA"].tests[0].plus["optim.eps"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A tuned study: RoPE, itself again, and none, which diverges at the highest rate and once in evaluation."""
    base = tmp_path_factory.mktemp("study")
    arms = {
        "rope": {"posemb": "rope"},
        "rope again": {"posemb": "rope", "optim.eps": AGAIN},
        "none": {"posemb": "none"},
    }

    def diverged(arm, stage, lr, seed):
        return arm == "none" and (lr >= 8e-3 or (stage, seed) == ("evaluate", 4))

    def change(row):
        row["config"]["optim"].setdefault("eps", 1e-8)

    study = fake_results.write_fake_study(
        base / "results",
        "sanity",
        arms,
        effects={"none": 0.12},
        claims=["R2", "AA"],
        seeds=range(8),
        diverged=diverged,
        change=change,
    )
    page = report(base / "results", base / "out")
    return study, base / "out", page


def test_a_study_is_reported_by_its_arms_and_tuning_apart(studied):
    _, out, page = studied
    arms = {row["arm"]: row for row in read_csv(out / "tables" / "arms.csv")}
    assert {name: (row["n"], row["diverged"]) for name, row in arms.items()} == {
        "rope": ("8", "0"), "rope again": ("8", "0"), "none": ("7", "1"),
    }  # fmt: skip
    stages = [row["stage"] for row in read_csv(out / "tables" / "runs.csv")]
    assert (stages.count("evaluate"), stages.count("tune")) == (24, 12)
    assert "24 runs of 3 arms" in page.text and "none (1 of 8 diverged)" in page.text
    found = json.loads((out / "verdicts.json").read_text())["comparisons"]
    assert [(row["axis"], row["a"], row["b"], row["n_pairs"]) for row in found] == [
        ("arm", "rope", "rope again", 8), ("arm", "rope", "none", 7),
    ]  # fmt: skip


def test_learning_rates_and_their_sensitivity_stand_in_the_report(studied):
    study, out, page = studied
    rates = {row["arm"]: row for row in json.loads((out / "verdicts.json").read_text())["learning_rates"]}
    for name, arm in study["arms"].items():
        losses = [point["loss"] for point in arm["grid"]]
        assert rates[name]["lr"] == arm["lr"] and rates[name]["diverged"] == losses.count(None)
        clipped = [fake_results.INIT_LOSS if loss is None else loss for loss in losses]
        assert rates[name]["sensitivity"] == pytest.approx(sum(clipped) / len(clipped) - min(clipped), abs=0.01)
        assert (
            f"{rates[name]['sensitivity']:.4f}"
            in page.text[page.text.index("Learning rates: how each arm got its own") :]
        )


def test_verdicts_come_first_with_what_a_reader_needs_beside_them(studied):
    _, out, page = studied
    text = page.text
    order = [
        "Two arms that cannot differ",
        "Of 2 claims: 2 supported.",
        "figures/verdicts.svg",
        "Reasons, notes, margins",
        "Before you",
    ]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    by_id = {claim["id"]: claim for claim in json.loads((out / "verdicts.json").read_text())["claims"]}
    assert by_id["AA"]["verdict"] == "supported" and by_id["R2"]["verdict"] in text
    (test,) = by_id["R2"]["tests"]
    low, high = test["interval_95"]
    for words in (
        f"+{test['effect']:.2f} %", "+4.53 % (R)", minus(f"{test['correlation']:.2f}"), "1 of 8 against 0 of 8 runs diverged",
        "Over the 7 pairs that finished the effect is", "FLOPs per token: the matrix products", "Parameters: every learned number once",
        "correlate by",
    ):  # fmt: skip
        assert words in text, words
    assert f"{high:+.2f}" in text and low < test["effect"] < high
    (aa,) = by_id["AA"]["tests"]
    assert aa["compute"]["factor"] == pytest.approx(1.0, abs=0.1) and aa["compute"]["words"] in text


def test_a_grid_of_learning_rates_has_its_sensitivity_without_a_study(tmp_path):
    rows = fake_results.write_fake_results(
        tmp_path / "results", {"norm": ("rms", "layer"), "optim.lr": (1e-3, 2e-3, 4e-3)}, sweep=None,
        diverged=lambda row: row["choices"]["norm"] == "layer",
    )  # fmt: skip
    rates = sensitivities(load_runs(tmp_path / "results"), [])
    layer, rms = sorted(rates, key=lambda row: row["arm"])
    by_rate = {}
    for row in rows:
        by_rate.setdefault((row["choices"]["norm"], row["config"]["optim"]["lr"]), []).append(row["val_loss"])
    means = [sum(by_rate["rms", lr]) / 2 for lr in (1e-3, 2e-3, 4e-3)]
    assert rms["sensitivity"] == pytest.approx(sum(means) / 3 - min(means))
    assert (layer["diverged"], layer["loss"], layer["sensitivity"], layer["lr"]) == (3, None, None, None)


def test_a_study_that_was_only_tuned_is_reported_too(tmp_path):
    arms = {"rope": {"posemb": "rope"}, "none": {"posemb": "none"}}
    fake_results.write_fake_study(tmp_path / "results", "sanity", arms, seeds=(), claims=["R2"])
    runs, studies = load_runs(tmp_path / "results"), list(load_studies(tmp_path / "results").values())
    every = evidence(runs, studies)
    assert shown(every)["arm"].nunique() == 8 and len(compared(shown(every), studies)) > 1
    found = verdicts(every, load_history(tmp_path / "results"), studies)
    assert all("runs of tuning stages are not evidence" in claim["reason"] for claim in found)
    assert "R2" in {claim["id"] for claim in found}


def test_every_key_of_verdicts_json_is_documented(studied):
    words = (ROOT / "docs" / "reference" / "verdicts_json.md").read_text()
    content = json.loads((studied[1] / "verdicts.json").read_text())
    assert content.pop("schema") == 4 and "Schema 4" in words
    rows = [row for part in content.values() for row in part]
    rows += [test for claim in content["claims"] for test in claim["tests"]]
    rows += [one for claim in content["claims"] for one in claim["published"]]
    rows += [row["joint"] for row in rows if row.get("joint")]
    keys = {*content, *(key for row in rows for key in row)}
    assert len(keys) > 60
    assert {key for key in keys if f"`{key}`" not in words} == set()
