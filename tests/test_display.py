"""What is shown while runs train: heartbeats in words, one time left for the whole command, labels, the folded plan."""

import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.core.signals import request_stop_on_signal
from lmablate.launcher import labels, pricing, progress
from lmablate.launcher.jobs import Job, prepare_jobs
from lmablate.launcher.scheduler import offline_hint, run_jobs
from lmablate.launcher.time_left import Todo, evaluations_left, run_left, time_left
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.result import RunResult


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("display") / "text")


def made(text, results, *grid, more=()):
    words = [*QUICK, "runtime.compile=false", "runtime.device=cpu", "trainer.precision=fp32", *more]
    words += [f"data.paths='{text}/*.txt'", f"results_dir={results}"]
    return prepare_jobs([compose([*words, *one]) for one in grid])


def cfg(steps=60, evaluations=3):
    runtime = SimpleNamespace(evaluations=evaluations, progress="lines", compile=False)
    return SimpleNamespace(
        trainer=SimpleNamespace(steps=steps), runtime=runtime, results_dir="results", overrides=[], stage=None
    )


def job(run_id="6f7374e61214", label="rms swiglu", **settings):
    row = {"status": "completed", "val_loss": 3.87, "val_bpb": 1.8, "tokens_per_second": 5186.0}
    return SimpleNamespace(
        cfg=cfg(**settings),
        run_id=run_id,
        label=label,
        work=1.0,
        requests=1,
        done=False,
        row=RunResult.model_construct(**row),
        directory=None,
    )


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_run_is_announced_when_it_begins_and_says_where_it_goes_on_from(capsys):
    one = job()
    board = progress.Board([one], [one])
    board.started(one)
    board.update(one, {"state": "starting", "step": 0, "steps": 60})
    assert lines(capsys) == []  # its process imports
    board.update(one, {"state": "running", "step": 52, "steps": 60, "from": 52})
    board.update(one, {"state": "running", "step": 53, "steps": 60, "from": 52})
    assert lines(capsys) == ["continue 6f7374e61214  rms swiglu  from step 52/60"]
    board.started(one)
    board.update(one, {"state": "running", "step": 0, "steps": 60, "from": 0})
    assert lines(capsys) == ["start   6f7374e61214  rms swiglu"]


def test_what_a_run_is_doing_is_said_once(capsys):
    one = job()
    board = progress.Board([one], [one])
    board.started(one)
    for _ in range(3):
        board.update(one, {"state": "starting", "step": 0, "steps": 60, "doing": "trying 5 runs as one program"})
    assert lines(capsys) == ["        6f7374e61214  trying 5 runs as one program"]


def test_a_validation_loss_says_which_step_it_is_of():
    status = {"step": 20, "train_loss": 5.638, "val_loss": 6.971, "val_step": 0}
    assert progress._losses(status) == "train 5.638  val 6.971 (step 0)"
    assert progress._losses(status | {"val_step": 20}) == "train 5.638  val 6.971"


def test_time_left_counts_evaluations_and_is_of_the_whole_command():
    settings = cfg(steps=100, evaluations=4)
    assert [evaluations_left(settings, step) for step in (0, 25, 26, 99, 100)] == [4, 3, 3, 1, 0]
    status = {"step": 50, "seconds": 5.0, "evaluation_seconds": 3.0}
    assert run_left(settings, status) == 50 * 0.1 + 2 * 3.0
    assert run_left(settings, {"step": 0, "seconds": 0.0}) is None
    running = Todo(settings, 1.0, status)
    assert time_left([running]) == 11.0
    # Two at work, two to come of 22 s each: 66 s of work for two.
    assert time_left([running, running, Todo(settings, 1.0, {}), Todo(settings, 1.0, {})]) == pytest.approx(33.0)
    assert time_left([Todo(settings, 1.0, status, ended=True), Todo(settings, 0.5, {})]) == pytest.approx(11.0)
    assert time_left([Todo(settings, 1.0, {})]) is None


