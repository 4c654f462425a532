"""The run store: what the trainer writes comes back as it was; what a kill or an accident leaves never spoils the rest."""

import json
import math
import warnings

import fake_results
import pandas as pd
import pytest

from lmablate.core.errors import ConfigError
from lmablate.core.paths import ROOT
from lmablate.results import load_history, load_runs
from lmablate.results.folders import SkippedFile
from lmablate.results.load import HISTORY_COLUMNS, load_unfinished
from lmablate.runs.run_directory import RunDirectory, check_writable, read_result_file
from lmablate.schema.result import REQUIRED, RunResult, markdown_table

NO_NAN = {"parse_constant": lambda word: pytest.fail(f"{word} is not JSON")}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "results", "0123456789ab")


def steps(directory):
    return [json.loads(line)["step"] for line in directory.history_path.read_text().splitlines()]


# Writing


def test_looking_at_a_run_makes_no_folder(run):
    assert not run.is_done
    assert run.read_result() is None
    assert run.truncate_history(-1) == []
    assert not run.path.parent.exists()


def test_every_record_is_a_line_on_disk_at_once_and_non_finite_is_null(run):
    for step, loss in enumerate((1.5, math.nan, math.inf, -math.inf)):
        run.append({"step": step, "train_loss": loss})
        last = run.history_path.read_text().splitlines()[-1]
        assert json.loads(last, **NO_NAN) == {"step": step, "train_loss": loss if math.isfinite(loss) else None}
    assert steps(run) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "tail", [b"", b'{"step": 40, "tra', b'{"step": 40, "train_loss": 2.0}', b"\x00\x00\x00", b'{"ste\xff']
)
def test_truncating_forgets_later_records_and_mends_a_torn_line(run, tail):
    for step in (0, 10, 20, 30):
        run.append({"step": step, "train_loss": step / 7})
    with run.history_path.open("ab") as file:
        file.write(tail)
    kept = run.truncate_history(20)
    assert [record["step"] for record in kept] == steps(run) == [0, 10, 20]
    assert kept[2]["train_loss"] == 20 / 7
    run.append({"step": 30})
    assert steps(run) == [0, 10, 20, 30]
    assert run.truncate_history(-1) == []
    assert run.history_path.read_text() == ""


def test_a_crash_while_truncating_leaves_the_old_history(run, monkeypatch):
    for step in (0, 10):
        run.append({"step": step})

    def crash(*paths):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="no space"):
        run.truncate_history(0)
    assert steps(run) == [0, 10]
    assert [path.name for path in run.path.iterdir()] == ["history.jsonl"]


def test_result_comes_last_is_valid_json_and_marks_the_run_done(run):
    row = {**fake_results.fake_row({}), "run_id": run.run_id, "train_loss": math.nan}
    run.create()
    assert not run.is_done
    run.finish(RunResult.model_validate(row))
    assert run.is_done
    stored = json.loads(run.result_path.read_text(), **NO_NAN)
    assert stored.pop("checksum")
    assert stored == run.read_result().model_dump(exclude_unset=True) == {**row, "train_loss": None}
    assert [path.name for path in run.path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_result_without_a_contract_key_is_refused(run, key):
    row = {**fake_results.fake_row({}), "run_id": run.run_id}
    del row[key]
    with pytest.raises(ValueError, match=rf"{key}\n  Field required"):
        run.finish(RunResult.model_validate(row))
    run.create().result_path.write_text(json.dumps(row))
    assert read_result_file(run.result_path) == (None, f"lacks {key}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "done"}, "status is 'done'"),
        ({"n_params": 1.5}, "n_params=1.5"),
        ({"val_loss": "4.3"}, "val_loss='4.3'"),
        ({"choices": {"norm": None}}, "choices"),
        ({"val_accuracy_by_length": True}, "val_accuracy_by_length=True"),
    ],
)
def test_a_result_of_the_wrong_kind_is_refused(run, change, words):
    row = {**fake_results.fake_row({}), "run_id": run.run_id, **change}
    with pytest.raises(ValueError):
        run.finish(RunResult.model_validate(row))
    run.create().result_path.write_text(json.dumps(row))
    found, problem = read_result_file(run.result_path)
    assert found is None and words in problem


