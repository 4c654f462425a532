"""What a sweep consists of and what has become of each run, as ``lmablate status`` tells it."""

import json
import re

import pytest
from corpus import QUICK, write_corpus
from fake_results import write_fake_results

from lmablate import status
from lmablate.config import compose
from lmablate.core.locks import FileLock
from lmablate.launcher import sweep_manifest
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.sweep_manifest import load_sweeps, record, run_status
from lmablate.results import load_runs
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.result import RunResult


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("ledger") / "text")


def jobs_of(text, results, *grid):
    words = [*QUICK, "trainer.steps=4", "runtime.compile=false", "runtime.device=cpu", "trainer.precision=fp32"]
    words += [f"data.paths={text}/*.txt", f"results_dir={results}", "runtime.progress=off"]
    return prepare_jobs([compose([*words, *one]) for one in grid])[0]


def finished(folder, run_id, **changes):
    """A result row under another name."""
    directory = RunDirectory(folder, run_id)
    (row,) = write_fake_results(folder / "aside", {"norm": ["rms"]}, seeds=[0])
    directory.finish(RunResult.model_validate(row | {"run_id": run_id} | changes))
    return directory


def test_every_state_is_told_by_lock_result_and_last_word(tmp_path):
    words = {f"{i}" * 8: state for i, state in enumerate(sweep_manifest.STATES)}
    by_state = {state: run_id for run_id, state in words.items()}
    finished(tmp_path, by_state["done"])
    finished(tmp_path, by_state["diverged"], status="diverged", val_loss=None, diverged_at_step=3)
    finished(tmp_path, by_state["damaged"]).result_path.write_text("{")
    for state, said in (("running", "running"), ("stale", "running"), ("stopped", "stopped"), ("failed", "failed")):
        directory = RunDirectory(tmp_path, by_state[state])
        directory.write_status({"state": said, "step": 3, "steps": 9, "error": "no" if said == "failed" else None})
    lock = FileLock.acquire(tmp_path / by_state["running"] / ".lock")
    found = {run_id: run_status(tmp_path, run_id) for run_id in words}
    assert {run_id: row["state"] for run_id, row in found.items()} == words
    assert found[by_state["failed"]]["error"] == "no"
    assert found[by_state["running"]]["pid"] == json.loads(lock.path.read_text())["pid"]
    assert found[by_state["done"]]["val_loss"] is not None
    lock.release()
    assert run_status(tmp_path, by_state["running"])["state"] == "stale"


def test_a_command_of_several_runs_is_written_down_and_those_never_started_are_missing(text, tmp_path, capsys):
    jobs = jobs_of(text, tmp_path, ("seed=0",), ("seed=1",))
    record(jobs)
    record(jobs)  # the same command has the same list
    (sweep,) = load_sweeps(tmp_path)
    assert list(sweep.jobs) == [job.run_id for job in jobs]
    assert {run_status(tmp_path, run_id)["state"] for run_id in sweep.jobs} == {"missing"}
    assert status.main([str(tmp_path)]) == 0
    assert "grid-" in (said := capsys.readouterr().out) and "2 runs, 2 missing" in said
    record(jobs_of(text, tmp_path, ("seed=5",)))  # a single run is no sweep
    assert len(load_sweeps(tmp_path)) == 1


