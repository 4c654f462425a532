"""The page of several studies: a section each, data for its script that cannot break out, what is missing, and its size."""

import json
import math
import re
import shutil
from collections import defaultdict

import fake_results
import pandas as pd
import pytest
from test_report import Page, report

from lmablate.report.command import main
from lmablate.report.figures import STILL_RUNS, Drawn, _best_runs
from lmablate.report.page import content, render_html
from lmablate.report.page_data import FEWEST, FIELDS, as_json, config_links, page_data
from lmablate.report.sections import Question
from lmablate.results import load_history, load_runs
from lmablate.results.arms import with_arms

HOSTILE = "</script><img src=x onerror=alert(1)> <!-- <script>"
LARGEST = 6_000_000  # bytes of a page of 5,000 runs, its still figures apart (each at most 1.5 MB)


def lose(results, study, stage, arm, seeds):
    lost = [
        use
        for use in study["runs"]
        if (use["stage"], use["arm"]) == (stage, arm) and (seeds is None or use["init_seed"] in seeds)
    ]
    for use in lost:
        shutil.rmtree(results / use["run_id"])


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two studies of other sizes, one with an arm of a hostile name, and pieces of their results taken away."""
    base = tmp_path_factory.mktemp("several")
    results = base / "results"

    def grown(row):
        row["n_params"] *= 2

    first = fake_results.write_fake_study(
        results, "alpha", {"rope": {"posemb": "rope"}, HOSTILE: {"posemb": "none"}}, seeds=range(3), rates=(1e-3, 3e-3, 8e-3),
        diverged=lambda arm, stage, lr, seed: (arm, stage, seed) == (HOSTILE, "evaluate", 1),
    )  # fmt: skip
    second = fake_results.write_fake_study(
        results, "beta", {"rms": {"norm": "rms"}, "layer": {"norm": "layer"}}, seeds=range(4), rates=(1e-3, 3e-3, 8e-3),
        change=grown,
    )  # fmt: skip
    lose(results, second, "evaluate", "layer", [3])
    lose(results, second, "tune", "rms", None)
    silent = next(use["run_id"] for use in first["runs"] if use["stage"] == "evaluate")
    (results / silent / "history.jsonl").unlink()
    return results, base / "out", report(results, base / "out"), silent


def data_of(page):
    return json.loads(page.scripts[0])


def section(page, name):
    """The words of one question."""
    text = page.text
    start = text.index(f"sweep {name} ", text.index("The questions"))
    return text[start : text.index("Definitions", start) if name == "beta" else text.index("sweep beta", start)]


def test_each_study_is_a_section_with_its_own_notices(several):
    _, _, page, _ = several
    assert "2 questions" in page.text and "13 runs of 4 arms, and" in page.text
    assert {"alpha", "beta", "alpha-curves", "beta-curves", "alpha-runs", "beta-runs"} <= set(page.ids)
    assert "were not matched" not in page.text, "parameters of two studies were compared"
    assert "1 of 6 runs diverged" in section(page, "alpha") and "diverged." not in section(page, "beta")
    assert "Arms have different seeds: arm layer lacks 3" in section(page, "beta")
    for name in ("alpha", "beta"):
        assert f"lmablate train sweeps={name}" in section(page, name)


def test_results_that_were_taken_away_are_named_as_missing(several):
    _, _, page, silent = several
    alpha, beta = section(page, "alpha"), section(page, "beta")
    assert f"No training records (history.jsonl), so no curve, of {silent}." in alpha
    assert "1 of the 4 evaluation runs of arm layer has no result (seed 3: not there)" in beta
    assert "3 of the 3 tuning runs of arm rms have no result" in beta


def test_a_study_without_a_run_or_a_file_is_said(tmp_path, capsys):
    results = tmp_path / "results"
    gone = fake_results.write_fake_study(results, "alpha", {"rms": {"norm": "rms"}}, seeds=(0,), rates=(1e-3,))
    for use in gone["runs"]:
        shutil.rmtree(results / use["run_id"])
    fake_results.write_fake_study(results, "beta", {"layer": {"norm": "layer"}}, seeds=(0,), rates=(1e-3,))
    (results / "studies" / "beta.json").unlink()
    assert main([str(results), "--out", str(tmp_path / "out"), "--format", "markdown"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "alpha: none of the 2 runs of this study has a result." in capsys.readouterr().out
    assert "alpha: none of the 2 runs of this study has a result." in text
    assert "studies/beta.json is not there, so it is unknown which runs" in text


def test_names_stay_text_whatever_they_hold(several):
    _, out, page, _ = several
    text = (out / "index.html").read_text()
    assert len(page.scripts) == 2 and "<img" not in text and "onerror=alert" in text
    assert HOSTILE in [arm["name"] for arm in data_of(page)["questions"][0]["arms"]]
    assert "<" not in page.scripts[0]


def test_the_script_gets_every_run_with_its_records_and_command(several):
    results, _, page, silent = several
    data = data_of(page)
    history = load_history(results).set_index("run_id")
    assert tuple(data["fields"]) == FIELDS and data["folders"] == ["../results"] and data["thinned"] is None
    seen = {}
    for question in data["questions"]:
        for values in question["runs"]:
            run = dict(zip(FIELDS, values, strict=True))
            seen[run["id"]] = run
            words = [question["words"][i] for i in run["words"]]
            assert words[-1] == f"seed={run['seed']}"
            for curve, column in zip(run["curves"], ("val_loss", "train_loss"), strict=True):
                if run["id"] == silent:
                    assert curve is None
                    continue
                known = history.loc[run["id"]].dropna(subset=[column])
                grid = question["grids"][curve[0]]
                assert (grid["steps"], grid["tokens"]) == (list(known["step"]), list(known["tokens"]))
                assert curve[1] == pytest.approx(list(known[column]), rel=1e-4)
    assert seen.keys() == {path.parent.name for path in results.glob("*/result.json")}
    assert all((results / run_id / "config.yaml").is_file() for run_id in seen)
    alpha, beta = data["questions"]
    assert (alpha["evaluated"], beta["evaluated"]) == (6, 7)
    assert {row[3] for row in alpha["runs"][:6]} == {"evaluate"} and {row[3] for row in alpha["runs"][6:]} == {"tune"}


def test_configs_are_linked_only_from_beside_inside_or_around_the_results(several, tmp_path):
    results, out, _, _ = several
    run_id = next(results.glob("*/result.json")).parent.name
    beside = config_links([run_id, "0" * 12], [results], out)
    assert beside == {run_id: "../results", "0" * 12: None}
    assert config_links([run_id], [results], results / "a page")[run_id] == ".."
    assert config_links([run_id], [results], out.parent)[run_id] == "./results"
    assert config_links([run_id], [results], tmp_path / "far" / "away") == {run_id: None}
    odd = tmp_path / "odd & <name>?"
    shutil.copytree(results / run_id, odd / run_id)
    assert config_links([run_id], [odd], tmp_path / "out")[run_id] == "../odd%20%26%20%3Cname%3E%3F"


# Many runs


def many(tmp_path, arms=100, seeds=50, records=60):
    """A question of made-up runs, and their records, without files: a few written ones repeated."""
    fake_results.write_fake_results(tmp_path / "few", {"norm": ("rms",)}, seeds=(0, 1), steps=400, sweep=None)
    few = load_runs(tmp_path / "few")
    kept = [column for column in few if "." not in column or column == "provenance.overrides"]
    runs = few[kept].iloc[[0, 1] * (arms * seeds // 2)].reset_index(drop=True)
    runs["run_id"] = [f"{i:012x}" for i in range(len(runs))]
    runs["arm"] = [f"an arm, number {i // seeds}" for i in range(len(runs))]
    for column in ("seed", "init_seed", "data_seed"):
        runs[column] = [i % seeds for i in range(len(runs))]
    runs["val_loss"] = [4 + 0.001 * (i // seeds) + 1e-5 * i for i in range(len(runs))]
    runs.attrs.update(few.attrs)
    steps = [10 * i for i in range(records)] * len(runs)
    losses = [3 + 4 * math.exp(-step / 200) + 1e-4 * (i % 997) for i, step in enumerate(steps)]
    history = pd.DataFrame({
        "run_id": runs["run_id"].repeat(records).to_numpy(), "step": steps, "tokens": [2048.0 * step for step in steps],
        "val_loss": losses, "train_loss": losses,
    })  # fmt: skip
    return Question(None, runs, runs[:0], [], [], []), history


def test_a_page_of_5000_runs_stays_small(tmp_path):
    question, history = many(tmp_path)
    data = page_data([question], history, {})
    assert data["thinned"] == FEWEST and len(data["questions"][0]["grids"]) == 1
    assert data["questions"][0]["grids"][0]["steps"][0] == 0
    assert data["questions"][0]["grids"][0]["steps"][-1] == 590, "thinned curves go on to the end"
    drawn = [Drawn(kind, kind, "", None) for kind in ("final_losses", "loss_curves", "differences")]
    told = content(
        [question], [], question.runs, drawn=[drawn], unfinished=[], notices=[], results_dir=["results"], survey=[]
    )
    text = render_html(told, defaultdict(str), as_json(data), {})
    assert 2_000_000 < len(text.encode()) < LARGEST
    page = Page(text)
    assert len(data_of(page)["questions"][0]["runs"]) == 5000
    assert "5,000 runs of 100 arms" in page.text and "the first 200; all stand in tables/runs.csv" in page.text
    assert len(re.findall("<tr", text)) < 500
    few, words = _best_runs(question)
    assert (
        len(few) == STILL_RUNS and set(few["arm"]) == {f"an arm, number {i}" for i in range(4)} and "of 5,000" in words
    )


def test_losses_that_are_not_finite_leave_a_gap_and_no_nan(tmp_path):
    question, history = many(tmp_path, arms=1, seeds=2, records=5)
    history.loc[[1, 3], "val_loss"] = [math.nan, math.inf]
    history.loc[history["run_id"] == question.runs["run_id"][1], "val_loss"] = math.nan
    (own,) = page_data([question], history, {})["questions"]
    first, second = (dict(zip(FIELDS, values, strict=True))["curves"] for values in own["runs"])
    assert own["grids"][first[0][0]]["steps"] == (0, 20, 40) and len(first[0][1]) == 3
    assert second[0] is None and len(second[1][1]) == 5


# Markdown


def test_markdown_has_tables_figures_and_commands_and_no_markup_of_names(tmp_path):
    def change(row):
        row["provenance"]["host"] = "<b>a|b</b>"

    fake_results.write_fake_results(tmp_path / "results", {"norm": ("rms", "layer")}, change=change)
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "out"), "--format", "markdown"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "out" / "index.html").exists() and (tmp_path / "out" / "verdicts.json").exists()
    figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(figures) >= 3 and all((tmp_path / "out" / name).is_file() for name in figures)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
        assert re.match(r"\| -", block.splitlines()[1])
    again = f"lmablate train sweeps=norm_and_activation results_dir={tmp_path / 'results'}"
    assert f"```\n{again}\n```" in text
    more = again.replace(" results_dir", " seed=0,1,2,3 results_dir")
    assert "No verdict on N7 (RMSNorm matches LayerNorm in loss" in text and f"The command for it: `{more}`" in text
    assert "\\<b\\>a\\|b\\</b\\>" in text
    arms = with_arms(load_runs(tmp_path / "results"))
    assert all(f"| {mean:.4f} |" in text for mean in arms.groupby("arm")["val_loss"].mean())
    assert not re.search(r"\n{4,}", text)
