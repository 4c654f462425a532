"""The report: complete, self-contained, honest about what is wrong with the runs, and clear when there is nothing to say."""

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import fake_results
import pytest

from lmablate.report.command import main
from lmablate.report.figures import analyses
from lmablate.report.reproduce import commands
from lmablate.report.summary import arms_table, followed, held_equal, notices, question, varied
from lmablate.results import load_runs
from lmablate.results.arms import with_arms
from lmablate.schema.result import RunResult

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The page's words, and a check that its elements nest and its ids are unique."""

    def __init__(self, text):
        super().__init__()
        self.words, self.open, self.ids, self.links, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)


def report(results, out):
    assert main([str(results), "--out", str(out)]) == 0
    return Page((out / "index.html").read_text())


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    base = tmp_path_factory.mktemp("report")
    rows = fake_results.write_fake_results(base / "results")
    page = report(base / "results", base / "out")
    return rows, base / "out", page


def test_everything_of_the_contract_is_written(written):
    _, out, _ = written
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    figures = {
        f"figures/{stem}.{end}"
        for stem in ("norm_and_activation", "final_losses", "loss_curves", "differences", "verdicts")
        for end in ("png", "svg")
    }
    tables = {f"tables/{name}.csv" for name in ("runs", "arms", "verdicts")}
    assert names == {"index.html", "verdicts.json"} | tables | figures


def test_the_page_needs_nothing_outside_itself(written):
    _, out, page = written
    text = (out / "index.html").read_text()
    assert not re.search(r"https?:|\"//[a-z]|@import|url\((?!#)", text)
    assert "xlink" not in text
    configs = [link for link in page.links if link.endswith("/config.yaml")]
    assert len(configs) == 8 and all((out / link).is_file() and link.startswith("../results/") for link in configs)
    assert all(link.startswith("#") or link == "data:," for link in page.links if link not in configs)
    targets = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_only_the_script_of_the_page_may_run(written):
    """The policy names the script by its hash, as a browser computes it; data come in an element that does not run."""
    _, out, page = written
    text = (out / "index.html").read_text()
    data, script = page.scripts
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json" id="data">', "<script>"]
    source = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.split("; ") == [
        "default-src 'none'", f"script-src 'sha256-{source}'", "style-src 'unsafe-inline'", "img-src data:", "base-uri 'none'",
        "form-action 'none'",
    ]  # fmt: skip
    assert not re.search(
        r"innerHTML|insertAdjacent|outerHTML|document\.write|eval\(|fetch|XMLHttp|import\(|\bon\w+=", script
    )
    assert json.loads(data)["questions"]


def test_figures_take_the_page_colours_in_light_and_dark(written):
    text = (written[1] / "index.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 4
    for svg in figures:
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that would not follow the page into the dark"
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)[1]
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    used = set(re.findall(r"var\((--\w+)\)", text))
    for block in blocks[:2]:
        assert used <= set(re.findall(r"(--\w+):", block))
    assert "prefers-color-scheme: dark" in style


def test_the_headline_table_has_every_arm_and_seed_best_first(written):
    rows, _, page = written
    text = page.text
    assert "Do the norm and the activation matter at equal parameters?" in text
    places = [
        text.index(f" {arm} ", text.index("tokens/s"))
        for arm in ("rms · swiglu", "layer · swiglu", "rms · gelu", "layer · gelu")
    ]
    assert places == sorted(places)
    for row in rows:
        assert f"{row['val_loss']:.4f}" in text
        assert row["run_id"] in text
    for words in ("1.314 M", "789.6 k", "6.725 M", "819.2 k", "5.934", "seed 0", "seed 1"):
        assert words in text


