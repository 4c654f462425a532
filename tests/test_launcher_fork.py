"""Runs forked from a warm process: the numbers of runs started from nothing, and no way to harm each other."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher import processes
from lmablate.launcher.job_files import prepare
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.scheduler import heaviest_first, run_jobs
from lmablate.launcher.warm import Template, WarmProcess
from lmablate.model import components
from lmablate.results import load_history
from lmablate.runs.config_file import write_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork is used on Linux alone")
NUMBERS = ["step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb"]

# Parts of a user's own. Each says in its run's log what it found, and leaves what it can to a careless successor.
PARTS = """
import os, random, signal, sys, threading, time
from pathlib import Path
import numpy as np
import torch

def look_and_spoil():
    if torch.rand(1).is_meta:  # only its parameters are counted
        return
    print("FOUND", torch.get_default_dtype(), torch.get_num_threads(), os.getpid() == os.getsid(0),
          os.environ.get("OMP_NUM_THREADS"), sorted(os.listdir("/proc/self/fd")), flush=True)
    print("DRAWN", torch.rand(1).item(), np.random.rand(), random.random(), flush=True)
    torch.manual_seed(1), np.random.seed(1), random.seed(1), os.environ.update(OMP_NUM_THREADS="3")

class Base(torch.nn.RMSNorm):
    def __init__(self, d_model):
        super().__init__(d_model, eps=1e-6)

    @staticmethod
    def n_params(d_model, settings):
        return d_model

class Plain(Base):
    def __init__(self, d_model):
        super().__init__(d_model)
        look_and_spoil()

class Killed(Plain):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

class Leaves(Plain):
    def forward(self, x):
        sys.exit(7)

class Threads(Base):
    def __init__(self, d_model):
        super().__init__(d_model)

    def forward(self, x):
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        return super().forward(x)

class Stuck(Base):
    def __init__(self, d_model):
        super().__init__(d_model)

    def forward(self, x):
        Path(f"stuck-{os.getpid()}").touch()
        time.sleep(100)

class Parricide(Base):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.calls = 0

    def forward(self, x):
        self.calls += torch.is_grad_enabled()  # a template takes no more than one step
        mark = Path("done")
        if self.calls == 30 and not mark.exists():
            mark.touch()
            assert b"forkserver" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
            os.kill(os.getppid(), signal.SIGKILL)
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("fork") / "text")


@pytest.fixture(scope="module", autouse=True)
def one_command():
    """The sweeps of these tests share a warm process, as those of one command do."""
    with processes.shared_warm_process([]):
        yield


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    """A folder with a package of parts and their options, as the current one."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text(PARTS)
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    for name in ("Plain", "Killed", "Leaves", "Threads", "Stuck", "Parricide"):
        (tmp_path / "conf" / "norm" / f"{name.lower()}.yaml").write_text(
            f"# norm={name.lower()}\n_target_: own.{name}\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(components, "_trusted", {"own"})
    return tmp_path


def jobs_of(text, results, *grid, more=()):
    words = [*QUICK, f"data.paths={text}/*.txt", f"results_dir={results}", "runtime.workers=2", "runtime.progress=off"]
    return prepare_jobs([compose([*words, "model.dropout=0.1", "runtime.device=cpu", *more, *one]) for one in grid])[0]


def numbers(results, run_id):
    history = load_history(results)
    return history[history["run_id"] == run_id][NUMBERS].reset_index(drop=True)


GRID = [(f"trainer.precision={precision}", f"seed={seed}") for precision in ("fp32", "bf16") for seed in range(2)]
ONE_GRAPH = [("trainer.precision=fp32", f"seed={seed}") for seed in range(3)]


def test_forked_runs_have_the_numbers_of_spawned_ones_to_the_bit(text, tmp_path, monkeypatch):
    forked = jobs_of(text, tmp_path / "forked", *GRID)
    assert run_jobs(forked) == 0
    assert [job.row["status"] for job in forked] == ["completed"] * 4
    monkeypatch.setenv("LMABLATE_START", "spawn")
    spawned = jobs_of(text, tmp_path / "spawned", GRID[1], GRID[2])
    assert run_jobs(spawned) == 0
    for job in spawned:
        (twin,) = [one for one in forked if one.run_id == job.run_id]
        assert twin.row["val_loss"] == job.row["val_loss"]
        assert twin.row["train_loss"] == job.row["train_loss"]
        assert twin.row["numerics"] == job.row["numerics"]
        assert numbers(tmp_path / "forked", job.run_id).equals(numbers(tmp_path / "spawned", job.run_id))
    assert forked[0].row["val_loss"] != forked[1].row["val_loss"]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_runs_of_a_template_have_the_numbers_of_forked_ones_to_the_bit(text, tmp_path, request, precision):
    grid = [(f"trainer.precision={precision}", f"seed={seed}") for seed in range(2)]
    forked = jobs_of(text, tmp_path / "forked", *grid)
    assert run_jobs(forked) == 0
    request.getfixturevalue("one_graph_an_option")
    templated = jobs_of(text, tmp_path / "templated", *grid)
    assert run_jobs(templated) == 0
    for job, twin in zip(templated, forked, strict=True):
        assert twin.row["val_loss"] == job.row["val_loss"]
        assert numbers(tmp_path / "forked", job.run_id).equals(numbers(tmp_path / "templated", job.run_id))


@pytest.fixture
def one_graph_an_option(monkeypatch):
    """Treat eager runs of one norm and precision as if they compiled the same graph; the compiler itself does nothing."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(
        processes, "graph_of", lambda unit: f"{unit[0].cfg.norm['_target_']} {unit[0].cfg.trainer.precision}"
    )