def test_done_is_said_once_and_the_time_left_says_of_what(capsys):
    first, second = job("a" * 12, "rms"), job("b" * 12, "layer")
    board = progress.Board([first, second], [first, second])
    for one in (first, second):
        board.started(one)
        board.update(one, {"step": 30, "steps": 60, "seconds": 3.0, "from": 0})
    capsys.readouterr()
    first.done = True
    board.finished(first, {"state": "done"})
    assert re.fullmatch(r"  1/2  a{12}  rms: val loss .* \(all done in 3 s\)", lines(capsys)[0])
    second.done = True
    board.finished(second, {"state": "done"})
    assert lines(capsys)[0].endswith("1.8000 bits/byte")
    assert board._render().renderables[0].plain == "2/2 done, best so far 3.8700 (rms)"


def test_the_live_table_keeps_names_and_steps_and_shows_what_is_done(monkeypatch):
    from test_console import printed

    monkeypatch.setenv("COLUMNS", "90")
    status = {"step": 30, "steps": 60, "train_loss": 5.6, "val_loss": 6.9, "val_step": 0, "tokens_per_second": 1e4}
    shown = printed(progress.live_table([(job(label="[/x]"), status), (job(), {"doing": "compiling"})]))
    assert shown[1].split() == ["6f7374e61214", "[/x]", "30/60", "5.600", "6.900", "(step", "0)", "10,000", "━━━━━"]
    assert "rms swiglu: compiling" in shown[2] and "…" not in "".join(shown)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """One run with a label that rich would take for markup, trained twice as far as its checkpoint: (folder, output lines)."""
    from contextlib import redirect_stdout
    from io import StringIO

    folder = tmp_path_factory.mktemp("trained") / "results"
    out = StringIO()
    jobs, _ = made(text, folder, ("seed=0",), more=["trainer.steps=4", "runtime.evaluations=2"])
    jobs[0].label = "data.paths=[/a/*.txt]"
    with redirect_stdout(out):
        assert run_jobs(jobs) == 0
    return folder, out.getvalue().splitlines()


def test_training_shows_a_label_as_it_is(trained):
    _, said = trained
    assert said[1].endswith("data.paths=[/a/*.txt]") and said[1].startswith("start ")
    assert any(line.split()[1:2] == ["data.paths=[/a/*.txt]"] for line in said if "completed" in line)


def test_the_heartbeat_tells_where_a_number_is_from_and_what_an_evaluation_takes(trained):
    folder, _ = trained
    (path,) = folder.glob("*/status.json")
    status = json.loads(path.read_text())
    assert (status["from"], status["val_step"], status["step"]) == (0, 4, 4)
    assert status["seconds"] > 0 and status["evaluation_seconds"] > 0 and "doing" not in status


def test_a_run_keeps_a_log(trained):
    folder, _ = trained
    (path,) = folder.glob("*/log.txt")
    said = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert said[0].startswith("begins on") and said[-1] == "completed"
    assert [line.split(":")[0] for line in said[1:-1]] == ["step 0/4", "step 2/4", "step 4/4"]


def test_a_single_run_is_called_by_what_was_asked_for(text, tmp_path):
    (one,), _ = made(text, tmp_path, ("norm=layer", "seed=0"))
    assert one.label.startswith("layer ") and "seed" not in one.label and "runtime" not in one.label
    assert f"data.paths='.../{text.name}/*.txt'" in one.label
    assert labels.short_paths("/home/me/texts/en/*.txt") == ".../en/*.txt"
    assert labels.short_paths("texts/*.txt") == "texts/*.txt"


def test_what_a_budget_solved_is_said_with_its_arm(text, tmp_path, caplog):
    caplog.set_level("INFO")
    made(text, tmp_path, *[(f"activation={name}", "seed=1", "budget=params") for name in ("gelu", "relu", "swiglu")])
    said = [line for line in caplog.messages if "budget=params" in line]
    assert said[0].startswith("gelu, relu: budget=params")


def test_names_that_wandb_would_refuse_are_refused_before_the_first_step(text, tmp_path):
    def refused(name):
        with pytest.raises(ConfigError) as told:
            made(text, tmp_path, (f"runtime.wandb_project='{name}'",), more=["runtime.wandb=offline"])
        return str(told.value)

    assert "runtime.wandb_project=team/arch: wandb takes no /" in refused("team/arch")
    assert "1 to 128 characters" in refused("a" * 129)
    made(text, tmp_path, ("runtime.wandb_project='team/arch'",), more=["runtime.wandb=disabled"])


