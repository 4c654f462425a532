"""A group of runs through the planner, the self-test and the run store."""

import json

import pytest
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.results import load_history, load_runs
from lmablate.runs import gang_run
from lmablate.runs.prepared import prepare_run
from lmablate.runs.run import execute


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("gang") / "text")


def runs(text, results, words):
    """(config, data) of each line of overrides."""
    replaced = lambda word: [w for w in QUICK if w.split("=")[0] not in {v.split("=")[0] for v in word}]  # noqa: E731
    configs = [
        compose([*replaced(word), f"data.paths={text}/*.txt", f"results_dir={results}", *word]) for word in words
    ]
    return [prepare_run(cfg) for cfg in configs]


WORDS = [("seed=0",), ("seed=1",), ("optim.lr=1e-3",), ("trainer.steps=9", "seed=2")]


def test_rows_of_a_gang_are_those_of_runs_trained_alone(text, tmp_path, monkeypatch):
    monkeypatch.setattr(gang_run, "plan_size", lambda group: (3, "for the test"))
    ended, told = [], []
    gang_run.train_group(
        runs(text, tmp_path / "gang", WORDS), lambda run_id, status: ended.append((run_id, status)), told.append
    )
    assert len(told) == 1 and told[0].startswith("trying whether 4 runs train faster as one program")
    for run in runs(text, tmp_path / "solo", WORDS):
        execute(run)
    same = ["run_id", "status", "val_loss", "val_bpb", "train_loss", "init_val_loss", "tokens", "numerics", "seed"]
    gang, solo = (load_runs(tmp_path / way).sort_values("run_id", ignore_index=True)[same] for way in ("gang", "solo"))
    assert gang.equals(solo)
    assert sorted(ended) == [(run_id, "completed") for run_id in solo["run_id"]]
    timeless = ["run_id", "step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb"]
    histories = [
        load_history(tmp_path / way).sort_values(["run_id", "step"], ignore_index=True)[timeless]
        for way in ("gang", "solo")
    ]
    assert histories[0].equals(histories[1])
    row = json.loads(next((tmp_path / "gang").glob("*/result.json")).read_text())
    assert row["numerics"]["gang_size"] == 3
    assert row["numerics"]["gang_self_test"] == 0.0


def test_runs_whose_bits_a_gang_would_change_are_trained_alone(text, tmp_path, monkeypatch):
    monkeypatch.setattr(gang_run, "plan_size", lambda group: (2, "for the test"))
    odd = ("model.d_ff=86", "runtime.microbatch_size=1", "model.context_length=24")  # 24 x 86: no whole vectors of 32
    group = runs(text, tmp_path, [("seed=0", *odd), ("seed=1", *odd)])
    if gang_run.self_test(group) == 0.0:
        pytest.skip("this processor's vectors are shorter")
    gang_run.train_group(group)
    assert [row["numerics"].get("gang_size") for row in map(json.loads, _results(tmp_path))] == [None, None]


def _results(folder):
    return [path.read_text() for path in folder.glob("*/result.json")]


def test_the_planner_never_prefers_a_slower_gang(text, tmp_path, monkeypatch):
    group = runs(text, tmp_path, [(f"seed={k}",) for k in range(8)])
    for alone, together, best in ((1.0, 0.97, 1), (1.0, 2.0, 1), (1.0, 0.5, 2)):
        monkeypatch.setattr(gang_run, "_seconds_per_member", lambda _, size, a=alone, t=together: a if size == 1 else t)
        assert gang_run.plan_size(group)[0] == best
    curve = {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.45}
    monkeypatch.setattr(gang_run, "_seconds_per_member", lambda _, size: curve[size])
    assert gang_run.plan_size(group)[0] == 4
    assert gang_run.plan_size(group[:1])[0] == 1


def test_the_self_test_sees_a_difference(text, tmp_path, monkeypatch):
    group = runs(text, tmp_path, WORDS[:2])
    assert gang_run.self_test(group) == 0.0
    stack = gang_run.MemberStack

    class Off(stack):
        def backward(self, rows):
            out = super().backward(rows)
            next(iter(self.members[1].model.parameters())).grad.mul_(1.001)
            return out

    monkeypatch.setattr(gang_run, "MemberStack", Off)
    assert gang_run.self_test(group) == pytest.approx(1e-3, rel=0.01)