def test_tables_hold_the_numbers(written):
    rows, out, _ = written
    runs, arms = read_csv(out / "tables" / "runs.csv"), read_csv(out / "tables" / "arms.csv")
    assert {run["run_id"]: float(run["val_loss"]) for run in runs} == {row["run_id"]: row["val_loss"] for row in rows}
    assert {"norm", "activation", "optim.lr", "numerics", "provenance.torch", "command"} <= set(runs[0])
    assert runs[0]["command"].startswith("lmablate train norm=")
    columns = "arm norm activation n mean sd min max diverged val_bpb n_params n_params_non_embedding"
    columns += " flops_per_token tokens tokens_per_second"
    assert set(columns.split()) <= set(arms[0])
    best = [
        row["val_loss"] for row in rows if (row["choices"]["norm"], row["choices"]["activation"]) == ("rms", "swiglu")
    ]
    assert (arms[0]["arm"], arms[0]["n"], arms[0]["diverged"]) == ("rms · swiglu", "2", "0")
    assert float(arms[0]["mean"]) == pytest.approx(sum(best) / 2)
    assert (float(arms[0]["min"]), float(arms[0]["max"])) == (min(best), max(best))


def test_comparisons_without_a_margin_are_undecided_and_complete(written):
    verdicts = json.loads((written[1] / "verdicts.json").read_text())
    assert verdicts["schema"] == 4
    assert [(row["axis"], row["where"]) for row in verdicts["comparisons"]] == [
        ("norm", {"activation": "gelu"}), ("norm", {"activation": "swiglu"}),
        ("activation", {"norm": "layer"}), ("activation", {"norm": "rms"}),
    ]  # fmt: skip
    keys = "axis a b where n_pairs differences mean_difference sd_difference interval_95 verdict reason"
    for row in verdicts["comparisons"]:
        assert set(keys.split()) <= set(row)
        assert row["verdict"] == "undecided"
        assert len(row["differences"]) == row["n_pairs"] == 2


def test_sound_runs_carry_no_warning(written):
    assert "Before you believe it" not in written[2].text


def test_a_report_is_the_same_when_written_again(written):
    _, out, _ = written
    again = out.parent / "again"  # beside the results too, since links depend on the place
    report(out.parent / "results", again)
    for name in ("index.html", "verdicts.json", "tables/arms.csv", "figures/norm_and_activation.svg"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


# Runs that are not sound


def troubled(tmp_path, **keywords):
    fake_results.write_fake_results(tmp_path / "results", **keywords)
    runs = with_arms(load_runs(tmp_path / "results"))
    return notices(runs, arms_table(runs))


def for_layer(**changes):
    def change(row):
        if row["choices"]["norm"] == "layer":
            row.update({key: value(row) if callable(value) else value for key, value in changes.items()})

    return change


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"change": for_layer(n_params=1_400_000)}, "Parameters differ by 6.7% between arms"),
        ({"change": for_layer(n_params_non_embedding=1_000_000)}, "Non-embedding parameters differ by 27.0%"),
        ({"change": for_layer(flops_per_token=7_000_000)}, "FLOPs per token differ by 4.3%"),
        ({"change": for_layer(tokens=1000)}, "Training tokens differ between runs (1,000 to 819,200)"),
        ({"change": for_layer(science_version=0)}, "Runs of several science versions are mixed"),
        ({"change": lambda row: row.update(science_version=0)}, "8 of 8 runs are stale"),
        (
            {"change": for_layer(numerics=lambda row: {**row["numerics"], "compiled": True})},
            "(cpu bf16 compiled; cpu bf16 eager): such runs are not paired.",
        ),
        (
            {"change": lambda row: row["seed"] == 1 and row["numerics"].update(compiled=True)},
            "Within one arm: arm layer · gelu has 1 cpu bf16 compiled, 1 cpu bf16 eager",
        ),
        (
            {"change": for_layer(data=lambda row: {**row["data"], "fingerprint": "other"})},
            "Runs on different texts are mixed",
        ),
        ({"change": lambda row: row["data"].update(unigram_val_loss=4.38)}, "No better than a unigram model: "),
        (
            {"change": lambda row: row["seed"] == 1 and row.update(val_loss=row["data"]["unigram_val_loss"])},
            "Runs that learned nothing, at the loss of a unigram model: 1 of layer · gelu",
        ),
        ({"seeds": (0,)}, "One seed: a difference cannot be told from noise."),
        ({"diverged": lambda row: row["seed"] == 1 and row["choices"]["norm"] == "rms"}, "2 of 8 runs diverged"),
    ],
)
def test_what_stands_against_a_conclusion_is_said(tmp_path, keywords, expected):
    assert any(expected in line for line in troubled(tmp_path, **keywords))


