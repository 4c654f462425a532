"""Engines: what crosses to them, what is made of what comes back, and the same rows whichever of them trained the runs."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from corpus import QUICK, command, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher import engine as engines
from lmablate.launcher import remote, scheduler
from lmablate.launcher.engine import LauncherChoice, engine_of, task_arguments
from lmablate.launcher.job_files import prepare
from lmablate.launcher.jobs import Job, prepare_jobs
from lmablate.launcher.remote import RemoteProcess, Retries
from lmablate.launcher.task import NO_FOLDER, Task, _parser
from lmablate.results import load_history
from lmablate.runs.recovery import HELD
from lmablate.runs.tracking.client import announce
from lmablate.train import train

RAY = {"address": None, "cpus": None, "gpus": None, "at_once": None, "retries": 2}
LOCAL = {"at_once": 2, "timeout_min": 60, "retries": 2}
STEPS = "trainer.steps=80"  # long enough to be killed in the middle
GRID = (STEPS, "norm=rms,layer", "activation=swiglu,gelu", "seed=0,1")
# Of a row: when, where and how fast. Everything else must be equal.
TIMING = {"tokens_per_second", "wall_seconds", "peak_memory_bytes", "provenance", "checksum"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("engines") / "text")


@pytest.fixture
def job(text, tmp_path):
    (made,), _ = prepare_jobs([compose([*QUICK, f"data.paths={text}/*.txt", f"results_dir={tmp_path / 'results'}"])])
    return made


@pytest.mark.parametrize(("word", "library", "extra"), [("ray", "ray", "ray"), ("submitit_slurm", "submitit", "slurm")])
def test_a_missing_library_is_told_with_the_extra_that_brings_it(monkeypatch, word, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"hydra/launcher={word} needs {library}.*lmablate\[{extra}\]"):
        engine_of(word)


def test_settings_are_checked_in_the_words_of_the_command_line(monkeypatch):
    monkeypatch.setattr(engines.importlib, "import_module", lambda name: sys.modules[name])
    from lmablate.launcher import ray_engine

    monkeypatch.setitem(sys.modules, "ray", ray_engine)  # no cluster is needed to find a wrong word
    assert engine_of("local") is None and engine_of("gang") is None
    assert engine_of(LauncherChoice("ray", {"_target_": "x", **RAY})) is not None
    with pytest.raises(
        ConfigError, match=r"hydra\.launcher\.cpu: hydra/launcher=ray has no such key; it has address, cpus"
    ):
        engine_of(LauncherChoice("ray", {**RAY, "cpu": 1.0}))
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.retries=-1: "):
        engine_of(LauncherChoice("ray", {**RAY, "retries": -1}))


def test_plain_strings_are_all_that_crosses(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMABLATE_CACHE", str(tmp_path / "cache"))
    words = task_arguments([job])
    assert all(type(word) is str for word in words)
    read = _parser().parse_args(words)
    assert read.directories == [job.directory.path] and read.directories[0].is_absolute()
    assert (read.folder, read.cache, read.threads) == (str(tmp_path), str(tmp_path / "cache"), 1)


def test_each_run_is_followed_to_wandb_where_it_trains(job, monkeypatch, capsys):
    """By the command here, by an engine's task there; what an ended follower left unsent, by the next command."""
    seen = []

    @contextlib.contextmanager
    def following(folders, mode, say=None):
        seen.append(([*folders], mode))
        yield

    class Child:
        def __init__(self, *args, **options):
            self.poll = lambda: 0

    job.cfg = job.cfg.model_copy(update={"runtime": job.cfg.runtime.model_copy(update={"wandb": "offline"})})
    path = job.directory.path
    for module in ("scheduler", "task"):
        monkeypatch.setattr(f"lmablate.launcher.{module}.following", following)
    monkeypatch.setattr(scheduler, "_run_here", lambda job, board: 0)
    monkeypatch.setattr(scheduler, "_run_in_processes", lambda *args: 0)
    monkeypatch.setattr(subprocess, "Popen", Child)
    (path / "wandb" / "offline-run-1").mkdir(parents=True)
    scheduler.run_jobs([job])
    assert "wandb keeps 1 run offline" in capsys.readouterr().out
    scheduler.run_jobs([job], engine=SimpleNamespace(slots=len))
    prepare(job)
    Task(task_arguments([job])).run()
    assert seen == [([path], "offline"), ([], "offline"), ([path.absolute()], "offline")]
    monkeypatch.setattr(Job, "done", True)
    monkeypatch.setattr(scheduler.Board, "summary", lambda board: None)
    scheduler.run_jobs([job])
    announce(path, name="n", group=None, project="p", config={})
    scheduler.run_jobs([job])
    assert seen[3:] == [([], "offline"), ([path], "offline")]