def test_a_grid_is_named_by_what_its_runs_differ_in_and_a_single_run_by_what_was_asked_for(
    text, tmp_path, capsys, monkeypatch
):
    record(jobs_of(text, tmp_path, ("seed=0", "norm=rms"), ("seed=1", "norm=layer")))
    (row,) = write_fake_results(tmp_path / "aside", {"norm": ["layer"]}, seeds=[0])
    words = ["norm=layer", "data.paths=/home/me/texts/en/*.txt", "seed=0", "runtime.threads=1"]
    row["provenance"]["overrides"] = words
    RunDirectory(tmp_path, "a" * 12).finish(RunResult.model_validate(row | {"run_id": "a" * 12}))
    failed = RunDirectory(tmp_path, "b" * 12)
    failed.write_status({"state": "failed", "step": 3, "steps": 9, "error": "killed by [/SIGKILL]"})
    failed.config_path.write_text("overrides:\n- norm=none\n- seed=7\n")
    monkeypatch.setenv("COLUMNS", "60")
    assert status.main([str(tmp_path), "--all"]) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert re.fullmatch(r"grid-\w{8} \(seed=0,1 norm=rms,layer\): 2 runs, 2 missing", said[0])
    start = said.index("runs of no sweep: 2 runs, 1 done, 1 failed")
    head, done, more, lost = said[start + 1 : start + 5]
    assert head.split() == ["run", "state", "what", "val", "loss"]
    assert done.split() == ["a" * 12, "done", "norm=layer", f"{row['val_loss']:.4f}"]
    assert more.strip() == "data.paths=.../en/*.txt" and lost.split()[2:] == ["norm=none", "seed=7"]
    end = said.index(f"{'b' * 12}: killed by [/SIGKILL]") + 1
    following = " ".join(line.rstrip("\\").strip() for line in said[end:])
    assert following == f" next: lmablate status {tmp_path} --retry all"
    assert status._next(tmp_path, {"done", "running"})[-1] == "--watch"
    assert status._next(tmp_path, {"done", "diverged"})[0] == "report"


def test_the_stages_of_a_study_share_a_list(text, tmp_path):
    jobs = jobs_of(text, tmp_path, ("seed=0",), ("seed=1",))
    for job, stage in zip(jobs, ("tune", "evaluate"), strict=True):
        job.cfg = job.cfg.model_copy(update={"sweep": "a/study", "stage": stage})
        record([job])
    (sweep,) = load_sweeps(tmp_path)
    assert sweep.name == "a/study" and list(sweep.jobs) == [job.run_id for job in jobs]
    assert (tmp_path / ".sweeps" / "a_study.json").exists()


def test_retry_trains_what_failed_or_is_missing_and_nothing_else(text, tmp_path, capsys):
    failed, missing, done = jobs_of(text, tmp_path, ("seed=0",), ("seed=1",), ("seed=2",))
    record([failed, missing, done])
    failed.directory.write_status({"state": "failed", "error": "killed by SIGKILL"})
    other = finished(tmp_path, done.run_id)
    before = other.result_path.read_bytes()
    assert status.main([str(tmp_path), "--retry", "stale"]) == 0
    assert "no run is stale" in capsys.readouterr().out
    assert status.main([str(tmp_path), "--retry", "failed"]) == 0
    assert failed.done and not missing.done
    assert status.main([str(tmp_path), "--retry", "all"]) == 0
    assert missing.done and other.result_path.read_bytes() == before
    assert sorted(load_runs(tmp_path)["run_id"]) == sorted(job.run_id for job in (failed, missing, done))
    assert status.main([str(tmp_path), "--watch", "0.1"]) == 0  # ends, since nothing is left
    capsys.readouterr()
    assert status.main([str(tmp_path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in told["runs"]} == {"done"}


def test_mistakes_are_told_in_words(tmp_path, capsys):
    assert status.main([str(tmp_path / "no")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert status.main([str(tmp_path), "--sweep", "x"]) == 2
    assert "has no such sweep" in capsys.readouterr().err
    assert status.main([str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out


def test_names_in_a_list_cannot_leave_the_folder_and_what_stands_there_is_no_markup(tmp_path, capsys):
    (tmp_path / ".sweeps").mkdir()
    jobs = [
        {"run_id": run_id, "label": "[red]x[/nothing]", "overrides": [], "config": None}
        for run_id in ("../../etc", "abcd1234")
    ]
    (tmp_path / ".sweeps" / "x.json").write_text(json.dumps({"schema_version": 1, "sweep": "[bold]", "jobs": jobs}))
    (sweep,) = load_sweeps(tmp_path)
    assert list(sweep.jobs) == ["abcd1234"]
    assert status.main([str(tmp_path)]) == 0
    assert "[red]x[/nothing]" in capsys.readouterr().out
