"""Finished runs kept small and taken up again as done."""

import json

import pytest

from lmablate import archive
from lmablate.core.errors import ConfigError
from lmablate.results import load_runs
from lmablate.results.studies import load_studies, write_study
from tests.fake_results import write_fake_results


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write_fake_results(folder, {"norm": ("rms",)}, seeds=range(3), sweep="one")
    write_fake_results(folder, {"norm": ("layer",)}, seeds=(7,), sweep="other")
    return folder


def test_a_round_trip_keeps_every_number(results, tmp_path):
    assert archive.save(results, tmp_path / "kept", "one") == 3
    assert archive.restore(tmp_path / "kept", tmp_path / "back") == (3, 0)
    before, after = load_runs(results), load_runs(tmp_path / "back")
    before = before[before["sweep"] == "one"].reset_index(drop=True)
    columns = [column for column in after.columns if not column.startswith("provenance.")]
    assert set(before.columns) - set(after.columns) <= {"provenance.host"}
    assert before[columns].equals(after[columns])
    assert len(after) == 3


def test_neither_host_nor_folders_are_kept(results, tmp_path):
    path = next(results.glob("*/result.json"))
    row = json.loads(path.read_text())
    row.pop("checksum", None)
    row["provenance"] |= {
        "host": "my-laptop",
        "overrides": ["results_dir=/home/me/secret", "runtime.cache_dir=/home/me/c", "seed=3"],
    }
    path.write_text(json.dumps(row))
    archive.save(results, tmp_path / "kept")
    text = (tmp_path / "kept" / "rows.jsonl").read_text()
    assert "my-laptop" not in text
    assert "/home/me" not in text
    assert "seed=3" in text


def test_what_is_there_stays(results, tmp_path):
    archive.save(results, tmp_path / "kept")
    path = next(results.glob("*/result.json"))
    row = json.loads(path.read_text())
    row.pop("checksum", None)
    path.write_text(json.dumps(row | {"val_loss": 1.25}))
    assert archive.restore(tmp_path / "kept", results) == (0, 4)
    assert json.loads(path.read_text())["val_loss"] == 1.25


def test_a_study_comes_with_its_runs_and_nothing_else(results, tmp_path):
    ids = sorted(path.parent.name for path in results.glob("*/result.json"))
    uses = [{"run_id": run, "arm": "a", "stage": "evaluate"} for run in ids[:2]]
    write_study(results, "asked", {"sweep": "asked", "runs": uses})
    assert archive.save(results, tmp_path / "kept", "asked") == 2
    archive.restore(tmp_path / "kept", tmp_path / "back")
    assert sorted(load_runs(tmp_path / "back")["run_id"]) == ids[:2]
    assert load_studies(tmp_path / "back") == load_studies(results)


def test_failed_runs_are_no_results(tmp_path):
    failed = {"status": "failed", "val_loss": None}
    write_fake_results(tmp_path / "r", {"norm": ("rms",)}, seeds=(0,), change=lambda row: row.update(failed))
    with pytest.raises(ConfigError, match="no finished run"):
        archive.save(tmp_path / "r", tmp_path / "kept")


def test_an_archive_that_is_none_keeps_those_before_it_from_being_restored(results, tmp_path, capsys):
    archive.save(results, tmp_path / "kept")
    assert archive.main(["restore", str(tmp_path / "kept"), str(tmp_path / "none"), str(tmp_path / "back")]) == 2
    assert "none: not an archive of runs" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_errors_name_what_there_is(results, tmp_path, capsys):
    assert archive.main(["save", str(results), str(tmp_path / "k"), "--sweep", "nope"]) == 2
    assert "it has one, other" in capsys.readouterr().err
    assert archive.main(["restore", str(tmp_path), str(tmp_path / "back")]) == 2
    assert "not an archive" in capsys.readouterr().err
    assert archive.main(["save", str(tmp_path / "missing"), str(tmp_path / "k")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "."])
def test_no_name_leads_out_of_the_results(results, tmp_path, name):
    archive.save(results, tmp_path / "kept")
    path = tmp_path / "kept" / "rows.jsonl"
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, json.dumps(json.loads(first) | {"run_id": name}), *rest]))
    with pytest.raises(ConfigError, match="not the name of a run"):
        archive.restore(tmp_path / "kept", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_row_is_refused_by_name(results, tmp_path):
    archive.save(results, tmp_path / "kept")
    path = tmp_path / "kept" / "rows.jsonl"
    path.write_text(path.read_text().replace('"n_params": ', '"n_parameters": '))
    with pytest.raises(ConfigError, match="lacks n_params"):
        archive.restore(tmp_path / "kept", tmp_path / "back")
