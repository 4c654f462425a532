"""Damaged and edited files through the loaders: refused by name, or read as written, and never a crash."""

import json
import random

import pytest
from chaos.mutations import config_problem, mutated_config, mutated_result, result_problem
from fake_results import write_fake_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmablate.config import compose
from lmablate.launcher.sweep_manifest import load_sweeps, run_status
from lmablate.results import load_history
from lmablate.runs.config_file import write_config
from lmablate.runs.run_directory import RunDirectory

SETTINGS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
SEEDS = st.integers(min_value=0, max_value=2**32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A results directory of one run, its files, and what they say."""
    folder = tmp_path_factory.mktemp("mutated")
    (row,) = write_fake_results(folder, {"norm": ["rms"]}, seeds=[0])
    directory = RunDirectory(folder, row["run_id"])
    config = folder / "config.yaml"
    cfg = compose(["data=kjv", "tokenizer=bytes", "trainer.precision=fp32"])
    write_config(cfg, config)
    return directory, directory.read_result(), config, cfg


def check_results(place, examples):
    directory, row, _, _ = place
    raw = directory.result_path.read_bytes()

    @settings(max_examples=examples, **SETTINGS)
    @given(seed=SEEDS)
    def one(seed):
        directory.result_path.write_bytes(mutated_result(raw, random.Random(seed)))
        assert result_problem(directory.result_path, row) == ""

    try:
        one()
    finally:
        directory.result_path.write_bytes(raw)


def check_configs(place, examples):
    _, _, path, cfg = place
    raw = path.read_bytes()

    @settings(max_examples=examples, **SETTINGS)
    @given(seed=SEEDS)
    def one(seed):
        path.write_bytes(mutated_config(raw, random.Random(seed)))
        assert config_problem(path, cfg) == ""

    try:
        one()
    finally:
        path.write_bytes(raw)


def test_mutated_results(place):
    check_results(place, 25)


def test_mutated_configurations(place):
    check_configs(place, 25)


@pytest.mark.slow
def test_a_thousand_mutated_files(place):
    check_results(place, 500)
    check_configs(place, 500)


def check_others(place, examples):
    """History, heartbeat and list of runs: whatever stands in them, nothing crashes."""
    directory, _, _, _ = place
    history, status = directory.history_path.read_bytes(), directory.status_path.read_bytes()
    ledger = directory.path.parent / ".sweeps" / "grid-0.json"
    ledger.parent.mkdir(exist_ok=True)
    jobs = [{"run_id": directory.run_id, "label": "a", "overrides": ["seed=0"], "config": {"a": 1}}]
    listed = json.dumps({"schema_version": 1, "sweep": "grid", "jobs": jobs}).encode()

    @settings(max_examples=examples, **SETTINGS)
    @given(seed=SEEDS)
    @pytest.mark.filterwarnings("ignore")
    def one(seed):
        from chaos.mutations import damaged, edited

        rng = random.Random(seed)
        lines = history.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(edited(json.loads(lines[at]), rng)).encode()
        directory.history_path.write_bytes(damaged(history, rng) if rng.random() < 0.5 else b"\n".join(lines))
        directory.status_path.write_bytes(json.dumps(edited(json.loads(status), rng)).encode())
        ledger.write_bytes(json.dumps(edited(json.loads(listed), rng)).encode())
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_history(directory.path.parent)
        for sweep in load_sweeps(directory.path.parent):
            for run_id in sweep.jobs:
                run_status(directory.path.parent, run_id)
        from lmablate.status import shown, states

        sweeps = load_sweeps(directory.path.parent)
        shown([(sweep, states(directory.path.parent, sweep)) for sweep in sweeps], everything=True)

    try:
        one()
    finally:
        directory.history_path.write_bytes(history)
        directory.status_path.write_bytes(status)
        ledger.unlink()


def test_mutated_histories_heartbeats_and_lists(place):
    check_others(place, 25)


@pytest.mark.slow
def test_many_mutated_histories_heartbeats_and_lists(place):
    check_others(place, 500)
