"""What a study can go wrong by, read as a researcher reads it: verdict and notices in words, no NaN, no silent drop."""

import json
import shutil

import fake_results
import pytest
from test_report import report

from lmablate.claims import load_claims
from lmablate.claims.report_verdicts import evidence, verdicts
from lmablate.report.notices import study_notices
from lmablate.report.summary import arms_table, notices
from lmablate.report.tuned_studies import compared, sensitivities, shown
from lmablate.results import load_history, load_runs
from lmablate.results.load import load_unfinished
from lmablate.results.studies import load_studies

ARMS = {
    "rope": {"posemb": "rope"},
    "rope again": {"posemb": "rope", "optim.eps": load_claims()["AA"].tests[0].plus["optim.eps"]},
    "none": {"posemb": "none"},
}


def eps(row):
    row["config"]["optim"].setdefault("eps", 1e-8)


def elsewhere(seeds):
    """Runs of the arm without positions that were evaluated on another device."""

    def change(row):
        eps(row)
        if row["arm"] == "none" and row["stage"] == "evaluate" and row["seed"] in seeds:
            row["numerics"] = {**row["numerics"], "device": "cuda"}

    return change


def lose(folder, study, seeds, state=None):
    """Take the results of the arm without positions away, at some seeds."""
    for use in study["runs"]:
        if (use["arm"], use["stage"]) == ("none", "evaluate") and use["init_seed"] in seeds:
            shutil.rmtree(folder / use["run_id"])
            if state:
                fake_results.write_unfinished(folder, use["run_id"], state, error="OutOfMemoryError: no more")


def read(folder, lost=(), state=None, change=eps, **keywords):
    """The verdict on R2 (without positions is worse), and everything that stands before the numbers."""
    study = fake_results.write_fake_study(
        folder, "sanity", ARMS, effects={"none": 0.12}, claims=["R2", "AA"], change=change, **keywords
    )
    lose(folder, study, lost, state)
    runs, studies = load_runs(folder), list(load_studies(folder).values())
    every = evidence(runs, studies)
    arms, rates = shown(every), sensitivities(every, studies)
    claims = verdicts(every, load_history(folder), studies)
    said = [*notices(arms, arms_table(arms)), *study_notices(every, studies, load_unfinished(folder), rates)]
    json.dumps([claims, rates, compared(arms, studies)], allow_nan=False)
    (claim,) = [claim for claim in claims if claim["id"] == "R2"]
    words = " ".join([claim["reason"], *said, *claim["tests"][0]["notes"]])
    assert not {"nan", "nan,", "none,", "inf"} & set(words.lower().split())
    return claim, said


def test_a_sound_study_has_nothing_against_it(tmp_path):
    claim, said = read(tmp_path)
    assert claim["verdict"] == "supported" and said == []


def test_an_optimum_at_the_edge_of_the_grid(tmp_path):
    claim, said = read(tmp_path, rates=(4e-3, 8e-3, 1.6e-2))
    assert claim["verdict"] == "supported"
    (line,) = said
    assert "lies at the edge of those tried for rope (0.004, the lowest of 3), rope again" in line
    assert "a difference between arms may be one of tuning" in line
    assert any(
        "none: its best learning rate, 0.004, is the lowest tried" in note for note in claim["tests"][0]["notes"]
    )


def test_an_arm_where_every_learning_rate_diverged(tmp_path):
    claim, said = read(tmp_path, diverged=lambda arm, stage, lr, seed: arm == "none")
    assert claim["verdict"] == "supported"
    assert "where 6 of 6 against 0 of 6 runs diverged; nothing is known of its loss where it trains" in claim["reason"]
    assert any("No run of arm none finished, so there is no mean." in line for line in said)
    assert any("Arm none diverged at every learning rate tried (0.001 to 0.008)" in line for line in said)
    assert any(
        "every learning rate from 0.001 to 0.008 diverged in tuning" in note for note in claim["tests"][0]["notes"]
    )


