"""The published result: rows, verdicts, page, figure and dataset say the same, and damage to one of them is noticed."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_results import with_own_id, write_fake_study
from scipy import stats

from lmablate import archive
from lmablate.claims.claim import load_claims
from lmablate.core.paths import ROOT
from lmablate.results.dataset_reading import read_dataset
from lmablate.schema.identity import SCIENCE_VERSION

sys.path.insert(0, str(ROOT / "tools"))
import lecture
import lecture_claims
import lecture_counts
import lecture_halves
import lecture_page
import published

sys.path.remove(str(ROOT / "tools"))
POSITIONS = {
    "rope": {"posemb": "rope"},
    "rope again": {"posemb": "rope", "optim.eps": 2e-8},
    "none": {"posemb": "none"},
}
NORMS = {"rms": {"norm": "rms"}, "layer": {"norm": "layer"}}
EFFECTS = {"none": 0.25, "rope again": 0.001, "layer": 0.006}  # nats per token
README = (
    "# A study\n\n- **Found.** Positions\n  matter.\n- **How sure.** Four pairs.\n- **Not said.** Of larger models.\n"
)


def row_of(text, tokens_per_param=20.0):
    def change(row):
        row["choices"]["data"] = text
        row["config"]["optim"].setdefault("eps", 1e-8)
        row["data"] |= {"fingerprint": text}
        row["tokens_per_param"] = tokens_per_param
        with_own_id(row)

    return change


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """A small docs/ with three studies of the present science, one of a past one, and one finding."""
    base = tmp_path_factory.mktemp("lecture")
    results = base / "docs" / "results"
    studies = (  # at rates of their own, since made-up runs of one configuration would end differently
        ("sanity", "sanity", POSITIONS, row_of("sotu"), ["R2", "AA"], (2e-3, 4e-3)),
        ("sanity_kjv", "sanity", POSITIONS, row_of("kjv"), ["R2", "AA"], (2e-3, 4e-3)),
        ("norm", "norm", NORMS, row_of("sotu", 1.0), ["N7"], (1e-3, 3e-3)),
    )
    for name, sweep, arms, change, claims, rates in studies:
        write_fake_study(
            base / name, sweep, arms, change=change, claims=claims, seeds=range(4), rates=rates, effects=EFFECTS
        )
        archive.save(base / name, results / name, sweep)
        (results / name / "README.md").write_text(README)
    shutil.copytree(results / "norm", results / "old")
    head, *rows = (results / "norm" / "rows.jsonl").read_text().splitlines()
    old = head.replace(f'"science_version": {SCIENCE_VERSION}', '"science_version": 2')
    (results / "old" / "rows.jsonl").write_text("\n".join([old, *rows]) + "\n")
    (results / "decoding").mkdir()
    (results / "decoding" / "findings.json").write_text('{"A2": "twice as fast"}')
    (base / "README.md").write_text(f"# It\n\n**Found.** {lecture_page.BEGIN}{lecture_page.END}\n")
    (base / "docs" / "results.md").write_text(f"# All\n\n{lecture_page.BEGIN}\n{lecture_page.END}\n")
    assert lecture.main([str(results), "--out", str(base / "docs" / "lecture.md")]) == 0
    return base / "docs"


def found(docs):
    return {one.claim.id: one for one in lecture.published(docs / "results").claims}


def written(base):
    return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}


# What is published


def test_what_is_published_agrees():
    """Rows, verdicts, page, figure and dataset; the smallest study is judged again, and all of them in the slow test."""
    results, page = ROOT / "docs" / "results", ROOT / "docs" / "lecture.md"
    assert lecture.problems(results, page, rejudge=False) == []
    if studies := published.studies(results)[0]:
        smallest = min(studies, key=lambda one: len(one.archive.rows))
        assert lecture.different(smallest.stored(), published.verdicts_of(smallest)) == []
    claims = re.findall(r" \| \*\*(\w+)\*\* ", page.read_text())
    assert len(claims) == len(set(claims)) == 59


@pytest.mark.slow
def test_what_is_published_is_judged_again_alike():
    assert lecture.problems(ROOT / "docs" / "results", ROOT / "docs" / "lecture.md") == []


# How it is made


def test_the_same_rows_make_the_same_files(docs):
    before = written(docs.parent)
    assert {
        "docs/results/runs.parquet",
        "docs/results/runs.csv",
        "docs/results/runs.md",
        "docs/figures/lecture.png",
    } <= set(before)
    lecture.write(docs / "results", docs / "lecture.md")
    assert written(docs.parent) == before
    assert lecture.problems(docs / "results", docs / "lecture.md", rejudge=False) == []


def test_the_dataset_alone_gives_the_published_verdicts(docs):
    restored = published.judged(read_dataset(docs / "results" / "runs.parquet"))
    studies = {one.name: one.stored() for one in published.studies(docs / "results")[0]}
    names = {"norm": "norm", "sanity": "sanity", "sanity @ sanity_kjv": "sanity_kjv"}
    seen = 0
    for row in restored.claims:
        (own,) = (one for one in studies[names[row["study"]]]["claims"] if one["id"] == row["id"])
        alone = [
            {**one, "joint": None, "study": None, "tests": [{**t, "joint": None, "sweeps": []} for t in one["tests"]]}
            for one in (row, own)
        ]
        assert lecture.different(*alone) == []
        seen += 1
    assert seen == sum(len(one["claims"]) for one in studies.values()) == 5
    together = json.loads((docs / "results" / "verdicts.json").read_text())["joint"]
    assert [row["joint"] for row in together] == [row["joint"]["verdict"] for row in restored.claims if row["joint"]]


def test_a_claim_counts_once_by_its_own_sweep_on_the_first_text(docs):
    claims = found(docs)
    r2 = claims["R2"]
    assert (r2.main.study, r2.main.text, r2.outcome) == ("sanity", "sotu", "supported")
    assert [(one.study, one.text) for one in r2.readings] == [("sanity", "sotu"), ("sanity_kjv", "kjv")]
    assert claims["N7"].outcome == lecture_claims.SHORT  # one token a parameter
    assert claims["A2"].outcome == lecture_claims.MEASURED
    assert "AA" not in claims  # controls are no claims of the lecture
    assert lecture_counts.counts(claims.values())["supported"] == 1
    assert lecture_counts.sentence(list(claims.values())) == "Of 59 claims, 1 supported; 58 have no verdict yet."
    assert lecture_counts.agreement(claims.values()).startswith("Of 1 effects whose published size is known, 1 have")
    assert lecture_counts.second_texts(claims.values()).startswith("1 claim was also tested on another text: 1 with")


def test_the_page_has_every_number_of_a_verdict(docs):
    lines = (docs / "lecture.md").read_text().splitlines()
    (r2,) = (line for line in lines if "**R2**" in line)
    cells = r2.split(" | ")
    (test,) = found(docs)["R2"].main.tests
    low, high = (f"{end:+.2f}" for end in test["interval_95"])  # all above 0
    assert cells[2].startswith("**supported**")
    assert (
        f"sotu: {test['effect']:+.2f} % [{low}, {high}], n 4, 20 per parameter<br>" in cells[3]
        and "kjv, supported: +" in cells[3]
    )
    assert "+4.53 % at 20M (" in cells[5]
    (n7,) = (line for line in lines if "**N7**" in line)
    assert ", short run:" in n7
    assert "Of 59 claims, 1 supported" in (docs.parent / "README.md").read_text()
    assert "| [sanity](results/sanity/README.md) | sotu | 18 | Positions matter. |" in (docs / "results.md").read_text()
    assert "3 studies (norm, sanity, sanity_kjv)" in (docs / "results" / "runs.md").read_text()


def test_the_figure_sets_ours_against_the_published_on_each_text(docs):
    rows = {row["id"]: row for row in lecture_claims.figure_rows(list(found(docs).values()))}
    assert [(one["text"], one["pairs"]) for one in rows["R2"]["ours"]] == [("sotu", 4), ("kjv", 4)]
    assert rows["R2"]["published"] == [{"effect": 4.53, "params": 20_000_000}] and rows["R2"]["verdict"] == "supported"
    assert rows["N7"]["ours"] == [] and rows["N7"]["published"]  # short runs are not drawn


def test_rows_of_a_past_science_do_not_count(docs, capsys):
    assert [one.name for one in published.studies(docs / "results")[0]] == ["norm", "sanity", "sanity_kjv"]
    lecture.published(docs / "results")
    assert "old does not count: its rows have science version 2" in capsys.readouterr().out


def test_other_units_and_ladders_have_their_place(docs):
    r2 = found(docs)["R2"]
    test = {**r2.main.test, "unit": "AUC", "values": []}
    ladder = {
        "verdict": "supported",
        "reason": "grows from small to large",
        "words": "",
        "trend": "grows",
        "arm": "none",
    }
    main = r2.main._replace(tests=[test], row={**r2.main.row, "tests": [test]})
    sized = main._replace(study="sanity_kjv", ladder=True, row={**main.row, "ladder": ladder})
    one = r2._replace(readings=[main, sized])
    assert "(AUC)" in lecture_counts.other_units([one])
    assert not any(row["ours"] for row in lecture_claims.figure_rows([one]))
    page = lecture_page.page([one], published.studies(docs / "results")[0], [])
    assert f"+{test['effect']:.2f} AUC [" in page and "sotu: grows from small to large |" in page


def made_up_study(number, drift, seeds=6, arms=4):
    """A study of arms on equal seeds, whose losses spread by 0.01; `drift` makes the last arms worse on later seeds."""
    rng = np.random.default_rng(number)
    shared = rng.normal(3.0, 0.1, seeds)
    rows = [
        {
            "run_id": f"{number}-{arm}-{seed}",
            "arm": str(arm),
            "stage": "evaluate",
            "status": "completed",
            "choices": {"data": "sotu"},
            "init_seed": seed,
            "data_seed": seed,
            "val_loss": float(shared[seed] + rng.normal(0, 0.01) + drift * (arm % 2) * (seed >= seeds // 2)),
        }
        for seed in range(seeds)
        for arm in range(arms)
    ]
    return SimpleNamespace(archive=SimpleNamespace(rows=rows))


def test_halves_of_seeds_differ_as_often_as_chance_says():
    rate = lecture_halves.halves_rate([made_up_study(number, 0.0) for number in range(300)])
    assert rate.n == 600 and stats.binomtest(rate.hits, rate.n, 0.05).pvalue > 0.001
    assert (rate.low, rate.high) == tuple(stats.binomtest(rate.hits, rate.n).proportion_ci(method="exact"))
    assert "of 600 comparisons" in lecture_halves.halves_sentence(rate)
    worse = lecture_halves.halves_rate([made_up_study(number, 0.1) for number in range(20)])
    assert worse.hits > 0.9 * worse.n


def test_a_run_is_in_one_comparison_of_halves_and_three_seeds_are_none():
    study = made_up_study(0, 0.0)
    assert lecture_halves.halves_rate([study, study]).n == 2
    assert lecture_halves.halves_rate([made_up_study(0, 0.0, seeds=3)]) is None
    for row in study.archive.rows:
        row["data_seed"] = 0  # seeds that are crossed share an order, and are no repetitions
    assert lecture_halves.halves_rate([study]) is None and not lecture_halves.halves_sentence(None)


def test_without_any_study_there_is_a_page_and_no_dataset(tmp_path):
    (tmp_path / "results").mkdir()
    lecture.judge([], tmp_path / "results")
    assert [path.name for path in lecture.write(tmp_path / "results", tmp_path / "lecture.md")] == [
        "lecture.md",
        "lecture.png",
        "lecture.svg",
    ]
    assert "| all | 59 |" in (tmp_path / "lecture.md").read_text()
    assert lecture.problems(tmp_path / "results", tmp_path / "lecture.md") == []


# What is noticed


def swap(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def another_loss(docs):
    path = docs / "results" / "sanity" / "rows.jsonl"
    head, first, *rest = path.read_text().splitlines()
    row = json.loads(first)
    path.write_text("\n".join([head, json.dumps({**row, "val_loss": row["val_loss"] + 0.1}), *rest]) + "\n")


def another_verdict(docs, seal=lambda content: content):
    path = docs / "results" / "sanity" / "verdicts.json"
    stored = json.loads(path.read_text())
    (claim,) = (claim for claim in stored["claims"] if claim["id"] == "R2")
    claim["verdict"] = "contradicted"
    path.write_text(json.dumps(seal(stored)))


def resealed(content):
    return published.sealed({key: value for key, value in content.items() if key != "checksum"})


def another_effect(docs):
    path = docs / "results" / "sanity" / "verdicts.json"
    stored = json.loads(path.read_text())
    for claim in stored["claims"]:
        claim["tests"][0]["effect"] += 1
    path.write_text(json.dumps(stored))


DAMAGE = {
    "a loss": (another_loss, "was made of other rows than"),
    "a verdict": (another_verdict, "verdicts.json was changed by hand"),
    "an effect": (another_effect, "lecture.png shows other numbers"),
    "the verdicts together": (
        lambda docs: swap(docs / "results" / "verdicts.json", "supported", "contradicted"), "results/verdicts.json was changed by hand",
    ),
    "the page": (lambda docs: swap(docs / "lecture.md", "**supported**", "**contradicted**"), "lecture.md is not"),
    "the front page": (lambda docs: swap(docs.parent / "README.md", "1 supported", "9 supported"), "README.md is not"),
    "the table of studies": (lambda docs: swap(docs / "results.md", "matter", "do not matter"), "results.md is not"),
    "the card": (lambda docs: swap(docs / "results" / "runs.md", "3 studies", "4 studies"), "runs.md is not"),
    "the CSV": (lambda docs: swap(docs / "results" / "runs.csv", "evaluate", "tune"), "runs.csv is not"),
    "the dataset": (lambda docs: (docs / "results" / "runs.parquet").write_bytes(b"PAR1"), "not a dataset of runs"),
    "the figure": (
        lambda docs: shutil.copy(ROOT / "docs" / "figures" / "benchmarks.png", docs / "figures" / "lecture.png"), "lecture.png shows other",
    ),
    "a study less": (lambda docs: shutil.rmtree(docs / "results" / "norm"), "was made of other studies"),
    "a missing verdict": (lambda docs: (docs / "results" / "norm" / "verdicts.json").unlink(), "verdicts.json is missing"),
    "a missing sentence": (
        lambda docs: swap(docs / "results" / "norm" / "README.md", "**How sure.**", "Sure:"), "lacks the sentence How sure: add",
    ),
    "a claim of yesterday": (
        lambda docs: swap(docs / "results" / "sanity" / "verdicts.json", "trains but is worse", "does not train"),
        "the claim R2 as it no longer is",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(damage, said, docs, tmp_path):
    shutil.copytree(docs.parent, tmp_path / "copy")
    damage(tmp_path / "copy" / "docs")
    problems = lecture.problems(
        tmp_path / "copy" / "docs" / "results", tmp_path / "copy" / "docs" / "lecture.md", rejudge=False
    )
    assert any(said in one for one in problems), problems


def test_a_verdict_that_the_rows_do_not_give_is_noticed(docs, tmp_path, capsys):
    shutil.copytree(docs.parent, tmp_path / "copy")
    another_verdict(tmp_path / "copy" / "docs", resealed)
    results, page = tmp_path / "copy" / "docs" / "results", tmp_path / "copy" / "docs" / "lecture.md"
    assert lecture.main([str(results), "--out", str(page), "--check"]) == 1
    assert "is 'contradicted', and 'supported' by the rows" in capsys.readouterr().out


def test_a_page_without_results_is_refused(tmp_path, capsys):
    assert lecture.main([str(tmp_path / "none"), "--out", str(tmp_path / "page.md")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_statistic_over_all_studies_counts_though_no_study_asks_for_it():
    row = {"scope": "not asked", "short_run": False, "verdict": "supported"}
    of = {
        name: lecture_claims.Found(load_claims()[name], [lecture_claims.Reading("", "", row, [], False)], [])
        for name in ("L5", "N7")
    }
    assert of["L5"].outcome == "supported"
    assert of["N7"].outcome == lecture_claims.OPEN


@pytest.mark.parametrize(
    ("sd", "lost", "more", "far"),
    [(0.4, 0, 9, True), (0.4, 0, None, True), (0.4, 0, 8, False), (0.4, 1, None, False), (None, 0, None, False)],
)
def test_out_of_reach_takes_a_power_calculation(sd, lost, more, far):
    test = {"verdict": "not decided", "sd": sd, "more_seeds": more, "diverged": {"plus": [lost, 4], "minus": [0, 4]}}
    row = {"scope": "asked", "short_run": False, "verdict": "not decided", "tests": [test]}
    one = lecture_claims.Found(load_claims()["N7"], [lecture_claims.Reading("", "", row, [], False)], [])
    said = lecture_counts.far_from_decided([one])
    assert f"{int(far)} of the 1 " in said and f"Of the 1 claims of priority 1 and 2, {int(far)} are decided" in said