def test_arms_with_different_seeds_are_named(tmp_path):
    fake_results.write_fake_results(tmp_path / "results", {"norm": ("rms",)}, seeds=(0, 1, 2))
    assert any(
        "Arms have different seeds: arm layer lacks 2. Only shared seeds are paired." in line
        for line in troubled(tmp_path, grid={"norm": ("layer",)}, seeds=(0, 1))
    )


def test_diverged_failed_unfinished_and_damaged_runs_are_on_the_page(tmp_path, capsys):
    results = tmp_path / "results"
    rows = fake_results.write_fake_results(
        results, {"norm": ("rms", "layer", "none")}, diverged=lambda row: row["choices"]["norm"] == "none"
    )
    fake_results.write_unfinished(results, "f" * 12, "failed", error="RuntimeError: <b>out of memory</b>")
    fake_results.write_unfinished(results, "c" * 12, "running")
    damaged = results / rows[0]["run_id"] / "result.json"
    damaged.write_text(damaged.read_text()[:500])
    page = report(results, results / "page")  # inside the results directory: it must not be taken for a run
    text = page.text
    assert f"✕ step {rows[-1]['diverged_at_step']}" in text
    assert "norm none (2 of 2 diverged)" in text
    assert "1 failed" in text
    assert "RuntimeError: <b>out of memory</b>" in text  # as text: escaped in the source
    assert "2 not finished" in text
    assert "running, step 120 of 400" in text
    assert str(damaged) in text
    said = capsys.readouterr().out
    assert str(damaged) in said
    assert "5 runs of 3 arms (3 more not finished)" in said
    report(results, results / "page")


def test_only_a_module_with_a_figure_is_taken_for_the_analysis_of_a_sweep(tmp_path):
    for name in ("norm_and_activation", "no_such_sweep", "curves", "_style", "os.path", "norm and"):
        fake_results.write_fake_results(tmp_path / name, {}, seeds=(0,), sweep=name)
        assert list(analyses(load_runs(tmp_path / name)["sweep"])) == ([name] if name == "norm_and_activation" else [])


