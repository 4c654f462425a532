"""Several people, one results directory: what can be read is read, what is in training elsewhere is waited for, and what may not
be read is named with its owner and the remedy."""

import re
import warnings

import pytest
from corpus import QUICK, write_corpus
from fake_results import fake_row, write_fake_results
from other_user import give_away, without_powers

from lmablate import archive, status
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.core.locks import FileLock, LockHeld
from lmablate.launcher.job_files import prepare
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.scheduler import run_jobs
from lmablate.launcher.sweep_manifest import load_sweeps, run_status
from lmablate.report import command as report
from lmablate.results import load_history, load_runs
from lmablate.results.evaluations import load_evaluations
from lmablate.results.folders import SkippedFile
from lmablate.results.load import load_unfinished
from lmablate.results.studies import load_studies, save_study, write_study
from lmablate.runs.init_from import with_parent
from lmablate.runs.load import load_run
from lmablate.runs.recovery import failure
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.wsd_branches import Trunk
from lmablate.schema.result import RunResult
from lmablate.training.checkpoint import checkpoints

REMEDY = r"belongs to .*\(mode \d+\).*chmod"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Six runs, of which another user has closed one folder, one row, one history and one folder of evaluations; and a study."""
    folder = tmp_path_factory.mktemp("shared") / "results"
    ids = [
        row["run_id"] for row in write_fake_results(folder, seeds=(0, 1, 2), grid={"norm": ("rms", "layer")}, steps=40)
    ]
    write_study(folder, "mine", {"sweep": "mine", "runs": []})
    (folder / ids[3] / "evaluations").mkdir()
    (folder / ".sweeps").mkdir()
    give_away(folder / ids[0], 0o700)
    give_away(folder / ids[1] / "result.json", 0o600)
    give_away(folder / ids[2] / "history.jsonl", 0o600)
    for place in (folder / ids[3] / "evaluations", folder / "studies", folder / ".sweeps"):
        give_away(place, 0o700)
    yield folder, ids
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755)


def told(function, *arguments):
    """What a reader gives, and its warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedFile)
        value = function(*arguments)
    return value, "\n".join(str(one.message) for one in caught)


def test_readers_leave_out_by_name_what_is_closed_and_read_the_rest(shared, caplog):
    folder, ids = shared
    with without_powers():
        runs, said = told(load_runs, folder)
        assert set(runs["run_id"]) == set(ids[2:])
        for run_id in ids[:2]:
            assert re.search(f"{run_id}.*left out .*{REMEDY}", said)
        history, said = told(load_history, folder)
        assert set(history["run_id"]) == set(ids) - {ids[0], ids[2]}
        assert re.search(f"{ids[2]}/history.jsonl: left out .*{REMEDY}", said)
        assert re.search(f"evaluations: left out .*{REMEDY}", told(load_evaluations, folder)[1])
        assert load_studies(folder) == {}
    assert re.search(f"studies: left out .*{REMEDY}", caplog.text)


def test_closed_runs_count_as_damaged_and_say_why(shared, caplog):
    folder, ids = shared
    with without_powers():
        rows = {row["run_id"]: row for row in load_unfinished(folder)}
        assert {run_id: row["state"] for run_id, row in rows.items()} == dict.fromkeys(ids[:2], "damaged")
        assert re.search(REMEDY, rows[ids[0]]["error"])
        for run_id in ids[:2]:
            found = run_status(folder, run_id)
            assert found["state"] == "damaged" and re.search(REMEDY, found["error"])
        (alone,) = load_sweeps(folder)
    assert set(alone.jobs) == set(ids)
    assert re.search(rf"\.sweeps: left out.*{REMEDY}", caplog.text)


