"""``lmablate evaluate`` and evaluations at the end of training: what is asked for lies beside the row, and no row changes."""

import json
import shutil

import pytest
from corpus import QUICK, write_corpus
from matplotlib.figure import Figure

from lmablate.analysis import length as figures
from lmablate.archive import restore, save
from lmablate.cli.evaluate import main
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import prepare_jobs, put_aside
from lmablate.results import load_runs
from lmablate.results.evaluations import load_evaluations, load_positions
from lmablate.runs.gang_run import train_group
from lmablate.runs.prepared import load_data, prepare_run
from lmablate.runs.run import execute
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.result import RunResult

ASKED = ("runtime.evaluate_lengths=[1,2,4]", "runtime.evaluate_stride=48")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("evaluate") / "text")
    quick = ("trainer.precision=fp32", "runtime.compile=false", "runtime.evaluations=1", "trainer.steps=6")
    return [*QUICK, f"data.paths={text}/*.txt", *quick]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """A finished run of rope that asked for lengths, and one of alibi that did not: rows by posemb, and their folder."""
    folder = tmp_path_factory.mktemp("results")
    rows = {}
    for posemb, asked in (("rope", ASKED), ("alibi", ())):
        cfg = compose([*words, *asked, f"posemb={posemb}", f"results_dir={folder}"])
        rows[posemb] = execute(prepare_run(cfg))
    return rows, folder


def told(capsys, *argv):
    """The exit code and everything that was printed."""
    code = main([str(word) for word in argv])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_training_leaves_what_it_was_asked_for_and_the_same_row(trained, words, tmp_path):
    rows, folder = trained
    found = load_evaluations(folder)
    own = found[found["run_id"] == rows["rope"]["run_id"]]
    assert list(zip(own["length"], own["stride"], strict=True)) == [(32, 32), (64, 64), (64, 48), (128, 128), (128, 48)]
    assert own["times"].tolist() == [1, 2, 2, 4, 4]
    assert own["sliding"].tolist() == [False, False, True, False, True]
    assert own.iloc[0]["nats_per_token"] == pytest.approx(rows["rope"]["val_loss"], rel=1e-6)
    assert own.iloc[0]["bits_per_byte"] == pytest.approx(rows["rope"]["val_bpb"], rel=1e-6)
    assert own["tokens"].nunique() == 1
    assert not (set(found["run_id"]) - {rows["rope"]["run_id"]})
    cfg = compose([*words, f"results_dir={tmp_path}"])
    plain = execute(prepare_run(cfg))
    assert (plain["run_id"], plain["val_loss"]) == (rows["rope"]["run_id"], rows["rope"]["val_loss"])


def test_a_restored_row_whose_evaluation_needs_its_weights_is_put_aside_and_trained_again(trained, words, tmp_path):
    """So that evaluations of two trainings never stand beside one row."""
    rows, folder = trained
    run_id = rows["alibi"]["run_id"]
    shutil.copytree(folder / run_id, tmp_path / run_id)
    (job,), _ = prepare_jobs([compose([*words, *ASKED, "posemb=alibi", f"results_dir={tmp_path}"])])
    assert (job.run_id, job.done, job.lacks_weights) == (run_id, False, False)  # the evaluation alone is to be made
    shutil.rmtree(tmp_path / run_id / "checkpoint")
    assert job.lacks_weights
    put_aside([job])
    assert not (tmp_path / run_id).exists()
    (kept,) = (tmp_path / ".replaced").iterdir()
    assert json.loads((kept / "result.json").read_text())["run_id"] == run_id


def test_positions_of_a_run_add_up(trained):
    places = load_positions(trained[1])
    for keys, own in places.groupby(["run_id", "length", "stride"]):
        lengths = load_evaluations(trained[1])
        row = lengths[(lengths["run_id"] == keys[0]) & (lengths["length"] == keys[1]) & (lengths["stride"] == keys[2])]
        total = (own["tokens"] * own["nats_per_token"]).sum() / own["tokens"].sum()
        assert own["tokens"].sum() == row["tokens"].item()
        assert total == pytest.approx(row["nats_per_token"].item(), rel=1e-12)


