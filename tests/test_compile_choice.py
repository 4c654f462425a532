"""runtime.compile=auto and trainer.precision=auto: decided once, for good reasons, the same way every time."""

import json
import logging

import pytest
from corpus import QUICK, write_corpus

from lmablate import compilation, machine
from lmablate.config import compose
from lmablate.jobs import prepare_jobs
from lmablate.launcher.scheduler import run_jobs


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("compile") / "text")


@pytest.fixture(autouse=True)
def speak(caplog):
    caplog.set_level(logging.INFO, "lmablate")


@pytest.fixture(autouse=True)
def verbose(monkeypatch):
    """The choice and its reason are a detail (-v)."""
    monkeypatch.setenv("LMABLATE_VERBOSE", "1")


def jobs_of(text, results, *grid, more=()):
    words = [*QUICK, f"data.paths={text}/*.txt", f"results_dir={results}", "runtime.device=cpu", *more]
    return prepare_jobs([compose([*words, *one]) for one in grid])[0]


SEEDS = [(f"seed={seed}",) for seed in range(3)]


def chosen(jobs):
    (word,) = {job.cfg.runtime.compile for job in jobs}
    return word


def test_a_long_sweep_is_compiled_and_a_short_one_is_not(text, tmp_path, caplog):
    long = ("trainer.steps=1000000",)
    assert chosen(jobs_of(text, tmp_path, *SEEDS, more=long)) is True
    assert "runtime.compile=auto: compiled (about" in caplog.text
    assert "compiling 1 graph takes" in caplog.text  # three seeds share it
    assert chosen(jobs_of(text, tmp_path, *SEEDS)) is False
    assert chosen(jobs_of(text, tmp_path, *SEEDS, more=(*long, "runtime.compile=false"))) is False


def test_jobs_of_one_sweep_decide_alike(text, tmp_path):
    grid = [("trainer.steps=4",), ("trainer.steps=1000000",)]
    assert chosen(jobs_of(text, tmp_path, *grid)) is True


def test_a_sweep_goes_on_as_it_began(text, tmp_path, caplog):
    assert run_jobs(jobs_of(text, tmp_path, ("seed=0",))) == 0
    more = jobs_of(text, tmp_path, ("seed=0",), ("seed=1", "trainer.steps=1000000"))
    assert chosen(more) is False
    assert "as in the runs of this sweep that were trained before" in caplog.text


def test_without_a_compiler_it_is_eager_and_the_row_says_so(text, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (job,) = jobs_of(text, tmp_path / "auto", ("trainer.steps=1000000",))
    assert job.cfg.runtime.compile is False
    (job,) = jobs_of(text, tmp_path / "asked", ("runtime.compile=true",))
    assert run_jobs([job]) == 0
    assert job.row["numerics"]["compiled"] is False
    assert job.row["provenance"]["compile_note"] == "no C++ compiler (no-such-compiler) is installed"
    assert "this run goes on without it" in caplog.text


def test_a_graph_compiled_before_costs_less(text, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    (job,) = jobs_of(text, tmp_path, ("seed=0",))
    assert "takes 30 s" in caplog.text
    compilation.remember(job.cfg)
    caplog.clear()
    jobs_of(text, tmp_path, ("seed=1", "optim.lr=1e-4"))  # of the same graph
    assert "takes 4 s" in caplog.text
    caplog.clear()
    jobs_of(text, tmp_path, ("model.d_ff=64",))
    assert "takes 30 s" in caplog.text


def test_precision_follows_the_measured_products(tmp_path, monkeypatch):
    for rates, wanted in (({"fp32": 1e9, "bf16": 2e9}, "bf16"), ({"fp32": 1e9, "bf16": 1.1e9}, "fp32")):
        monkeypatch.setattr(machine, "_measure", lambda r=rates: r)
        cache = tmp_path / wanted
        words = ["trainer.precision=auto", "runtime.device=cpu", f"runtime.cache_dir={cache}"]
        assert compose(words).trainer.precision == wanted
        (stored,) = json.loads((cache / "machine.json").read_text()).values()
        assert stored == rates


def test_what_was_measured_is_remembered_and_damage_is_measured_again(tmp_path, monkeypatch):
    first = machine.matmul_rates(tmp_path)
    assert 1e8 < first["fp32"] < 1e13
    monkeypatch.setattr(machine, "_measure", lambda: {"fp32": 1.0, "bf16": 2.0})
    machine.matmul_rates.cache_clear()
    assert machine.matmul_rates(tmp_path) == first
    (tmp_path / "machine.json").write_text('{"torn')
    machine.matmul_rates.cache_clear()
    assert machine.matmul_rates(tmp_path)["bf16"] == 2.0
    machine.matmul_rates.cache_clear()