def test_a_result_goes_into_the_folder_of_its_own_run(run):
    row = {**fake_results.fake_row({}), "run_id": "another"}
    with pytest.raises(ValueError, match="handed to the folder of run 0123456789ab"):
        run.finish(RunResult.model_validate(row))


def test_status_is_replaced_whole(run):
    run.write_status({"state": "running", "step": 1, "train_loss": math.inf})
    run.write_status({"state": "failed", "error": "out of memory"})
    assert json.loads(run.status_path.read_text()) == {"state": "failed", "error": "out of memory"}
    assert [path.name for path in run.path.iterdir()] == ["status.json"]


def test_a_damaged_result_does_not_count_as_done(run):
    run.finish(RunResult.model_validate({**fake_results.fake_row({}), "run_id": run.run_id}))
    run.result_path.write_text(run.result_path.read_text()[:200])
    assert not run.is_done


def test_an_unwritable_folder_is_named_with_reason_and_mend(tmp_path):
    check_writable(tmp_path / "new" / "results")
    assert list((tmp_path / "new" / "results").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as error:
        check_writable(tmp_path / "file" / "results")
    assert str(tmp_path / "file" / "results") in str(error.value)
    assert "not a directory" in str(error.value)
    assert "results_dir=PATH" in str(error.value)


# Reading runs


def test_a_row_is_flat_and_the_axis_words_are_its_columns(tmp_path):
    rows = fake_results.write_fake_results(tmp_path, seeds=(0,))
    runs = load_runs(tmp_path).set_index("run_id")
    for row in rows:
        got = runs.loc[row["run_id"]]
        assert got["norm"] == row["choices"]["norm"]
        assert got["activation"] == row["choices"]["activation"]
        assert got["data"] == "kjv"
        assert got["optim.lr"] == 3e-3
        assert got["model.d_ff"] == row["config"]["model"]["d_ff"]
        assert got["val_loss"] == row["val_loss"]
        assert got["numerics"] == "cpu bf16 eager"
        assert got["numerics.device"] == "cpu"
        assert got["data.fingerprint"] == row["data"]["fingerprint"]
        assert got["provenance.torch"] == row["provenance"]["torch"]
        assert got["provenance.overrides"] == tuple(row["provenance"]["overrides"])
    assert runs["seed"].dtype == "Int64"
    assert runs["n_params"].dtype == "int64"
    assert "config" not in runs


def test_nulls_are_missing_numbers_not_text(tmp_path):
    fake_results.write_fake_results(tmp_path, {}, seeds=(0, 1), diverged=lambda row: row["seed"] == 1)
    runs = load_runs(tmp_path)
    assert runs["val_loss"].dtype == "float64"
    assert runs["val_loss"].isna().sum() == 1
    assert runs.set_index("status").loc["diverged", "diverged_at_step"] > 0
    assert load_runs(tmp_path, status="completed")["seed"].tolist() == [0]
    assert len(load_runs(tmp_path, status=("completed", "diverged"))) == 2
    with pytest.raises(ConfigError, match="done: unknown; there are completed, diverged, failed"):
        load_runs(tmp_path, status="done")


def test_one_seed_column_tells_weights_from_data_order(tmp_path):
    fake_results.write_fake_results(
        tmp_path, {}, seeds=(3,), change=lambda row: row.update(seed=None, init_seed=1, data_seed=2)
    )
    row = load_runs(tmp_path).iloc[0]
    assert row["seed"] is pd.NA
    assert (row["init_seed"], row["data_seed"]) == (1, 2)


def test_name_clashes_the_axis_wins_and_nothing_is_lost(tmp_path):
    fake_results.write_fake_results(
        tmp_path / "a", {}, seeds=(0,), change=lambda row: row["config"]["data"].update(val_bytes=7)
    )
    row = load_runs(tmp_path / "a").iloc[0]
    assert row["data.val_bytes"] == 215_000
    assert row["config.data.val_bytes"] == 7
    fake_results.write_fake_results(
        tmp_path / "b", {}, seeds=(0,), change=lambda row: row["choices"].update(sweep="mine")
    )
    assert load_runs(tmp_path / "b").iloc[0]["sweep"] == "mine"


DAMAGE = {
    "truncated": lambda text: text[:300],
    "empty": lambda text: "",
    "not an object": lambda text: "[1, 2]",
    "keys missing": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k not in ("val_loss", "numerics")}
    ),
    "wrong type": lambda text: json.dumps({**json.loads(text), "choices": "rms"}),
    "binary": lambda text: "\x00" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_skipped_by_name_and_the_rest_loads(tmp_path, damage):
    rows = fake_results.write_fake_results(tmp_path)
    broken = tmp_path / rows[0]["run_id"] / "result.json"
    broken.write_text(DAMAGE[damage](broken.read_text()))
    with pytest.warns(SkippedFile) as caught:
        runs = load_runs(tmp_path)
    assert set(runs["run_id"]) == {row["run_id"] for row in rows[1:]}
    assert [str(broken) in str(warning.message) for warning in caught] == [True]
    if damage == "keys missing":
        assert "lacks val_loss, numerics" in str(caught[0].message)