def test_a_finished_run_that_lacks_its_evaluation_is_made_up_for(words, tmp_path, monkeypatch):
    plain = compose([*words, f"results_dir={tmp_path}"])
    data = load_data(plain)
    row = execute(prepare_run(plain, data))
    asked = compose([*words, *ASKED, f"results_dir={tmp_path}"])
    (job,), stores = prepare_jobs([asked])
    directory = RunDirectory(tmp_path, row["run_id"])
    before = directory.result_path.read_bytes(), directory.history_path.read_bytes()
    assert job.run_id == row["run_id"]
    assert not job.done
    monkeypatch.setattr("lmablate.training.trainer.Trainer.backward", None)  # nothing is trained
    train_group([prepare_run(job.cfg, stores[job.run_id])])
    assert job.done
    assert (directory.result_path.read_bytes(), directory.history_path.read_bytes()) == before
    assert len(load_evaluations(tmp_path)) == 5


def test_any_text_is_scored_as_the_validation_text_is(trained, words, tmp_path, capsys):
    """The documents of the validation text as rows of a file give the run's own bits per byte."""
    rows, folder = trained
    data = load_data(compose(words))
    documents = data.decode(data.val).removesuffix("<|endoftext|>").split("<|endoftext|>")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    run = folder / rows["alibi"]["run_id"]
    code, said = told(
        capsys, run, "--data", tmp_path / "*.jsonl", "--text-field", "body", "--json", tmp_path / "all.json"
    )
    assert code == 0, said
    (content,) = json.loads((tmp_path / "all.json").read_text())
    assert content["text"]["bytes"] == data.val_bytes
    assert content["results"][0]["bits_per_byte"] == pytest.approx(rows["alibi"]["val_bpb"], rel=1e-6)
    table = content["results"][0]["calibration"]
    gaps = sum(abs(b["accuracy"] - b["confidence"]) * b["count"] for b in table if b["count"])
    assert content["results"][0]["ece"] == pytest.approx(gaps / content["text"]["tokens"])
    assert f"{rows['alibi']['val_bpb']:.4f}" in said