def test_commands_go_on_with_what_they_can_read(shared, tmp_path, capsys, monkeypatch):
    folder, ids = shared
    monkeypatch.setattr(report, "write_page", lambda *arguments, notices, **more: print("\n".join(notices)))
    with without_powers():
        assert status.main([str(folder)]) == 0
        assert archive.main(["save", str(folder), str(tmp_path / "archive")]) == 0
        assert report.main([str(folder), "--out", str(tmp_path / "report")]) == 0
    out, error = capsys.readouterr()
    assert "4 runs" in out and re.search(f"{ids[0]}.*left out .*{REMEDY}", out)
    assert all(re.search(f"{run_id}: left out .*{REMEDY}", error) for run_id in ids[:2])


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o744])
def test_a_results_directory_that_may_not_be_looked_into_is_refused_in_words(tmp_path, mode, capsys):
    folder = tmp_path / "results"
    (folder / "0123456789ab").mkdir(parents=True)
    give_away(folder, mode)
    with without_powers():
        for reader in (load_runs, load_history, load_unfinished, load_evaluations):
            with pytest.raises(ConfigError, match=f"results_dir=.*{REMEDY}"):
                reader(folder)
        assert [status.main([str(folder)]), archive.main(["save", str(folder), str(tmp_path / "a")])] == [2, 2]
    folder.chmod(0o755)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The words of a run, and the run, finished."""
    place = tmp_path_factory.mktemp("finished")
    text = write_corpus(place / "text")
    words = [
        *QUICK,
        "model.n_layers=1",
        "model.d_model=16",
        "model.n_heads=2",
        "trainer.steps=3",
        "runtime.compile=false",
    ]
    words += ["trainer.precision=fp32", "runtime.progress=off", "runtime.device=cpu", f"data.paths={text}/*.txt"]
    words += [f"results_dir={place}/results"]
    (job,), _ = prepare_jobs([compose(words)])
    job.directory.finish(RunResult.model_validate({**fake_row({}), "run_id": job.run_id}))
    return words, job


def test_done_runs_in_a_folder_that_can_only_be_read_are_done(finished, monkeypatch):
    words, done = finished
    folder = done.directory.path.parent
    folder.chmod(0o555)
    with without_powers():
        (job,), _ = prepare_jobs([compose(words)])
        assert job.done
        with pytest.raises(ConfigError, match="results_dir: cannot write to"):
            prepare_jobs([compose([*words, "seed=1"])])
    folder.chmod(0o755)


def test_a_run_of_another_user_fails_in_words_and_one_at_work_is_waited_for(finished, tmp_path, capsys):
    words, _ = finished
    (job,), _ = prepare_jobs([compose([*words, f"results_dir={tmp_path}", "seed=2"])])
    job.directory.create()
    lock = FileLock.acquire(job.directory.lock_path)
    give_away(job.directory.path, 0o755)
    with without_powers():
        with pytest.raises(LockHeld, match="another process is at work"):
            prepare(job)
        lock.release()
        with pytest.raises(PermissionError) as caught:
            prepare(job)
        assert re.search("belongs to .*umask 002", failure(caught.value)["error"])
        assert run_jobs([job]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error


def test_a_closed_run_is_refused_in_words_by_what_would_read_it(finished, tmp_path):
    words, done = finished
    closed = tmp_path / done.run_id
    closed.mkdir()
    give_away(closed, 0o700)
    cfg = compose([*words, f"results_dir={tmp_path}", f"trainer.init_from={done.run_id}"])
    with without_powers():
        for reader in (
            lambda: load_run(closed),
            lambda: with_parent(cfg, None),
            lambda: checkpoints(closed / "checkpoint"),
        ):
            with pytest.raises(ConfigError, match=REMEDY):
                reader()
    closed.chmod(0o755)


def test_a_trunk_or_a_study_that_cannot_be_written_costs_no_run(finished, tmp_path, caplog):
    words, _ = finished
    for folder in (".trunks", "studies"):
        (tmp_path / folder).mkdir()
        give_away(tmp_path / folder, 0o755)
    cfg = compose([*words, f"results_dir={tmp_path}", "schedule=wsd_branches", "trainer.steps=20"])
    (job,), data = prepare_jobs([cfg])
    with without_powers():
        trunk = Trunk.of(job.cfg, data[job.run_id], RunDirectory(tmp_path, job.run_id))
        save_study(tmp_path, "mine", {"sweep": "mine", "runs": []})
    assert trunk is not None and trunk.points == frozenset()
    assert re.search(r"train each step of their own.*\.trunks.*umask 002", caplog.text)
    assert re.search(r"mine\.json: not written.*umask 002", caplog.text)
    (tmp_path / ".trunks").chmod(0o700)
    with without_powers():
        assert Trunk.of(job.cfg, data[job.run_id], RunDirectory(tmp_path, job.run_id)) is None
