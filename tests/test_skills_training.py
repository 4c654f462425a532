"""Training on a task: loss and accuracy of the scored targets, to the bit in gangs and after a kill; what rows and frames say."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_skills import task
from tiny import config, scaled_model

from lmablate.budget import flops_per_token, parameters
from lmablate.data.tokens import IGNORED
from lmablate.evaluate.task_accuracy import Answers, answer
from lmablate.launcher.jobs import Job
from lmablate.launcher.progress import outcome, results_table
from lmablate.model import build_model
from lmablate.results import load_history, load_runs
from lmablate.runs.prepared import prepare_run, with_data
from lmablate.runs.run import execute
from lmablate.training.gang import Gang
from lmablate.training.trainer import Trainer


def setting(name, *words, **changes):
    """A small configuration and the task of its context; noisy recall has another number of answers in every example."""
    cfg = config(*words)
    data = task(name, length=cfg.model.context_length, **changes)
    if "n_val" in type(data.settings).model_fields:
        small = data.settings.model_copy(update={"n_val": 20})
        data = dataclasses.replace(data, settings=small)
    return with_data(cfg.model_copy(update={"data": data.settings, "tokenizer": None}), data), data


def trainer_of(cfg, data, folder=None, scale=1.0):
    return Trainer(scaled_model(cfg, scale), data, cfg, folder=folder)


def told(records):
    """Records without what a clock writes."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in records]


def reference(model, inputs, targets):
    """Mean nats and share of right answers of the scored targets, by plain means."""
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(inputs))
    kept = torch.from_numpy(targets != IGNORED)
    truth = torch.from_numpy(targets)[kept]
    return float(F.cross_entropy(logits[kept], truth)), float((logits[kept].argmax(-1) == truth).float().mean())


def test_loss_and_accuracy_are_those_of_the_scored_targets():
    cfg, data = setting("noisy_recall")
    trainer = trainer_of(cfg, data, scale=5.0)
    nats, right = reference(trainer.model, *data.val_windows(24))
    found = answer(trainer.model, data.val_windows(24), batch_size=7, device="cpu")
    assert found.nats / found.n == pytest.approx(nats, rel=1e-6)
    assert found.accuracy == pytest.approx(right, rel=1e-6)
    assert found.n == data.row_fields()["val_tokens"]
    rows = trainer.rows(0)
    expected = reference(trainer.model, rows[:, :24].numpy(), rows[:, 24:].numpy())[0]
    assert float(trainer.backward(rows)) == pytest.approx(expected, rel=1e-5)


