"""Several texts in one run: each keeps its own validation text, and its loss is that of the model on this text alone."""

import json

import numpy as np
import pytest
import torch
from corpus import QUICK, write_corpus
from data_support import bpe, byte_level, files, texts, write

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.data import TokenData, prepare
from lmablate.evaluate import evaluate, validation
from lmablate.model import build_model
from lmablate.objective import objective_of
from lmablate.results import load_history, load_runs
from lmablate.runs import gang_run
from lmablate.runs.load import load_run
from lmablate.runs.prepared import prepare_run
from lmablate.runs.run import execute
from lmablate.schema.data import MixtureData

COLUMNS = ["val_loss", "val_loss_first", "val_loss_second", "val_bpb", "val_bpb_first", "val_bpb_second"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    write_corpus(folder / "first")
    write(folder / "second", texts(30, seed=1))
    return folder


def words(folder, *more):
    """A command line on two texts, "first" and "second"."""
    own = [word for word in QUICK if not word.startswith("data")]
    parts = [f"data.texts.{name}.{key}" for name in ("first", "second") for key in (f"paths={folder}/{name}/*.txt",)]
    sizes = ["data.texts.first.val_bytes=300", "data.texts.second.val_bytes=500"]
    groups = ["data=both", "~data.texts.kjv", "~data.texts.sotu"]
    groups += [f"+data@data.texts.{name}=files" for name in ("first", "second")]
    return [*own, *groups, *parts, *sizes, f"results_dir={folder}/results", *more]


@pytest.fixture(scope="module")
def run(folder):
    return prepare_run(compose(words(folder)))


def alone(folder, name, size) -> TokenData:
    return prepare(files(folder / name / "*.txt", val_bytes=size), byte_level(), context_length=32)


def test_a_mixture_holds_both_texts_and_starts_each_in_a_window_of_its_own(folder, run):
    data, first, second = run.data, alone(folder, "first", 300), alone(folder, "second", 500)
    np.testing.assert_array_equal(data.train, np.concatenate([first.train, second.train]))
    np.testing.assert_array_equal(data.val, np.concatenate([first.val, second.val]))
    assert [text.name for text in data.texts] == ["first", "second"]
    assert [text.train_tokens for text in data.texts] == [len(first.train), len(second.train)]
    assert sum(text.val_bytes for text in data.texts) == data.val_bytes
    inputs, targets = data.val_windows(32)
    for name, own in {"first": first, "second": second}.items():
        rows = data.val_rows(32)[name]
        for found, wanted in zip((inputs[rows], targets[rows]), own.val_windows(32), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert len({data.fingerprint, first.fingerprint, second.fingerprint}) == 3


def test_one_tokenizer_learns_from_both_texts(folder):
    both = {name: files(folder / name / "*.txt") for name in ("first", "second")}
    data = prepare(MixtureData(source="mixture", texts=both), bpe(400), context_length=32)
    for word in (" beginning", " twice"):  # of one text each
        assert len(data.encode(word)) == 1


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_the_loss_of_a_text_is_that_of_the_model_on_it_alone(folder, run, objective):
    cfg = prepare_run(compose(words(folder, f"objective={objective}")), run.data).cfg
    model, own = build_model(cfg), objective_of(cfg)
    how = {"context_length": 32, "batch_size": 3, "device": "cpu", "with_lengths": True}
    found = evaluate(model, run.data, own, **how)
    first, second = (
        evaluate(model, alone(folder, name, size), own, **how) for name, size in (("first", 300), ("second", 500))
    )
    texts = found.texts
    assert texts["val_loss_first"] == pytest.approx(first.val_loss, rel=1e-6)
    if objective == "causal":  # the masks of another row are others
        assert texts["val_loss_second"] == pytest.approx(second.val_loss, rel=1e-6)
        assert texts["val_bpb_second"] == pytest.approx(second.val_bpb, rel=1e-6)
        counts = [text.val_tokens for text in run.data.texts]
        assert found.val_loss == pytest.approx(np.average([first.val_loss, second.val_loss], weights=counts))
        assert set(found.yardsticks) == set(first.yardsticks)


def test_processes_share_the_passes_of_each_text(run):
    """Two processes that each sum their share give the sums of one."""

    class Half:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def assigned(self, items):
            for start in range(0, len(items), 2):
                mine = start + self.rank
                yield items[min(mine, len(items) - 1)], mine < len(items)

        def sum(self, values):
            return values

    model, own = build_model(run.cfg), objective_of(run.cfg)
    inputs, targets = (torch.from_numpy(x) for x in run.data.val_windows(32))
    rows = list(run.data.val_rows(32).values())
    one, *halves = (
        validation._losses(model, own, {"": own.validation(inputs, targets)}, rows, 4, "cpu", ranks)[""]
        for ranks in (None, Half(0), Half(1))
    )
    for whole, *shares in zip(one, *halves, strict=True):
        assert sum(nats for nats, _ in shares) == pytest.approx(whole[0])
        assert {count for _, count in shares} == {whole[1]}


def test_gang_stop_and_resume_and_a_later_reader_give_the_losses_of_each_text(folder, monkeypatch):
    def prepared(place):
        return [prepare_run(compose(words(folder, f"seed={seed}", f"results_dir={folder}/{place}"))) for seed in (0, 1)]

    for run in prepared("alone"):
        execute(run)
    wanted = load_runs(folder / "alone").set_index("run_id")[COLUMNS]
    assert wanted.notna().all(axis=None)
    assert load_history(folder / "alone")[COLUMNS].notna().any().all()
    monkeypatch.setattr(gang_run, "plan_size", lambda group: (2, "for the test"))
    gang_run.train_group(prepared("gang"), lambda *_: None, lambda _: None)
    assert load_runs(folder / "gang").set_index("run_id")[COLUMNS].equals(wanted)
    run_id = wanted.index[0]
    row = json.loads((folder / "alone" / run_id / "result.json").read_text())
    assert row["epochs"] == pytest.approx(row["tokens"] / row["data"]["train_tokens"])
    assert (
        row["data"]["texts"]["second"]["val_bytes"]
        == row["data"]["val_bytes"] - row["data"]["texts"]["first"]["val_bytes"]
    )
    model, cfg, data = load_run(folder / "alone" / run_id)
    how = {"context_length": 32, "batch_size": cfg.trainer.batch_size, "device": "cpu"}
    again = evaluate(model, data, objective_of(cfg), **how)
    assert again.texts["val_loss_second"] == pytest.approx(wanted.loc[run_id, "val_loss_second"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.texts.kjv.val_bytes=5"], r"^data.texts.kjv.val_bytes=5: input should be greater"),
        (["~data.texts.kjv"], "data.texts has sotu, and a mixture has at least two.* data=sotu"),
        (["+data@data.texts.causal=kjv"], "data.texts.causal: .* val_loss_causal.* choose another"),
    ],
)
def test_what_no_mixture_can_be_is_refused_by_its_key(more, message):
    with pytest.raises(ConfigError, match=message):
        compose(["data=both", *more])