def test_unequal_seeds(tmp_path):
    claim, said = read(tmp_path, lost=(4, 5))
    assert claim["tests"][0]["n"] == 4
    assert "2 runs without a partner: posemb=none lacks seeds 4, 5" in claim["tests"][0]["notes"]
    assert "Arms have different seeds: arm none lacks 4, 5. Only shared seeds are paired." in said
    apart, _ = read(tmp_path / "apart", lost=range(6), seeds=range(6))
    assert "no finished run with posemb=none" in apart["reason"]


def test_arms_without_any_common_seed(tmp_path):
    rows = [{"posemb": ("rope",)}, {"posemb": ("none",)}]
    for seeds, grid in zip(((0, 1, 2, 3), (4, 5, 6, 7)), rows, strict=True):
        fake_results.write_fake_results(tmp_path, grid, seeds=seeds, sweep="sanity", change=eps)
    (claim,) = [c for c in verdicts(load_runs(tmp_path), load_history(tmp_path), []) if c["id"] == "R2"]
    assert claim["verdict"] == "not decided"
    assert (
        "no seed in common, so no two runs are a pair: posemb=none has seeds 4, 5, 6, 7; posemb=rope has"
        in claim["reason"]
    )


def test_one_seed(tmp_path):
    claim, said = read(tmp_path, seeds=(0,))
    assert claim["verdict"] == "not decided" and claim["more_seeds"] == 3
    assert "1 paired seed, of at least 4: a difference cannot be told from noise" in claim["reason"]
    assert "One seed: a difference cannot be told from noise." in said


@pytest.mark.parametrize("state", ["failed", None], ids=["failed", "gone"])
def test_a_missing_run(tmp_path, state):
    claim, said = read(tmp_path, lost=(3,), state=state)
    assert claim["tests"][0]["n"] == 5
    why = "failed, OutOfMemoryError: no more" if state else "not there"
    assert any(
        f"sanity: 1 of the 6 evaluation runs of arm none has no result (seed 3: {why})." in line for line in said
    )
    assert any("the same training command makes what is missing" in line for line in said)


def test_rows_with_unequal_numerics(tmp_path):
    claim, said = read(tmp_path / "all", change=elsewhere(range(6)))
    assert claim["verdict"] == "not decided" and claim["tests"][0]["effect"] is None
    assert "posemb=none on cuda bf16 eager; posemb=rope on cpu bf16 eager" in claim["reason"]
    assert "train the arms alike (device, precision, runtime.compile)" in claim["reason"]
    assert any("Numerics differ between runs (cpu bf16 eager; cuda bf16 eager)" in line for line in said)
    claim, _ = read(tmp_path / "some", change=elsewhere((0, 1)))
    assert claim["verdict"] == "supported" and claim["tests"][0]["n"] == 4
    assert "4 runs without a partner: runs of the same seed on different numerics" in claim["tests"][0]["notes"][0]


def test_the_page_and_the_terminal_say_it_before_the_numbers(tmp_path, capsys):
    results = tmp_path / "results"
    study = fake_results.write_fake_study(
        results, "sanity", ARMS, effects={"none": 0.12}, claims=["R2"], rates=(4e-3, 8e-3, 1.6e-2), change=eps
    )
    lose(results, study, (3,), "failed")
    text = report(results, tmp_path / "out").text
    printed = " ".join(capsys.readouterr().out.split())  # whatever the width
    for words in (
        "at the edge of those tried for rope (0.004",
        "arm none has no result (seed 3: failed, OutOfMemoryError: no more)",
    ):
        assert words in printed
        assert text.index("Before you believe it") < text.index(words) < text.index("Lowest mean")
    assert "next, for missing runs: lmablate train sweeps=sanity" in printed
    assert "NaN" not in (tmp_path / "out" / "verdicts.json").read_text() and " nan" not in text
