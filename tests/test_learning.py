"""Training really learns: the entropy of a known source is reached and not passed."""

import pytest

from lmablate.config import compose
from lmablate.model import build_model
from lmablate.runs.prepared import load_data, with_data
from lmablate.training.trainer import Trainer

MARKOV = (
    "data=synthetic", "tokenizer=bytes", "model.n_layers=1", "model.d_model=64", "model.context_length=64", "trainer.steps=450",
    "optim.lr=5e-3", "trainer.precision=fp32", "runtime.evaluations=1",
)  # fmt: skip


def train(*words):
    cfg = compose(words)
    data = load_data(cfg)
    cfg = with_data(cfg, data)
    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    list(trainer.records())
    return trainer, data


def test_a_small_model_comes_within_3_percent_of_the_entropy_of_a_markov_source():
    trainer, data = train(*MARKOV)
    loss = trainer.progress.evaluation.val_loss
    assert data.entropy_floor is not None
    assert 0.99 * data.entropy_floor < loss < 1.03 * data.entropy_floor
    assert loss < 0.6 * data.unigram_val_loss


def test_bf16_learns_what_fp32_learns():
    short = (
        "trainer.steps=60",
        *(word for word in MARKOV if not word.startswith(("trainer.steps", "trainer.precision"))),
    )
    losses = {p: train(*short, f"trainer.precision={p}")[0].progress.evaluation.val_loss for p in ("fp32", "bf16")}
    assert losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_dropout_is_off_at_evaluation():
    cfg = compose([*MARKOV, "model.dropout=0.5"])
    data = load_data(cfg)
    cfg = with_data(cfg, data)
    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    trainer.model.train()
    trainer._evaluate()
    first = trainer.progress.evaluation
    trainer._evaluate()
    assert first == trainer.progress.evaluation
    assert trainer.model.training


@pytest.mark.slow
def test_compiled_training_follows_eager_training():
    """One compile smoke test; everything else runs eagerly."""
    short = ("trainer.steps=8", *(word for word in MARKOV if not word.startswith("trainer.steps")))
    eager, _ = train(*short)
    compiled, _ = train(*short, "runtime.compile=true")
    assert compiled.compiled
    assert compiled.progress.evaluation.val_loss == pytest.approx(eager.progress.evaluation.val_loss, rel=1e-4)