def test_a_run_that_dies_or_leaves_harms_no_other_and_nothing_is_inherited(text, own_parts, capsys):
    grid = [
        ("norm=killed",),
        ("norm=leaves",),
        ("norm=plain", "seed=0"),
        ("norm=plain", "seed=1"),
        ("norm=plain", "seed=2"),
    ]
    jobs = jobs_of(text, own_parts / "results", *grid)
    assert run_jobs(jobs) == 1
    assert [job.done for job in jobs] == [False, False, True, True, True]
    said = capsys.readouterr().err
    assert "killed by SIGKILL" in said and "exit code 7" in said
    assert "2 of 5 runs failed" in said
    for job, reason in zip(jobs, ("killed by SIGKILL", "exit code 7"), strict=False):
        status = json.loads(job.directory.status_path.read_text())
        assert (status["state"], status["error"]) == ("failed", reason)
    (reference,) = jobs_of(text, own_parts / "reference", ("norm=plain", "seed=0"))
    write_config(reference.cfg, reference.directory.config_path)
    assert processes.Spawned([reference], processes.environment_of(reference, 0)).process.wait() == 0
    logs = [job.directory.log_path.read_text().splitlines() for job in [*jobs, reference]]
    # The type, the threads, the session, the environment, the open files.
    found = {tuple(line for line in log if line.startswith("FOUND")) for log in logs}
    assert len(found) == 1, found
    # What a part draws in its constructor comes from the seed of its run, in every process alike: the seeds are 0, 0, 0, 1, 2, 0.
    drawn = [next(line.split()[1:] for line in log if line.startswith("DRAWN")) for log in logs]
    assert drawn[0] == drawn[1] == drawn[2] == drawn[5]
    assert [len(set(numbers)) for numbers in zip(*drawn, strict=True)] == [3, 3, 3]


@pytest.mark.slow
def test_runs_go_on_when_the_warm_process_is_killed(text, own_parts, caplog):
    more = ("trainer.steps=60", "runtime.checkpoint_seconds=0")
    jobs = jobs_of(text, own_parts / "results", ("norm=rms", "trainer.steps=400"), ("norm=parricide",), more=more)
    with caplog.at_level(logging.WARNING, logger="lmablate"):
        assert run_jobs(jobs) == 0
    assert (own_parts / "done").exists()
    assert [job.done for job in jobs] == [True, True]
    warnings = [record.getMessage() for record in caplog.records if "starts runs" in record.getMessage()]
    assert len(warnings) == 1
    assert "killed by SIGKILL" in warnings[0]
    (twin,) = jobs_of(text, own_parts / "alone", ("norm=parricide",), more=more)  # one job runs right here, undisturbed
    assert run_jobs([twin]) == 0
    assert twin.row["val_loss"] == jobs[1].row["val_loss"]
    assert numbers(own_parts / "alone", twin.run_id).equals(numbers(own_parts / "results", twin.run_id))