def test_a_machine_without_the_folder_says_so_and_starts_nothing(job, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started something"))
    words = task_arguments([job])  # no config.yaml stands there yet
    assert Task(words).run() == NO_FOLDER
    process = RemoteProcess([job], Retries(2), lambda: NO_FOLDER, lambda number: None)
    assert process.poll() == 1
    assert "file system that all machines share" in job.directory.read_status()["error"]


class Told:
    """An engine that says what it is given to say, one word a look."""

    def __init__(self, *words):
        self.words = list(words)

    def __call__(self):
        return self.words.pop(0) if len(self.words) > 1 else self.words[0]


def test_what_became_of_a_job_is_read_from_its_folder(job, monkeypatch):
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.0)
    retries = Retries(1)
    alive = RemoteProcess([job], retries, Told(None, None, HELD), lambda number: None)
    assert (alive.poll(), alive.poll(), alive.poll()) == (None, None, HELD)  # another process trains it
    job.directory.write_status({"state": "failed", "error": "ValueError: no"})
    own = RemoteProcess([job], retries, Told(1), lambda number: None)
    assert own.poll() == 1 and not own.lost  # its own failure is not the engine's
    job.directory.write_status({"state": "running", "step": 3})
    lost = RemoteProcess([job], retries, Told("NodeDiedError: gone"), lambda number: None)
    assert lost.poll() == 143 and lost.lost
    again = RemoteProcess([job], retries, Told("NodeDiedError: gone"), lambda number: None)
    assert again.poll() == 1 and not again.lost
    assert job.directory.read_status()["error"] == "NodeDiedError: gone"