def test_an_empty_directory_has_the_columns_and_a_missing_one_is_an_error(tmp_path):
    runs = load_runs(tmp_path)
    assert len(runs) == 0
    assert set(REQUIRED) - {"choices", "provenance"} <= set(runs.columns)
    assert runs["val_loss"].dtype == "float64"
    assert list(load_history(tmp_path).columns) == list(HISTORY_COLUMNS)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    wrong = {"nowhere": "no such folder", "file": "a file, not a folder", "loop": "levels of symbolic links"}
    for bad, words in wrong.items():
        for load in (load_runs, load_history, load_unfinished):
            with pytest.raises(ConfigError, match=words):
                load(tmp_path / bad)


def test_several_directories_load_as_one(tmp_path):
    fake_results.write_fake_results(tmp_path / "a", {"norm": ("rms",)})
    fake_results.write_fake_results(tmp_path / "b", {"norm": ("layer",)})
    both = [tmp_path / "a", str(tmp_path / "b"), tmp_path / "b" / ".." / "a"]
    assert sorted(load_runs(both)["norm"]) == ["layer", "layer", "rms", "rms"]
    assert load_history(both)["run_id"].nunique() == 4


def copies(tmp_path, **changes):
    """Two folders with the same two runs; those of `b` were changed."""
    for name, change in (("a", {}), ("b", changes)):
        fake_results.write_fake_results(
            tmp_path / name, {"norm": ("rms",)}, change=lambda row, new=change: row.update(new)
        )
    return [tmp_path / "a", tmp_path / "b"]


COMPILED = {"device": "cpu", "precision": "bf16", "compiled": True, "gang": False, "threads": 1}


def test_a_run_in_several_folders_counts_once_and_it_is_said_which(tmp_path):
    folders = copies(tmp_path, numerics=COMPILED, val_loss=3.9715)
    with pytest.warns(SkippedFile) as said:
        runs = load_runs(folders)
    assert list(runs["numerics"]) == ["cpu bf16 eager"] * 2 and runs["run_id"].is_unique
    (words,) = (str(one.message) for one in said)
    assert (
        f"2 runs stand in both {folders[0]} and {folders[1]}: those of {folders[0]} count, being named first." in words
    )
    own = runs.set_index("run_id")["val_loss"]
    for run_id in runs["run_id"]:
        assert f"{run_id}: {own[run_id]:.4f} (cpu bf16 eager) counts, 3.9715 (cpu bf16 compiled) does not" in words


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"science_version": 0}, "being of the present code"),
        ({"status": "failed", "val_loss": None}, "since the others failed"),
        (None, "having training records"),
    ],
)
def test_of_two_copies_the_one_that_is_worth_more_counts(tmp_path, changes, why):
    worse, better = copies(tmp_path)[::-1]
    for path in worse.glob("*/result.json"):
        if changes is None:
            (path.parent / "history.jsonl").unlink()
        else:
            fake_results.edit_result(worse, path.parent.name, tokens=1, **changes)
    with pytest.warns(SkippedFile, match=f"those of {better} count, {why}. "):
        assert set(load_runs([worse, better])["tokens"]) == {819_200}
    assert len(load_history([worse, better])) == len(load_history(better))


def test_records_and_unfinished_runs_are_of_the_copy_that_is_done(tmp_path):
    stopped, done = copies(tmp_path)
    for path in stopped.glob("*/result.json"):
        path.unlink()
        history = path.parent / "history.jsonl"
        history.write_text(history.read_text().splitlines()[0] + "\n")
    assert load_unfinished([stopped, done]) == [] and len(load_unfinished(stopped)) == 2
    assert len(load_history([stopped, done])) == len(load_history(done))