@pytest.mark.slow
def test_runs_of_a_graph_go_on_when_its_template_dies_or_is_unfit(text, own_parts, caplog, one_graph_an_option):
    grid = [(f"norm={norm}", f"seed={seed}") for norm in ("parricide", "threads") for seed in range(2)]
    jobs = jobs_of(text, own_parts / "results", *grid, more=("trainer.steps=60", "runtime.checkpoint_seconds=0"))
    assert run_jobs(jobs) == 0
    assert (own_parts / "done").exists()  # the template was killed, not the warm process
    assert not [record for record in caplog.records if "starts runs" in record.getMessage()]
    assert "compiling has left" in "".join(job.directory.log_path.read_text() for job in jobs[2:])
    (twin,) = jobs_of(text, own_parts / "alone", grid[0], more=("trainer.steps=60",))
    assert run_jobs([twin]) == 0
    assert numbers(own_parts / "alone", twin.run_id).equals(numbers(own_parts / "results", twin.run_id))


@pytest.mark.slow
def test_sigterm_while_a_graph_compiles_starts_nothing_more(text, own_parts, one_graph_an_option):
    jobs = jobs_of(text, own_parts / "results", *[("norm=stuck", f"seed={seed}") for seed in range(3)])
    stuck = lambda: list(own_parts.glob("stuck-*"))  # noqa: E731

    def stop():
        wait_until(lambda: stuck() and len(list(own_parts.glob("results/*/status.json"))) == 2, 60)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    assert run_jobs(jobs) == 143
    thread.join()
    assert time.monotonic() - began < 60
    (only,) = stuck()
    assert not alive(int(only.name.partition("-")[2]))
    assert not (own_parts / "results" / jobs[2].run_id).exists()


def test_what_a_dead_template_has_lost_goes_back_to_the_queue_and_costs_no_time():
    ours, theirs = Pipe()
    template = Template(ours, os.getpid())
    waiting, training = (template.start([], [], {}) for _ in range(2))
    assert template.compiling and training.waits_for_graph
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    theirs.send(("started", training.number, child.pid))
    assert training.poll() is None and training.pid == child.pid
    theirs.close()
    starter = processes.Starter([])
    starter._templates["graph"] = template
    starter.pause(0.0)
    assert template.why
    assert waiting.poll() == -signal.SIGTERM and waiting.lost
    assert training.poll() is None  # until it has ended, its lock is taken
    training.send(signal.SIGTERM)
    assert child.wait() == training.poll() == -signal.SIGTERM and training.lost
    began = time.monotonic()
    starter.pause(0.2)
    assert time.monotonic() - began > 0.1


@pytest.mark.slow
def test_a_sweep_compiles_a_graph_once(text, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "graph_code")
    jobs = jobs_of(text, tmp_path / "forked", *ONE_GRAPH, more=("runtime.compile=true",))
    with processes.shared_warm_process([]):  # torch reads the variable when it is imported
        assert run_jobs(jobs) == 0
    assert all(job.row["numerics"]["compiled"] for job in jobs)
    graphs = [job.directory.log_path.read_text().count("TRACED GRAPH") for job in jobs]
    assert graphs[0] > 0 and graphs[1:] == [0, 0]
    monkeypatch.setenv("LMABLATE_START", "spawn")
    spawned = jobs_of(text, tmp_path / "spawned", *ONE_GRAPH, more=("runtime.compile=true",))
    assert run_jobs(spawned) == 0
    for job, twin in zip(jobs, spawned, strict=True):
        assert twin.directory.log_path.read_text().count("TRACED GRAPH") == graphs[0]
        assert numbers(tmp_path / "forked", job.run_id).equals(numbers(tmp_path / "spawned", job.run_id))


def descendants(pid):
    """Process ids below `pid` that have not ended."""
    family = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            family.setdefault(int(parent), []).append(int(path.parent.name))
    found, ask = [], [pid]
    while ask:
        found += (children := family.get(ask.pop(), []))
        ask += children
    return found


