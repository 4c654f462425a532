"""``trainer.init_from``: a run that starts from the weights of a finished one, and nothing else of it."""

import json

import numpy as np
import pytest
import torch
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import prepare_jobs
from lmablate.model import build_model
from lmablate.results import load_history, load_runs
from lmablate.runs.gang_run import train_group
from lmablate.runs.prepared import load_data, prepare_run, with_data
from lmablate.runs.run import RunSession, execute
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import science
from lmablate.schema.result import RunResult
from lmablate.training.checkpoint import checkpoints, load_weights
from lmablate.training.gang import graph_key
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two finished parents that differ in their seeds: the words of their command, their ids, their rows, and the
    text."""
    folder = tmp_path_factory.mktemp("init_from")
    text = write_corpus(folder / "text")
    words = [*QUICK, f"data.paths={text}/*.txt", "trainer.precision=fp32", "runtime.compile=false", "trainer.steps=6"]
    words += [f"results_dir={folder / 'results'}", "runtime.evaluations=2"]
    rows = []
    for seed in (0, 1):
        cfg = compose([*words, f"seed={seed}"])
        data = load_data(cfg)
        rows.append(execute(prepare_run(cfg, data)))
    return words, [row["run_id"] for row in rows], rows, data


def child(world, *words, parent=0):
    return compose([*world[0], f"trainer.init_from={world[1][parent]}", *words])


def last_weights(folder, run_id):
    return checkpoints(RunDirectory(folder, run_id).checkpoint_dir)[0]


def run(cfg):
    return execute(prepare_run(cfg))


def test_it_starts_where_the_parent_ended_and_its_optimizer_afresh(world):
    words, _, rows, _ = world
    cfg = child(world, "seed=0", "optim.lr=1e-3")
    row = run(cfg)
    assert row["init_val_loss"] == rows[0]["val_loss"]
    # By hand: the parent's weights in a model, and an ordinary trainer for the rest.
    data = world[3]
    plain = with_data(compose([*words, "seed=0", "optim.lr=1e-3"]), data)
    model = build_model(plain)
    folder = cfg.results_dir
    load_weights(last_weights(folder, world[1][0]), model)
    by_hand = Trainer(model, data, plain, folder=None)
    records = list(by_hand.records())
    history = load_history(folder, [row["run_id"]])
    assert [record["val_loss"] for record in records if "val_loss" in record] == history["val_loss"].dropna().tolist()
    assert [record["grad_norm"] for record in records[1:]] == history["grad_norm"].dropna().tolist()
    assert records[-1]["val_loss"] == row["val_loss"]


def test_the_parent_is_science_and_none_is_as_before(world):
    words, ids, _, _ = world
    data = world[3]
    assert "init_from" not in science(with_data(compose(words), data), data)["trainer"]
    jobs, _ = prepare_jobs([compose(words), child(world), child(world, parent=1), child(world, "seed=0")])
    assert jobs[0].run_id == ids[0]
    assert len({job.run_id for job in jobs}) == 3
    assert [job.cfg.init_seed for job in jobs] == [0, 0, 1]
    assert jobs[1].requests == 2


def test_seeds_of_the_draws_are_the_parents_and_the_order_is_its_own(world):
    cfg = with_data(child(world, "seed=5", parent=1), world[3])
    assert (cfg.init_seed, cfg.data_seed) == (1, 5)
    same = with_data(child(world, "model.init_std=0.5*fan_in"), world[3])
    assert same.model.init_std == "0.5*fan_in"
    for word in ("init_seed=7", "model.init_std=0.1", "model.depth_scaled_init=false"):
        with pytest.raises(ConfigError, match=word.split("=")[0] + ".*has no effect beside trainer.init_from"):
            with_data(child(world, word), world[3])


def test_a_longer_context_with_scaled_positions_is_an_ordinary_run(world):
    words = (
        "model.context_length=96",
        "posemb=rope_yarn",
        "posemb.factor=3",
        "posemb.original_length=32",
        "trainer.steps=6",
    )
    cfg = child(world, *words)
    row = run(cfg)
    assert row["status"] == "completed"
    assert row["choices"]["posemb"] == "rope_yarn"
    assert row["tokens"] == 6 * 4 * 96
    runs = load_runs(cfg.results_dir)
    assert world[1][0] in set(runs["trainer.init_from"].dropna())


def test_killed_and_continued_it_ends_with_the_same_bits(world, tmp_path):
    cfg = child(world, "optim.lr=2e-3", "runtime.checkpoint_seconds=0")
    data = world[3]
    asked = iter([0, 0, 0, 15])
    session = RunSession(prepare_run(cfg, data))
    with pytest.raises(Interrupted):
        list(map(session.store, session.trainer.records(lambda: next(asked))))
    level = json.loads((session.directory.path / "history.jsonl").read_text().splitlines()[0])["val_loss"]
    session.lock.release()  # the end of a process frees its locks
    again = RunSession(prepare_run(cfg, data))
    for record in again.trainer.records():
        again.store(record)
    row = again.finish()
    assert again.trainer.detector.initial_loss == world[2][0]["init_val_loss"] > level
    whole = compose([*(w for w in world[0] if not w.startswith("results_dir")), f"results_dir={tmp_path}"])
    execute(prepare_run(whole, data))  # the same parent, elsewhere
    apart = execute(prepare_run(child(world, "optim.lr=2e-3", f"results_dir={tmp_path}"), data))
    assert (apart["run_id"], apart["val_loss"], apart["train_loss"]) == (
        row["run_id"],
        row["val_loss"],
        row["train_loss"],
    )


def test_children_of_different_parents_train_in_one_gang_to_the_same_bits(world, monkeypatch):
    configs = [child(world, "optim.lr=4e-3", parent=parent) for parent in (0, 1)]
    data = world[3]
    configs = [with_data(cfg, data) for cfg in configs]
    assert len({graph_key(cfg, data) for cfg in configs}) == 1
    monkeypatch.setattr("lmablate.runs.gang_run.plan_size", lambda runs: (2, "as the test wants"))
    train_group([prepare_run(cfg, data) for cfg in configs])
    runs = load_runs(configs[0].results_dir)
    ganged = runs[(runs["optim.lr"] == 4e-3)].sort_values("init_seed")
    assert (ganged["init_val_loss"].to_numpy() == np.array([row["val_loss"] for row in world[2]])).all()
    for cfg, loss in zip(configs, ganged["val_loss"], strict=True):
        trainer = Trainer(build_model(cfg), data, cfg, folder=None)
        assert [r["val_loss"] for r in trainer.records() if "val_loss" in r][-1] == loss


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.init_from=0123456789ab"], "there is no such run in results_dir=.*finished runs there"),
        (["model.d_model=48"], "that run has model.d_model=32, and this one would have 48"),
        (["model.n_heads=2"], "that run has model.n_heads=4, and this one would have 2"),
        (["tokenizer=bpe", "tokenizer.vocab_size=260"], "reads text with another tokenizer"),
        (["norm=layer"], "do not fit: only here: blocks.0"),
        (["model.tie_embeddings=true"], "do not fit: only there: head.proj.weight"),
        (["posemb=t5"], "only here: posemb.table.weight"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused_before_anything_is_trained(world, words, said):
    cfg = compose([*world[0], f"trainer.init_from={world[1][0]}", *words])
    with pytest.raises(ConfigError, match=said):
        prepare_jobs([cfg])


def test_a_table_of_learned_positions_cannot_be_made_longer(world):
    row = run(compose([*world[0], "posemb=learned", "trainer.steps=2"]))
    cfg = compose([*world[0], "posemb=learned", f"trainer.init_from={row['run_id']}", "model.context_length=64"])
    with pytest.raises(
        ConfigError, match=r"posemb.table.weight is \[32, 32\] there and \[64, 32\] here.*row for each position"
    ):
        prepare_jobs([cfg])


def test_an_unfinished_or_diverged_parent_is_refused(world, tmp_path):
    cfg = compose([*world[0], f"results_dir={tmp_path}"])
    data = world[3]
    session = RunSession(prepare_run(cfg, data))
    next(iter(session.trainer.records()))
    identity = session.directory.run_id
    mine = compose([*world[0], f"results_dir={tmp_path}", f"trainer.init_from={identity}"])
    with pytest.raises(ConfigError, match="not finished"):
        prepare_jobs([mine])
    row = {**world[2][0], "run_id": identity, "status": "diverged"}
    session.directory.finish(RunResult.model_validate(row))
    with pytest.raises(ConfigError, match="that run diverged"):
        prepare_jobs([mine])
    session.directory.finish(RunResult.model_validate({**row, "status": "completed"}))
    with pytest.raises(ConfigError, match="no checkpoint any more"):
        prepare_jobs([mine])
    session.directory.config_path.unlink()  # as an archive restores it
    with pytest.raises(ConfigError, match="only the row is there, as from an archive, and no weights"):
        prepare_jobs([mine])


@pytest.mark.parametrize("text", ["012345678901", "1234567890e1", "abcdef012345"])
def test_ids_that_look_like_numbers_stay_ids(text):
    assert compose([f"trainer.init_from={text}"]).trainer.init_from == text


def test_what_is_no_id_is_refused():
    with pytest.raises(ConfigError, match="give the id of a run"):
        compose(["trainer.init_from=results/abc"])


def test_weights_are_taken_and_nothing_is_drawn_over_them(world):
    cfg = with_data(child(world), world[3])
    trainer = Trainer(build_model(cfg), world[3], cfg, folder=None)
    next(iter(trainer.records()))
    parent = build_model(cfg)
    load_weights(last_weights(cfg.results_dir, world[1][0]), parent)
    for mine, theirs in zip(trainer.model.parameters(), parent.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not trainer.optimizer.state