def test_the_command_that_uploads_offline_runs_is_filled_in(tmp_path):
    jobs = [Job(SimpleNamespace(results_dir=str(tmp_path / "my runs")), f"{i}" * 12) for i in range(3)]
    assert offline_hint(jobs) == ""
    for one in jobs[:2]:
        (one.directory.path / "wandb" / "offline-run-1").mkdir(parents=True)
        folder = f"'{tmp_path}/my runs'/*" if one is jobs[1] else f"'{one.directory.path}'"
        assert offline_hint(jobs).endswith(f"wandb sync --include-online {folder}/wandb/offline-run-*")


def test_the_plan_of_a_study_is_a_row_an_arm():
    from test_console import printed

    one = compose([*QUICK, "data.paths=x"])

    def priced(arm, stage, run_id, done=False):
        return Job(one.model_copy(update={"arm": arm, "stage": stage}), run_id), None if done else 20.0

    jobs = [priced("[/a]", "tune", "1", done=True), priced("[/a]", "tune", "2"), priced("[/a]", "evaluate", "3")]
    shown = printed(pricing._arms_table([*jobs, priced("b", "evaluate", "4")]))
    assert [line.split()[0] for line in shown] == ["arm", "[/a]", "b"]
    assert shown[1].split()[2:-1] == ["2", "1", "1", "40"]


def test_a_compiled_run_is_priced_as_compiled():
    def job(compile):
        return SimpleNamespace(work=3e9, cfg=SimpleNamespace(runtime=SimpleNamespace(compile=compile)))

    assert pricing.seconds_of(job(False), 1e9) == 3.0
    assert pricing.seconds_of(job(True), 1e9) == pytest.approx(3.0 / pricing.COMPILE_GAIN)
    assert pricing.COMPILE_GAIN > 1
    assert f"times {pricing.COMPILE_GAIN:g} where compiled" in " ".join(pricing._explanations([], [job(True)], 1e9))
    assert "where compiled" not in " ".join(pricing._explanations([], [job(False)], 1e9))


def test_a_text_that_is_read_more_than_once_is_said_with_the_number_of_times(text, tmp_path, caplog, monkeypatch):
    from test_console import printed

    monkeypatch.setenv("COLUMNS", "1000")

    def shown(*steps):
        jobs, _ = made(text, tmp_path, *((f"trainer.steps={n}", "runtime.log_every=1") for n in steps))
        return jobs, printed(pricing._runs_table([(job, 1.0) for job in jobs], len(jobs), ""))

    with caplog.at_level("DEBUG", "lmablate"):
        (once,), lines = shown(1)
        per_step = once.epochs
        assert 0 < per_step < 1 and "epochs" not in lines[0] and "times" not in caplog.text
        twice, often = round(2 / per_step), round(9 / per_step)
        _, lines = shown(1, twice)
        assert "epochs" in lines[0] and f"{twice * per_step:.2f}" in lines[2]
        assert (
            f"training tokens {twice * per_step:.2f} times" in caplog.text
            and "teaches less and less" not in caplog.text
        )
        (job,), _ = shown(often)
        folded = printed(pricing._arms_table([(job, 1.0)]))
        assert folded[0].split()[-2] == "epochs" and folded[1].split()[-2] == f"{job.epochs:.2f}"
    assert (
        f"training tokens {job.epochs:.2f} times" in caplog.text
        and "beyond 4 times repeated text teaches less" in caplog.text
    )


def test_the_demo_has_a_help_of_its_own_and_ends_with_what_to_open_and_to_try(tmp_path, monkeypatch, capsys):
    from lmablate import demo

    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(demo, "front_door", lambda *words, **keys: asked.append("train") or 0)
    monkeypatch.setattr(demo, "report", lambda words: asked.append(f"report {words[0]}") or 0)
    assert demo.main(["--help"]) == 0 and asked == []
    assert "usage: lmablate demo" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert demo.main(["results_dir=elsewhere"]) == 0 and asked == ["train", "report elsewhere"]
    said = capsys.readouterr().out
    assert "next, one thing of your own" in said and "lmablate train -m posemb=rope,none" in said


def test_a_signal_is_heard_at_once_and_said_once():
    heard = []
    with request_stop_on_signal(lambda: heard.append("stopping")) as stop:
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal == signal.SIGTERM and heard == ["stopping"]


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path):
    RunDirectory(tmp_path / "not there", "1" * 12).log("said")
