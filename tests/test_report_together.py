"""Several studies in one report: none changes another's verdicts, notes or arms, and what nobody asked for stands apart."""

import json

import fake_results
import made_up
import pytest
from test_claims import arm

from lmablate import archive
from lmablate.claims import judge, load_claims
from lmablate.claims.report_verdicts import evidence
from lmablate.core.paths import ROOT
from lmablate.report.claim_tables import headline, lines, minus
from lmablate.report.reproduce import commands, with_more_seeds
from lmablate.report.tuned_studies import shown
from lmablate.results import load_runs
from lmablate.results.studies import studies_in

PUBLISHED = ("sanity", "activation", "norm", "kv_heads")
CLAIMS = {name: load_claims()[name] for name in "AA R2 F1 F2 F3 F4 N5 N7 N9 H4 A1 A2 A3".split()}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The published runs of four studies, as evidence, with the studies."""
    folder = tmp_path_factory.mktemp("together")
    for name in PUBLISHED:
        archive.restore(ROOT / "docs" / "results" / "archive-v1" / name, folder)
    studies = studies_in([folder])
    return evidence(load_runs(folder), studies), studies, folder


@pytest.fixture(scope="module")
def joint(together):
    runs, studies, _ = together
    return judge(runs, studies=studies, claims=CLAIMS)


def alone(together, name):
    """The claims of one of the studies, with nothing beside it."""
    runs, studies, _ = together
    own = runs[runs["sweep"] == name].reset_index(drop=True)
    own.attrs.update(runs.attrs)
    return judge(own, studies=[study for study in studies if study["sweep"] == name], claims=CLAIMS)


def one(found, name):
    return next(claim for claim in found if claim["id"] == name)


def test_an_aa_claim_keeps_its_verdict_beside_three_other_studies(together, joint):
    own, beside = one(alone(together, "sanity"), "AA"), one(joint, "AA")
    assert own["verdict"] == beside["verdict"] == "supported" and own["reason"] == beside["reason"]
    assert beside["joint"]["verdict"] == "not decided" and own["joint"]["verdict"] == "supported"
    assert (own["tests"][0]["family"], beside["tests"][0]["joint"]["family"]) == (2, 12)
    words = headline(joint)
    assert "With all 12 tests of the 4 studies corrected together, AA (sanity) is not decided." in words
    said = "\n".join(lines(joint))
    numbers = "(+0.34 %, 95 % -0.12 to +0.81, 10 pairs, 1.03 tokens per parameter)"
    assert f"AA: Two arms that cannot differ do not differ\n    supported, short run {numbers}" in said
    assert "; all studies together: not decided" in said


@pytest.mark.parametrize("name", ["N5", "N7", "N9"])
def test_notes_and_numbers_of_a_study_are_the_same_alone_and_beside_others(together, joint, name):
    (own,), (beside,) = (one(found, name)["tests"] for found in (alone(together, "norm"), joint))
    assert own.pop("joint") is not None and beside.pop("joint") is not None
    assert own == beside and own["notes"] == []


def test_a_run_that_two_studies_share_stands_in_both(together):
    runs, _, _ = together
    arms = shown(runs).groupby("arm")["run_id"].nunique()
    assert arms["norm: rms"] == arms["activation: swiglu"] == 6
    assert not runs.duplicated(["sweep", "stage", "run_id"]).any()


def test_runs_of_several_studies_are_no_arm_that_anybody_meant(joint):
    """H4 could be judged from latent attention's heads against one of several runs of each seed."""
    assert "H4" not in [claim["id"] for claim in joint]


@pytest.mark.parametrize(
    ("name", "words"),
    [("kv_heads", "trainer.steps=250"), ("norm", "trainer.steps=250"), ("sanity", "")],
)
def test_the_command_of_a_study_has_its_folder_and_nothing_that_the_study_chose(together, name, words):
    """Not the rate that all arms of kv_heads were evaluated at: it would be the middle of another tuning."""
    runs, _, folder = together
    own = runs[runs["sweep"] == name]
    command = " ".join(["lmablate train", f"sweeps={name}", *words.split()])
    assert commands(own, folder) == [f"{command} results_dir={folder}"]
    more = with_more_seeds(own[own["stage"] == "evaluate"], 3, "results")
    assert more == f"{command} sweep.seeds.values={13 if name == 'sanity' else 9}"


def test_claims_that_no_study_asked_for_stand_apart_and_cost_the_others_nothing():
    own = arm(6, sweep="one"), arm(6, 3.0, posemb="none", sweep="one")
    beside = arm(6, 0.2, 2, norm="layer", sweep="one"), arm(6, 1.0, activation="gelu", sweep="two")
    asked = {"one": ["R2"]}
    (r2,) = judge(made_up.frame(*own), requested=asked)
    found = judge(made_up.frame(*own, *beside), requested=asked)
    places = {claim["id"]: (claim["study"], claim["scope"]) for claim in found}
    assert places["R2"] == ("one", "asked") and places["N7"] == ("one", "not asked")
    again = one(found, "R2")["tests"][0]
    assert (again["p_holm"], again["family"]) == (r2["tests"][0]["p_holm"], 1) == (again["joint"]["p_holm"], 1)
    assert one(found, "N7")["joint"] is None and one(found, "N7")["tests"][0]["family"] == 1


def test_a_claim_that_takes_runs_of_several_studies_says_so():
    found = judge(
        made_up.frame(arm(6, sweep="one"), arm(6, 3.0, posemb="none", sweep="two")), requested={"one": ["R2"]}
    )
    missing, across = (claim for claim in found if claim["id"] == "R2")
    assert (missing["study"], missing["verdict"]) == ("one", "not decided") and "posemb=none" in missing["reason"]
    assert (across["study"], across["scope"], across["verdict"]) == (None, "across studies", "supported")
    assert across["tests"][0]["sweeps"] == ["one", "two"]


def test_one_study_in_two_folders_is_one_and_two_of_one_sweep_are_told_apart(tmp_path):
    arms = {"rms": {"norm": "rms"}, "layer": {"norm": "layer"}}
    for name, seeds in (("a", (0, 1)), ("b", (0, 1, 2))):
        fake_results.write_fake_study(tmp_path / name, "norm", arms, seeds=seeds, rates=(1e-3,))
    (study,) = studies_in([tmp_path / "a", tmp_path / "b"])
    assert study["sweep"] == "norm" and len(study["runs"]) == 8
    path = tmp_path / "a" / "studies" / "norm.json"
    other = json.loads(path.read_text())
    path.write_text(json.dumps({**other, "runs": [{**use, "run_id": use["run_id"][::-1]} for use in other["runs"]]}))
    names = [study["sweep"] for study in studies_in([tmp_path / "a", tmp_path / "b"])]
    assert names == [f"norm @ {tmp_path / 'a'}", f"norm @ {tmp_path / 'b'}"]


def test_the_command_for_more_seeds_of_a_grid_names_them_all(tmp_path):
    fake_results.write_fake_results(tmp_path, {"norm": ("rms", "layer")}, seeds=(0, 2), sweep=None)
    runs = load_runs(tmp_path)
    assert with_more_seeds(runs, 2, "my runs") == (
        "lmablate train -m norm=layer,rms seed=0,1,2,3 'results_dir='\"'\"'my runs'\"'\"''"
    )


def test_a_minus_is_a_minus_and_a_hyphen_stays_one():
    text = "-0.68 %, (-1 to -.5), 3e-4, 16-bit, 2.1+-.005, arXiv 2302-1"
    assert minus(text) == "−0.68 %, (−1 to −.5), 3e-4, 16-bit, 2.1+-.005, arXiv 2302-1"