def test_microbatches_weigh_by_their_answers():
    """They have different numbers of answers, and must give the gradient of the whole batch."""
    cfg, data = setting("noisy_recall")
    whole = trainer_of(cfg, data)
    rows = whole.rows(0)
    counts = (rows[:, 24:] != IGNORED).sum(1)
    assert len(counts.unique()) > 1
    parts = trainer_of(cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": 1})}), data)
    torch.testing.assert_close(parts.backward(rows), whole.backward(rows))
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("name", ["noisy_recall", "compression"])
def test_a_gang_gives_the_same_bits(name, microbatch):
    base, data = setting(name, "model.head_dim=16", "model.d_ff=64")
    runtime = base.runtime.model_copy(update={"microbatch_size": microbatch})
    cfgs = [base.model_copy(update={"init_seed": k, "data_seed": k, "runtime": runtime}) for k in (0, 1)]
    alone = [trainer_of(cfg, data) for cfg in cfgs]
    records = [told(trainer.records()) for trainer in alone]
    members = {k: trainer_of(cfg, data) for k, cfg in enumerate(cfgs)}
    together = {k: [] for k in members}
    for k, record in Gang(members.items(), size=2).run():
        together[k].extend(told([record]) if record is not None else [])
    assert records == list(together.values())
    for mine, theirs in zip(members.values(), alone, strict=True):
        assert all(map(torch.equal, mine.model.parameters(), theirs.model.parameters()))


def test_a_killed_run_goes_on_to_the_same_end(tmp_path):
    cfg, data = setting("mqar", n_pairs=3, length_factors=[1, 2])
    whole = trainer_of(cfg, data)
    records = told(whole.records())
    cut = trainer_of(cfg, data, tmp_path)
    for record in cut.records():
        if record["step"] == 2:
            cut.save()
            break
    rest = trainer_of(cfg, data, tmp_path)
    assert told(rest.records()) == records[-2:]
    assert rest.progress.evaluation == whole.progress.evaluation
    again = trainer_of(cfg, data, tmp_path)  # killed between the last checkpoint and the result
    assert list(again.records()) == []
    assert again.progress.evaluation == whole.progress.evaluation
    assert list(whole.progress.evaluation.val_accuracy_by_length) == ["24", "48"]


def test_accuracy_by_length_is_none_where_there_are_no_positions():
    cfg, data = setting("copy", "posemb=learned", length_factors=[0.5, 1, 2])
    trainer = trainer_of(cfg, data)
    list(trainer.records())
    found = trainer.progress.evaluation.val_accuracy_by_length
    assert found["24"] is None
    assert None not in (found["6"], found["12"])


def test_compression_is_answered_from_the_last_state_alone():
    cfg, _ = setting("compression")
    model = scaled_model(cfg, 5.0).eval()
    tokens = torch.randint(0, 15, (1, 24))
    state = model.run_blocks(model.embed(tokens), _positions(model, 24))[:, -1:]
    with torch.no_grad():
        logits = model(tokens)
        others = model.readout(torch.cat((torch.randn(1, 23, 32), state), dim=1))
        torch.testing.assert_close(model.logits(others), logits)
        assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-3, "places differ"
    total = sum(p.numel() for p in model.parameters())
    plain = sum(p.numel() for p in build_model(setting("recall")[0]).parameters())
    assert parameters(cfg).total == total
    assert total == plain + 2 * 32 * 32 + 3 * 32
    # two more products of 32 x 32 a token, forward and backward
    assert flops_per_token(cfg) == flops_per_token(setting("recall")[0]) + 6 * 2 * 32 * 32


def _positions(model, length):
    from lmablate.model.posemb import AttentionContext

    return AttentionContext(model.posemb.rotate, model.posemb.score_bias(length), model.posemb.relative)


def test_a_run_tells_its_accuracy_everywhere(tmp_path):
    cfg, data = setting("mqar", n_pairs=3, length_factors=[1, 2])
    cfg = cfg.model_copy(update={"results_dir": str(tmp_path)})
    row = execute(prepare_run(cfg, data))
    assert 0 <= row["val_accuracy"] <= 1
    assert row["val_bpb"] is None
    assert "no bytes" in row["data"]["note"]
    assert row["data"]["chance_accuracy"] == 1 / 4096
    assert row["config"]["tokenizer"] is None
    (path,) = tmp_path.glob("*/result.json")
    stored = json.loads(path.read_text())
    assert stored.pop("checksum")
    assert stored == row.model_dump(exclude_unset=True)
    runs, history = load_runs(tmp_path), load_history(tmp_path)
    assert runs["val_accuracy"].dtype == "float64"
    assert runs.loc[0, "val_accuracy"] == row["val_accuracy"] == history["val_accuracy"].iloc[-1]
    assert runs.loc[0, "val_accuracy_by_length.48"] == row["val_accuracy_by_length"]["48"]
    assert math.isnan(runs.loc[0, "val_bpb"])
    words = f"accuracy {100 * row['val_accuracy']:.2f} %"
    assert words in outcome(row)
    assert "accuracy" in results_table([(Job(cfg, row["run_id"], "mine"), row)]).plain.splitlines()[0]


def test_a_diverged_run_has_no_accuracy():
    assert Answers(math.nan, 3, 4).accuracy == 0.75
    cfg, data = setting("recall")
    trainer = trainer_of(cfg, data)
    with torch.no_grad():
        trainer.model.embedding.weight.fill_(math.nan)
    trainer.progress.step = 1
    assert not trainer._evaluate()
    assert trainer.progress.diverged_at_step == 1


def test_arms_see_the_same_examples():
    cfg, data = setting("recall")
    other = cfg.model_copy(update={"init_seed": 9})
    assert torch.equal(trainer_of(cfg, data).rows(3), trainer_of(other, data).rows(3))
    moved = cfg.model_copy(update={"data_seed": 9})
    assert not torch.equal(trainer_of(cfg, data).rows(3), trainer_of(moved, data).rows(3))


MQAR = (
    "data=mqar", "data.vocab_size=64", "data.n_pairs=4", "data.n_val=200", "data.length_factors=null", "data.power=1.0",
    "model.context_length=32", "model.n_layers=2", "model.d_model=64", "model.n_heads=1", "model.init_std=0.1",
    "trainer.batch_size=32", "trainer.steps=800", "trainer.precision=fp32", "optim.lr=3e-3", "runtime.evaluations=1",
    "runtime.compile=false",
)  # fmt: skip


@pytest.mark.slow
def test_attention_solves_recall_and_a_short_window_does_not():
    """Two layers of attention answer over 99 %; a window that reaches 2 x 3 tokens back, and none at all, do not."""
    from lmablate.config import compose
    from lmablate.runs.prepared import load_data

    found = {}
    for name, words in {
        "mha": (),
        "window": ("attention=sliding_window", "attention.window=4"),
        "no mixing": ("attention=sliding_window", "attention.window=1"),
    }.items():
        cfg = compose([*MQAR, *words])
        data = load_data(cfg)
        trainer = Trainer(build_model(with_data(cfg, data)), data, with_data(cfg, data), folder=None)
        list(trainer.records())
        found[name] = trainer.progress.evaluation.val_accuracy
    assert found["mha"] > 0.99
    assert found["window"] < 0.5
    assert found["no mixing"] < 0.1
    assert np.isfinite(list(found.values())).all()


def test_reports_and_the_figure_tell_accuracy_in_the_place_of_bits_per_byte(tmp_path):
    from fake_results import write_fake_results

    from lmablate.analysis.skills import figure
    from lmablate.report.command import write_report
    from lmablate.results.arms import with_arms

    def on_a_task(row):
        right = 0.9 if row["choices"]["attention"] == "mha" else 0.125
        row.update(
            val_bpb=None, val_accuracy=right, val_accuracy_by_length={"64": right, "128": right / 2}, sweep="skills"
        )
        row.update(arm={0.9: "full", 0.125: "no mixing"}[right], stage="evaluate")
        row["data"].update(unigram_val_loss=None, chance_accuracy=1 / 128)

    write_fake_results(tmp_path / "results", {"attention": ("mha", "sliding_window")}, change=on_a_task)
    said = "\n".join(write_report([tmp_path / "results"], tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (said, page):
        assert "90.00 %" in text
        assert "12.50 %" in text
        assert "accuracy" in text
    assert "bits/byte" not in said
    drawn = figure(with_arms(load_runs(tmp_path / "results")))
    drawn.canvas.draw()
    shown = [text.get_text() for text in drawn.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert "90.0 %" in shown
    assert "128" in shown
    points = [line.get_xdata() for line in drawn.axes[0].lines]
    assert any(list(x) == [90.0, 90.0] for x in points)