def test_a_folder_of_runs_tables_and_a_figure(trained, tmp_path, capsys):
    rows, folder = trained
    words = ("--lengths", "2", "--set", "posemb=rope_yarn", "--positions", "--out", tmp_path / "out")
    code, said = told(capsys, folder, *words)
    assert code == 0, said
    assert f"{rows['alibi']['run_id']}: left out" in said
    assert "with posemb=rope_yarn posemb.original_length=32 posemb.factor=2" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"lengths.csv", "positions.csv", "length.png", "length.svg"}
    found = load_evaluations(folder)
    scaled = found[found["changes"] != ""]
    assert scaled["run_id"].tolist() == [rows["rope"]["run_id"]]
    assert scaled["nats_per_token"].item() != found[found["length"] == 64].iloc[0]["nats_per_token"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{none}"], "no run is there"),
        (["{run}", "{run}x"], "no run is there"),  # before the first is evaluated: what is shown begins with it
        (["{run}", "--lengths", "1,x"], "--lengths 1,x: give multiples"),
        (["{run}", "--lengths", "999"], "fewer than one window of 31,968"),
        (["{run}", "--stride", "40"], "--stride=40: windows that overlap move on by 1 to 31"),
        (["{run}", "--data", "nothing.txt"], "--data=nothing.txt matches no file"),
        (["{run}", "--set", "posemb=rope_yarn"], "tells positions in another way"),
        (["{run}", "--json", "/proc/none/x.json"], "--json: cannot write"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_paragraph(trained, argv, said, tmp_path, capsys):
    run = trained[1] / trained[0]["alibi"]["run_id"]
    code, shown = told(capsys, *(word.format(run=run, none=tmp_path) for word in argv))
    assert code == 2
    assert said in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_runs_without_weights_are_refused(trained, tmp_path, capsys):
    row = trained[0]["alibi"]
    directory = RunDirectory(tmp_path, row["run_id"])
    directory.create().config_path.write_text("{}")
    assert "is not finished" in told(capsys, directory.path)[1]
    directory.finish(RunResult.model_validate({**row, "status": "diverged", "diverged_at_step": 3}))
    assert "the run diverged at step 3" in told(capsys, directory.path)[1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["posemb=learned", *ASKED], "posemb=learned has positions for 32 tokens, and 128 are asked for"),
        (["runtime.evaluate_stride=8"], "has no effect without runtime.evaluate_lengths"),
        (["runtime.evaluate_lengths=[1.01]"], "whole number of tokens"),
        (["runtime.evaluate_lengths=[999]"], "the validation text has"),
        (["objective=prefix", *ASKED], "objective=prefix"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_training(words, asked, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        prepare_jobs([compose([*words, *asked, f"results_dir={tmp_path}"])])


def test_an_archive_keeps_evaluations_and_the_run_then_counts_as_done(trained, words, tmp_path):
    rows, folder = trained
    save(folder, tmp_path / "archive")
    restore(tmp_path / "archive", tmp_path / "back")
    before, after = (
        load_evaluations(where).set_index(["run_id", "length", "stride", "changes"])
        for where in (folder, tmp_path / "back")
    )
    before = before[before["text"] == "validation"].sort_index()
    assert after.sort_index()["nats_per_token"].tolist() == pytest.approx(before["nats_per_token"].tolist(), rel=1e-6)
    (job,), _ = prepare_jobs([compose([*words, *ASKED, f"results_dir={tmp_path / 'back'}"])])
    assert job.run_id == rows["rope"]["run_id"]
    assert job.done


def test_the_figure_shows_ours_and_the_published_curves(trained):
    runs = load_runs(trained[1])
    figure = figures.figure(runs.assign(arm=runs["posemb"], stage="evaluate"))
    assert isinstance(figure, Figure)
    ours, theirs, places, legend = figure.axes
    drawn = [line for line in ours.lines if line.get_marker() == "o" or line.get_linestyle() == "--"]
    found = load_evaluations(trained[1])
    flat = found[(found["changes"] == "") & ~found["sliding"] & (found["text"] == "validation")]
    base = flat[flat["times"] == 1]["nats_per_token"].item()
    expected = [value - base for value in flat["nats_per_token"]]
    solid = [line for line in ours.lines if list(line.get_xdata()) == [1, 2, 4] and line.get_linestyle() == "-"]
    assert list(solid[0].get_ydata()) == pytest.approx(expected)
    assert drawn
    assert {tuple(line.get_xdata())[-1] for line in theirs.lines} >= {30.30, 6.859, 6}
    assert ours.get_ylim() == theirs.get_ylim()
    assert len(places.lines) >= 2
    assert {"rope", "alibi", "sinusoidal", "t5"} <= {text.get_text() for text in legend.get_legend().get_texts()}


def test_without_evaluations_the_figure_says_what_to_run(tmp_path):
    empty = load_runs(tmp_path)
    assert "sweeps=length" in figures.figure(empty).texts[0].get_text()


def test_an_evaluation_that_fails_costs_no_training(words, tmp_path, monkeypatch):
    cfg = compose([*words, *ASKED, f"results_dir={tmp_path}"])
    data = load_data(cfg)
    with monkeypatch.context() as patch:
        patch.setattr("lmablate.runs.evaluate_run.at_lengths", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(prepare_run(cfg, data))
    (job,), _ = prepare_jobs([cfg])
    assert job.directory.is_done
    assert not job.done
    execute(prepare_run(job.cfg, data))
    assert job.done