def wait_until(what, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return False


def test_nothing_trains_on_when_the_sweep_is_killed(text, tmp_path):
    words = [
        *QUICK,
        "trainer.steps=200000",
        "runtime.compile=false",
        f"data.paths={text}/*.txt",
        f"results_dir={tmp_path}",
        "runtime.workers=2",
    ]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "lmablate.train", "-m", "seed=0,1", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def training():
        steps = [json.loads(path.read_text()).get("step", 0) for path in tmp_path.glob("*/status.json")]
        return len(steps) == 2 and min(steps) > 3

    try:
        assert wait_until(training, 60)
        family = descendants(sweep.pid)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
        assert len([words for words in commands if b"forkserver" in words]) == 3  # the warm process and two runs
    finally:
        sweep.kill()
        sweep.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in family)), "an orphan trains on"
    assert len(list(tmp_path.glob("*/checkpoint/step-*.safetensors"))) == 2


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ImportError('deliberately missing')", "deliberately missing"),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "2 threads"),
    ],
    ids=["fails", "has threads"],
)
def test_a_warm_process_that_cannot_fork_safely_is_not_used(tmp_path, monkeypatch, caplog, text, source, says):
    (tmp_path / "unfit.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    unfit = WarmProcess(["unfit"])
    assert wait_until(lambda: unfit.receive() or unfit.why or unfit.ready, 60)
    assert says in unfit.why
    assert not alive(unfit.process.pid)
    starter = processes.Starter([])
    starter.warm = unfit
    assert starter.ready() and starter.warm is None  # from here on, spawn
    assert len([record for record in caplog.records if says in record.getMessage()]) == 1


def test_a_process_that_imports_while_the_command_is_read_starts_the_runs(text, tmp_path):
    jobs = jobs_of(text, tmp_path, ("seed=0",), ("seed=1",))
    with processes.shared_warm_process(["-m", "seed=0,1"]):
        (early,) = processes._idle
        with processes.Starter([[job] for job in jobs]) as starter:
            assert starter.warm is early and not processes._idle
            assert wait_until(starter.ready, 60)
            prepare(jobs[0])
            process = starter.start([jobs[0]], 0)
            assert wait_until(lambda: process.poll() is not None, 60)
        with processes.Starter([[job] for job in jobs]) as starter:  # the next stage of a study
            assert starter.warm is early and starter.ready()
    assert jobs[0].done
    assert not alive(early.process.pid)


@pytest.mark.parametrize("words", [["seed=1"], ["-m", "seed=0,1", "--cfg", "job"], ["-m", "runtime.device=cuda"]])
def test_nothing_starts_early_where_nothing_will_be_forked(words):
    with processes.shared_warm_process(words):
        assert not processes._idle


def test_a_command_that_trains_nothing_leaves_no_process():
    with processes.shared_warm_process(["sweeps=sanity"]):
        (early,) = processes._idle
    assert not alive(early.process.pid)


def test_spawn_where_fork_is_unsafe_or_unwanted(text, tmp_path, monkeypatch):
    (job,) = jobs_of(text, tmp_path, ("seed=0",))
    assert processes.can_fork(job)
    on_gpu = job.cfg.model_copy(update={"runtime": job.cfg.runtime.model_copy(update={"device": "cuda"})})
    assert not processes.can_fork(type(job)(on_gpu, job.run_id))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not processes.can_fork(job)
    monkeypatch.undo()
    monkeypatch.setenv("LMABLATE_START", "spawn")
    assert not processes.can_fork(job)
    monkeypatch.setenv("LMABLATE_START", "fast")
    with pytest.raises(ConfigError, match="auto or spawn"):
        processes.can_fork(job)


def test_the_heaviest_runs_start_first_and_equals_keep_their_order(text, tmp_path):
    grid = [
        ("seed=0",),
        ("seed=1", "model.d_model=64"),
        ("seed=2", "trainer.steps=24"),
        ("seed=3",),
        ("seed=4", "model.n_layers=8"),
    ]
    jobs = jobs_of(text, tmp_path, *grid)
    assert [job.cfg.seed for job in heaviest_first(jobs)] == [1, 4, 2, 0, 3]