def test_the_last_words_of_a_run_are_waited_for(job, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(remote.time, "monotonic", lambda: clock[0])
    process = RemoteProcess([job], Retries(0), Told("gone"), lambda number: None)
    job.directory.write_status({"state": "running", "step": 3})
    assert process.poll() is None
    clock[0] += remote.GRACE_SECONDS + 0.1
    assert process.poll() == 1


# What follows runs the real engines.


def rows_of(results):
    """Result rows and histories by run id, without what is of the machine and the moment."""
    rows = {}
    for path in sorted(Path(results).glob("*/result.json")):
        row = json.loads(path.read_text())
        rows[row["run_id"]] = {key: value for key, value in row.items() if key not in TIMING}
    history = load_history(results).drop(columns=["tokens_per_second", "seconds"])
    return rows, history.sort_values(["run_id", "step"]).reset_index(drop=True)


def sweep_words(text, results, *more):
    return ["-m", *QUICK, *GRID, f"data.paths={text}/*.txt", f"results_dir={results}", "runtime.progress=lines", *more]


def same(left, right):
    assert left[0] == right[0] and len(left[0]) == 8
    assert left[1].equals(right[1])


@pytest.fixture(scope="module")
def locally(text, tmp_path_factory):
    results = tmp_path_factory.mktemp("locally") / "results"
    done = command("lmablate.train", *sweep_words(text, results), timeout=900)
    assert done.returncode == 0, done.stderr
    return rows_of(results)


def end_group(leader, seconds=30.0):
    """SIGTERM, and after a while SIGKILL, to what is left of a group of processes."""
    with contextlib.suppress(ProcessLookupError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(leader, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                os.killpg(leader, 0)
                time.sleep(0.2)


@pytest.mark.slow
def test_the_documented_commands_give_the_same_rows_on_four_engines(tmp_path):
    """docs/engines/four_engines.sh as it is, but for the port: Ray is a head with two machines of one core, one of them killed."""
    for library in ("ray", "submitit"):
        pytest.importorskip(library)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (Path(__file__).parents[1] / "docs" / "engines" / "four_engines.sh").read_text()
    assert script.count("6379") == 6
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-c", script.replace("6379", str(port))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        said = shell.communicate(timeout=1800)[0]
    finally:
        end_group(shell.pid)
    assert shell.returncode == 0, said
    assert "goes on from its checkpoint" in said
    locally = rows_of(tmp_path / "local")
    for engine in ("basic", "submitit_local", "ray"):
        same(rows_of(tmp_path / engine), locally)
    resumed = [json.loads(line)["from"] for path in tmp_path.glob("ray/*/attempts.jsonl") for line in path.open()]
    assert any(resumed)  # a run was in its midst


def _cmdlines():
    """Process ids of this user's processes, by command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def kill_one(results, wanted, seconds=400.0):
    """SIGKILL what `wanted` picks of the processes, once a run of `results` is past its third step; returns the run's id."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in Path(results).glob("*/status.json"):
            with contextlib.suppress(OSError, ValueError):
                status = json.loads(path.read_text())
                if status.get("state") == "running" and status.get("step", 0) >= 3:
                    for pid, line in _cmdlines().items():
                        if wanted(pid, line, path.parent):
                            os.kill(pid, signal.SIGKILL)
                            return path.parent.name
        time.sleep(0.02)
    pytest.fail("no run was seen at work")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_a_run_whose_process_is_killed_goes_on_from_its_checkpoint(text, locally, tmp_path, launcher):
    pytest.importorskip(launcher.partition("_")[0])
    results = tmp_path / "results"
    words = sweep_words(text, results, f"hydra/launcher={launcher}", "runtime.checkpoint_seconds=0")
    with subprocess.Popen(
        [sys.executable, "-m", "lmablate.train", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as sweep:
        run_id = kill_one(results, lambda pid, line, path: "lmablate.launcher.worker" in line and str(path) in line)
        said = sweep.communicate(timeout=900)[1]
    assert sweep.returncode == 0, said
    assert f"{run_id}" in said and "goes on from its checkpoint" in said
    same(rows_of(results), locally)


def _wait_for_step(results, least=3):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        for path in Path(results).glob("*/status.json"):
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text()).get("step", 0) >= least:
                    return
        time.sleep(0.02)
    pytest.fail("no run was seen at work")


# A cluster of one machine that speaks Slurm: job arrays, limits of tasks at a time, signals, requeueing, accounting.
SLURM = r"""
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

home = Path(os.environ["FAKE_SLURM"])
name = Path(sys.argv[0]).name

def note(job, state, pid=0):
    (home / f"job-{job}.tmp").write_text(json.dumps({"state": state, "pid": pid}))
    (home / f"job-{job}.tmp").replace(home / f"job-{job}.json")

def known(job):
    return json.loads((home / f"job-{job}.json").read_text())

if name == "sbatch":
    script = Path(sys.argv[1]).read_text()
    (home / "scripts").mkdir(exist_ok=True)
    number = 1000 + len(list((home / "scripts").iterdir()))
    (home / "scripts" / f"{number}.sh").write_text(script)
    array = re.search(r"--array=0-(\d+)%(\d+)", script)
    tasks = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [str(number)]
    for task in tasks:
        note(task, "PENDING")
    subprocess.Popen([sys.executable, str(home / "bin" / "slurmctld"), str(number), array[2] if array else "1", *tasks],
                     start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {number}")
elif name == "slurmctld":
    number, limit, waiting, running = sys.argv[1], int(sys.argv[2]), sys.argv[3:], {}
    while waiting or running:
        while waiting and len(running) < limit:
            task = waiting.pop(0)
            if known(task)["state"] == "CANCELLED":
                continue
            env = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0",
                   "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SUBMITIT_EXECUTOR": "slurm"}
            if "_" in task:
                env |= dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), task.split("_")))
            running[task] = subprocess.Popen(["bash", str(home / "scripts" / f"{number}.sh")], env=env, start_new_session=True)
            note(task, "RUNNING", running[task].pid)
        time.sleep(0.05)
        for task, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[task]
            if known(task)["state"] == "REQUEUED":
                waiting.append(task)
                note(task, "PENDING")
            else:
                note(task, "COMPLETED" if process.returncode == 0 else "FAILED")
elif name == "srun":
    words = sys.argv[1:]
    names = {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%t": "0"}
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            place = words.pop(0)
            for short, name in names.items():
                place = place.replace(short, name)
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1 if option == "--output" else 2)
    os.execvp(words[0], words)
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in sorted(home.glob("job-*.json")):
        print(f"{path.stem[4:]}|{json.loads(path.read_text())['state']}|here")
elif name == "scontrol":
    note(sys.argv[2], "REQUEUED", known(sys.argv[2])["pid"])
elif name == "scancel":
    job = known(sys.argv[1])
    note(sys.argv[1], "CANCELLED", job["pid"])
    if job["pid"]:
        os.killpg(job["pid"], signal.SIGTERM)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Its folder: `scripts` holds what was submitted, `job-*.json` what became of it."""
    pytest.importorskip("submitit")
    home = tmp_path / "slurm"
    (home / "bin").mkdir(parents=True)
    for name in ("sbatch", "slurmctld", "srun", "sacct", "scontrol", "scancel"):
        path = home / "bin" / name
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(SLURM)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    return home


@pytest.mark.slow
def test_slurm_gets_one_array_and_a_job_at_its_limit_is_queued_again(text, locally, tmp_path, slurm):
    results = tmp_path / "results"
    words = sweep_words(text, results, "hydra/launcher=submitit_slurm", "hydra.launcher.poll_seconds=1")
    words += ["hydra.launcher.partition=debug", "hydra.launcher.array_parallelism=2", "runtime.checkpoint_seconds=0"]
    with subprocess.Popen(
        [sys.executable, "-m", "lmablate.train", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as sweep:
        _wait_for_step(results)
        (task, *_) = [
            pid for pid, line in _cmdlines().items() if "submitit.core._submit" in line and str(results) in line
        ]
        os.kill(task, signal.SIGUSR2)  # what Slurm sends before the time limit
        said = sweep.communicate(timeout=900)[1]
    assert sweep.returncode == 0, said
    same(rows_of(results), locally)
    (script,) = (slurm / "scripts").iterdir()
    lines = script.read_text().splitlines()
    assert "#SBATCH --array=0-7%2" in lines and "#SBATCH --partition=debug" in lines and "#SBATCH --requeue" in lines
    logs = "".join(path.read_text() for path in (results / ".submitit").glob("*/*_log.*"))
    assert "Requeued job 1000_" in logs


@pytest.mark.slow
def test_without_slurm_the_command_says_where_to_go(text, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    done = command("lmablate.train", *sweep_words(text, tmp_path / "results", "hydra/launcher=submitit_slurm"))
    assert done.returncode == 2 and "this machine has no Slurm" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_sigterm_stops_the_runs_at_a_checkpoint_and_leaves_nothing_behind(text, locally, tmp_path, launcher):
    pytest.importorskip(launcher.partition("_")[0])
    results = tmp_path / "results"
    words = sweep_words(text, results, f"hydra/launcher={launcher}")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "lmablate.train", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _wait_for_step(results, least=1)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(120) == 143
    deadline = time.monotonic() + 30
    while left := [line for line in _cmdlines().values() if str(results) in line and "pytest" not in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    done = command("lmablate.train", *words, timeout=900)
    assert done.returncode == 0, done.stderr
    same(rows_of(results), locally)


def test_train_refuses_an_engine_before_it_reads_any_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs ray"):
        train([compose(["data=files", "data.paths=/nowhere/*.txt"])], LauncherChoice("ray", RAY))