# Reading histories


def test_history_is_tidy_and_complete(tmp_path):
    rows = fake_results.write_fake_results(tmp_path, steps=80)
    history = load_history(tmp_path)
    assert list(history.columns) == list(HISTORY_COLUMNS)
    assert history["step"].dtype == "int64"
    assert set(history["run_id"]) == {row["run_id"] for row in rows}
    for row in rows:
        records = history[history["run_id"] == row["run_id"]]
        assert records["step"].is_monotonic_increasing
        assert records["val_loss"].dropna().iloc[-1] == pytest.approx(row["val_loss"])
        assert math.isnan(records["train_loss"].iloc[0])
    one = rows[0]["run_id"]
    some = load_history(tmp_path, run_ids=[one], columns=["tokens", "val_loss"])
    assert list(some.columns) == ["run_id", "tokens", "val_loss"]
    assert set(some["run_id"]) == {one}
    with pytest.raises(ConfigError, match="no column loss; there are run_id, step"):
        load_history(tmp_path, columns=["loss"])


def test_a_torn_line_is_dropped_and_a_damaged_history_skipped_by_name(tmp_path):
    rows = fake_results.write_fake_results(tmp_path, steps=80)
    torn, broken, stepless = (tmp_path / row["run_id"] / "history.jsonl" for row in rows[:3])
    whole = len(torn.read_text().splitlines())
    torn.write_text(torn.read_text() + '{"step": 81, "tok')
    broken.write_text(broken.read_text().replace('{"step": 4,', '{"step": 4', 1))
    stepless.write_text(stepless.read_text().replace('"step"', '"stop"', 1))
    with pytest.warns(SkippedFile) as caught:
        history = load_history(tmp_path)
    assert sorted(str(warning.message).split("history.jsonl")[0] for warning in caught) == sorted(
        str(path.parent) + "/" for path in (broken, stepless)
    )
    assert (history["run_id"] == rows[0]["run_id"]).sum() == whole
    assert history["run_id"].nunique() == len(rows) - 2


def test_what_else_was_recorded_is_a_column_too(tmp_path):
    directory = RunDirectory(tmp_path, "a" * 12)
    directory.append({"step": 0, "residual_rms": 1.25})
    assert load_history(tmp_path)["residual_rms"].tolist() == [1.25]


# Runs that are not done


def test_unfinished_runs_are_listed_with_what_is_known(tmp_path):
    rows = fake_results.write_fake_results(tmp_path, {}, seeds=(0, 1))
    fake_results.write_unfinished(tmp_path, "f" * 12, "failed", error="RuntimeError: out of memory")
    fake_results.write_unfinished(tmp_path, "c" * 12, "running")
    RunDirectory(tmp_path, "b" * 12).create().config_path.write_text("[unclosed")
    (tmp_path / rows[0]["run_id"] / "result.json").write_text("{")
    (tmp_path / "page" / "figures").mkdir(parents=True)
    (tmp_path / ".hydra").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {row["run_id"]: row for row in load_unfinished(tmp_path)}
    states = {rows[0]["run_id"]: "damaged", "b" * 12: "not started", "c" * 12: "running", "f" * 12: "failed"}
    assert {run_id: row["state"] for run_id, row in found.items()} == states
    assert found["f" * 12]["error"] == "RuntimeError: out of memory"
    assert found["c" * 12]["overrides"] == ("norm=none", "seed=7")
    assert (found["c" * 12]["step"], found["c" * 12]["steps"]) == (120, 400)


def test_the_page_of_results_is_made_of_the_type():
    assert (ROOT / "docs" / "reference" / "results.md").read_text().endswith("test holds it -->\n" + markdown_table())


def test_a_result_is_asked_for_its_columns_and_for_nothing_else_of_its_class():
    row = RunResult.model_validate({**fake_results.fake_row({}), "val_loss_prefix": 3.5})
    assert row["val_loss_prefix"] == row.get("val_loss_prefix") == 3.5
    assert row["val_loss"] == row.val_loss and "val_loss_prefix" in set(row.keys())
    assert row.get("copy") is None and row.get("model_fields", "none") == "none"
    with pytest.raises(KeyError, match="copy"):
        row["copy"]
