"""runtime.compile and trainer.precision=auto: decided by the run and its machine, the same way every time."""

import json
import logging

import pytest
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core import hardware
from lmablate.launcher.jobs import prepare_jobs
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


def test_what_stands_beside_a_run_does_not_decide_whether_it_is_compiled(text, tmp_path):
    """Compiled and eager steps round differently: by the size of the grid, one id had two losses 0.1 nats apart."""
    long = ("trainer.steps=1000000",)
    alone = jobs_of(text, tmp_path, ("seed=0",))
    beside = jobs_of(text, tmp_path, ("seed=0",), *[(f"seed={seed}", *long) for seed in range(1, 20)])
    assert alone[0].run_id == beside[0].run_id
    assert [job.cfg.runtime.compile for job in [*alone, *beside]] == [False, False, *[True] * 19]
    assert [job.cfg.runtime.compile for job in jobs_of(text, tmp_path, ("runtime.compile=true",))] == [True]


def test_a_run_is_compiled_by_its_own_tokens_alone(monkeypatch):
    """The rung's 1,900 steps are, a test of 50 is not; what a budget makes of them, and a trunk's branches, do not count."""

    def compiled(*words):
        return compose(["runtime.device=cpu", "model.d_model=64", *words]).runtime.compile

    assert compiled("trainer.steps=1900") and not compiled("trainer.steps=50") and not compiled()
    assert compiled("trainer.tokens=4000000", "model.bias=true", "activation=gelu", "norm_position=post")
    assert compiled("trainer.steps=50", "runtime.compile=true") and not compiled(
        "trainer.steps=1900", "runtime.compile=false"
    )
    assert not compiled("trainer.steps=1900", "schedule=wsd_branches")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiled("trainer.steps=1900")


def test_without_a_compiler_it_is_eager_and_the_row_says_so(text, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (job,) = jobs_of(text, tmp_path / "asked", ("runtime.compile=true",))
    assert run_jobs([job]) == 0
    assert job.row["numerics"]["compiled"] is False
    assert job.row["provenance"]["compile_note"] == "no C++ compiler (no-such-compiler) is installed"
    assert "this run goes on without it" in caplog.text


def test_precision_follows_the_measured_products(tmp_path, monkeypatch):
    for rates, wanted in (({"fp32": 1e9, "bf16": 2e9}, "bf16"), ({"fp32": 1e9, "bf16": 1.1e9}, "fp32")):
        monkeypatch.setattr(hardware, "_measure", lambda r=rates: r)
        cache = tmp_path / wanted
        words = ["trainer.precision=auto", "runtime.device=cpu", f"runtime.cache_dir={cache}"]
        assert compose(words).trainer.precision == wanted
        (stored,) = json.loads((cache / "machine.json").read_text()).values()
        assert stored == rates


def test_what_was_measured_is_remembered_and_damage_is_measured_again(tmp_path, monkeypatch):
    first = hardware.matmul_rates(tmp_path)
    assert 1e8 < first["fp32"] < 1e13
    monkeypatch.setattr(hardware, "_measure", lambda: {"fp32": 1.0, "bf16": 2.0})
    hardware.matmul_rates.cache_clear()
    assert hardware.matmul_rates(tmp_path) == first
    (tmp_path / "machine.json").write_text('{"torn')
    hardware.matmul_rates.cache_clear()
    assert hardware.matmul_rates(tmp_path)["bf16"] == 2.0
    hardware.matmul_rates.cache_clear()