def test_a_sweep_without_an_analysis_gets_the_general_figures(tmp_path):
    fake_results.write_fake_results(tmp_path / "results", {"norm": ("rms", "layer")}, seeds=(0,), sweep="no_such_sweep")
    page = report(tmp_path / "results", tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {
        "final_losses",
        "loss_curves",
        "differences",
        "verdicts",
    }
    assert "norm (layer, rms)" in page.text
    assert "lmablate train sweeps=no_such_sweep" in page.text


def test_one_run_makes_a_report_and_without_records_there_is_no_empty_chart(tmp_path):
    (row,) = fake_results.write_fake_results(tmp_path / "results", {}, seeds=(0,), sweep=None)
    (tmp_path / "results" / row["run_id"] / "history.jsonl").unlink()
    page = report(tmp_path / "results", tmp_path / "out")
    assert "1 run of 1 arm" in page.text
    assert json.loads((tmp_path / "out" / "verdicts.json").read_text())["comparisons"] == []
    assert "Loss curves" not in page.text and "No training records" not in page.text
    assert not (tmp_path / "out" / "figures" / "loss_curves.png").exists()
    assert 'class="chart"' not in (tmp_path / "out" / "index.html").read_text()
    assert (
        "No run has training records (history.jsonl; an archive keeps none), so there are no loss curves." in page.text
    )


def test_rows_with_the_contract_keys_alone_make_a_report(tmp_path):
    def bare(row):
        for key in ("config", "data", "sweep", "init_seed", "data_seed"):
            del row[key]
        row["provenance"] = {}

    results = tmp_path / "results"
    original = fake_results.fake_row
    for norm in ("rms", "layer"):
        row = original({"norm": norm})
        bare(row)
        fake_results.RunDirectory(results, row["run_id"]).finish(RunResult.model_validate(row))
    page = report(results, tmp_path / "out")
    assert "2 runs of 2 arms" in page.text


# Nothing to report


@pytest.mark.parametrize("kind", ["missing", "empty", "unfinished"])
def test_nothing_to_report_is_said_in_words_with_exit_code_2(tmp_path, capsys, kind):
    results = tmp_path / "results"
    if kind != "missing":
        results.mkdir()
    if kind == "unfinished":
        fake_results.write_unfinished(results, "f" * 12, "failed", error="x")
    assert main([str(results), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    expected = {"missing": "no such folder", "empty": "no runs at all", "unfinished": "1 failed"}
    assert str(results) in said
    assert expected[kind] in said
    assert not (tmp_path / "out").exists()


def test_an_unwritable_out_is_said_in_words(tmp_path, capsys):
    fake_results.write_fake_results(tmp_path / "results", {}, seeds=(0,))
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_runs_without_the_model_and_without_torch(tmp_path):
    fake_results.write_fake_results(tmp_path / "results", {}, seeds=(0,))
    code = "import sys; from lmablate.report.command import main; code = main(sys.argv[1:]); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "results", "--out", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"the page: {(tmp_path / 'out' / 'index.html').as_uri()}" in done.stdout
    assert done.stderr == ""


# Words


def test_what_varied_what_followed_and_what_was_held_equal(tmp_path):
    fake_results.write_fake_results(tmp_path)
    runs = with_arms(load_runs(tmp_path))
    assert question(runs) == "norm (layer, rms) × activation (gelu, swiglu)"
    assert [(row["name"], row["options"]) for row in varied(runs)] == [
        ("norm", ["layer", "rms"]),
        ("activation", ["gelu", "swiglu"]),
        ("seed", ["0", "1"]),
    ]
    follows = {row["name"]: row["values"] for row in followed(runs)}
    assert follows["model.d_ff"] == [("344", ["swiglu"]), ("512", ["gelu"])]
    assert follows["norm.eps"] == [("1e-05", ["layer"]), ("1e-06", ["rms"])]
    equal = dict(held_equal(runs))
    assert equal["tokens"] == "819,200"
    assert equal["optim.lr"] == "0.003"
    assert equal["posemb"] == "rope"
    assert not {"norm", "activation", "model.d_ff", "init_seed"} & set(equal)


@pytest.mark.parametrize(
    ("options", "sweep", "expected"),
    [
        (
            {"norm": ("rms", "layer"), "optim.lr": (0.001, 0.003)},
            None,
            ["-m norm=layer,rms optim.lr=0.001,0.003 seed=0,1"],
        ),
        ({"norm": ("rms",)}, "norm_and_activation", ["sweeps=norm_and_activation norm=rms"]),
    ],
)
def test_commands_make_the_runs_again(tmp_path, options, sweep, expected):
    fake_results.write_fake_results(tmp_path, options, sweep=sweep)
    assert commands(load_runs(tmp_path)) == [f"lmablate train {words}" for words in expected]


def test_runs_that_are_no_grid_get_no_grid_command(tmp_path):
    rows = fake_results.write_fake_results(tmp_path, sweep=None)
    shutil.rmtree(tmp_path / rows[0]["run_id"])
    assert commands(load_runs(tmp_path)) == []
