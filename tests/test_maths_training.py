"""Schedules, AdamW and checkpoints against closed forms, torch and transformers."""

import math
import shutil

import pytest
import torch
from tiny import SmallText, config, scaled_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from variants import base, variant

from lmablate.model import build_model
from lmablate.model.primitives import Bias, Gain, Matrix
from lmablate.schema.training_config import OptimSettings, ScheduleSettings
from lmablate.training.checkpoint import checkpoints, load_checkpoint, load_weights, save_checkpoint
from lmablate.training.optim import build_optimizer, lr_factor, set_lr
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer


def schedule(kind, warmup, final=None, decay=None):
    return ScheduleSettings(
        kind=kind, warmup_steps=warmup, warmup_fraction=None, final_fraction=final, decay_fraction=decay
    )


HALF = math.sqrt(0.5)
BY_HAND = [  # schedule, steps, {step: factor}
    (schedule("constant", 4), 10, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 9: 1.0}),
    (schedule("constant", 0), 10, {0: 1.0, 9: 1.0}),
    (schedule("linear", 2, 0.0), 10, {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 9: 1 / 8}),
    (schedule("linear", 2, 0.2), 10, {1: 1.0, 6: 0.6, 9: 0.3}),
    (schedule("cosine", 2, 0.0), 10, {0: 0.5, 1: 1.0, 2: 1.0, 4: (1 + HALF) / 2, 6: 0.5, 8: (1 - HALF) / 2}),
    (schedule("cosine", 2, 0.1), 10, {1: 1.0, 2: 1.0, 6: 0.55}),
    (schedule("wsd", 2, 0.0, 0.4), 10, {0: 0.5, 1: 1.0, 5: 1.0, 6: 1.0, 7: 0.75, 8: 0.5, 9: 0.25}),
    (schedule("wsd", 2, 0.1, 0.2), 10, {7: 1.0, 8: 1.0, 9: 0.55}),
    (schedule("wsd", 2, 0.1, 0.0), 10, {2: 1.0, 9: 1.0}),
    # a warmup that reaches into the decay shortens it, one longer than the run is all there is
    (schedule("wsd", 8, 0.0, 0.4), 10, {6: 7 / 8, 7: 1.0, 8: 1.0, 9: 0.5}),
    *(
        (schedule(kind, 20, 0.1, 0.4 if kind == "wsd" else None), 10, {0: 0.05, 9: 0.5})
        for kind in ("cosine", "linear", "wsd")
    ),
    *(
        (schedule(kind, 10, 0.1, 0.4 if kind == "wsd" else None), 10, {8: 0.9, 9: 1.0})
        for kind in ("cosine", "linear", "wsd")
    ),
    (schedule("cosine", 0, 0.0), 1, {0: 1.0}),  # even a single step trains
]


@pytest.mark.parametrize(
    ("chosen", "steps", "wanted"),
    BY_HAND,
    ids=lambda x: f"{x.kind}-{x.warmup_steps}" if isinstance(x, ScheduleSettings) else "",
)
def test_schedule_at_steps_worked_out_by_hand(chosen, steps, wanted):
    assert {step: lr_factor(chosen, step, steps) for step in wanted} == pytest.approx(wanted, abs=1e-12)


def dummy_optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def course(scheduler, steps):
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_schedules_equal_torch():
    cosine = course(CosineAnnealingLR(dummy_optimizer(), T_max=30, eta_min=0.1), 30)[:-1]
    assert [lr_factor(schedule("cosine", 0, 0.1), s, 30) for s in range(30)] == pytest.approx(cosine, abs=1e-9)
    linear = course(LinearLR(dummy_optimizer(), 1.0, 0.2, total_iters=30), 30)[:-1]
    assert [lr_factor(schedule("linear", 0, 0.2), s, 30) for s in range(30)] == pytest.approx(linear, abs=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_equal_transformers(warmup):
    from transformers import optimization as published

    theirs = {
        schedule("constant", warmup): published.get_constant_schedule_with_warmup(dummy_optimizer(), warmup),
        schedule("linear", warmup, 0.0): published.get_linear_schedule_with_warmup(dummy_optimizer(), warmup, 40),
        schedule("cosine", warmup, 0.0): published.get_cosine_schedule_with_warmup(dummy_optimizer(), warmup, 40),
        schedule("wsd", warmup, 0.0, 0.25): published.get_wsd_schedule(
            dummy_optimizer(), warmup, 10, num_training_steps=40, decay_type="linear"
        ),
    }
    for chosen, scheduler in theirs.items():
        rates = course(scheduler, 40)
        # their warmup spends its first step at a rate of 0, ours does not; the decays agree
        wanted = [rates[s + 1] if s < warmup else rates[s] for s in range(40)]
        assert [lr_factor(chosen, s, 40) for s in range(40)] == pytest.approx(wanted, abs=1e-9), chosen.kind


OPTIM = OptimSettings(kind="adamw", lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=None)


@pytest.mark.parametrize("posemb", ["t5", "learned"])
def test_every_matrix_decays_and_no_gain_or_bias_does(posemb):
    model = build_model(
        variant(norm="layer", norm_position="sandwich", posemb=posemb, stability="qk_norm", model={"bias": True})
    )
    decay = {
        id(p): group["weight_decay"] for group in build_optimizer(model, OPTIM).param_groups for p in group["params"]
    }
    assert set(decay) == {id(p) for p in model.parameters()}
    kinds = {Matrix: 0.1, Gain: 0.0, Bias: 0.0}
    owners = [
        (module, wanted) for module in model.modules() for kind, wanted in kinds.items() if isinstance(module, kind)
    ]
    assert len(owners) == len(decay)
    assert all(decay[id(module.weight)] == wanted for module, wanted in owners)


def test_adamw_steps_are_their_formula():
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.matrix, model.vector = (nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((3, 4), (5,)))
    optimizer = build_optimizer(model, OPTIM)
    wanted = {p: (p.detach().double(), 0.0, 0.0) for p in model.parameters()}
    for t, lr in enumerate((0.01, 0.02, 0.005), 1):
        set_lr(optimizer, lr)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            w, m, v = wanted[p]
            m, v = 0.9 * m + 0.1 * p.grad.double(), 0.95 * v + 0.05 * p.grad.double() ** 2
            update = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            wanted[p] = (w - lr * update - lr * (0.1 if p.ndim > 1 else 0.0) * w, m, v)
        optimizer.step()
        for p in model.parameters():
            torch.testing.assert_close(p, wanted[p][0].float(), rtol=1e-6, atol=1e-6)


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, 64, (2, 25), generator=generator)
        nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def fresh(seed=0):
    model = build_model(base().model_copy(update={"init_seed": seed}))
    return model, build_optimizer(model, OPTIM)


def test_checkpoint_restores_everything_to_the_bit(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, 3, seed=1)
    state = {"progress": {"seconds": 0.1, "init_val_loss": math.nan}, "words": ["a"]}
    path = save_checkpoint(tmp_path, 3, model, optimizer, state, keep=1)
    other, other_optimizer = fresh(seed=9)
    loaded = load_checkpoint(tmp_path, other, other_optimizer)
    assert loaded["step"] == 3
    assert loaded["words"] == ["a"]
    assert loaded["progress"]["seconds"] == 0.1
    assert math.isnan(loaded["progress"]["init_val_loss"])
    weights_only, _ = fresh(seed=9)
    load_weights(path, weights_only)
    for a, b, c in zip(model.parameters(), other.parameters(), weights_only.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert set(optimizer.state[a]) == set(other_optimizer.state[b]) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(optimizer.state[a][key], other_optimizer.state[b][key]) for key in optimizer.state[a])
    train(model, optimizer, 2, seed=2)
    train(other, other_optimizer, 2, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["half", "empty", "header", "noise"])
def test_damaged_newest_checkpoint_falls_back_to_the_older(tmp_path, damage):
    model, optimizer = fresh()
    for step in (1, 2, 3):
        train(model, optimizer, 1, seed=step)
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
        if step == 2:
            kept = [p.detach().clone() for p in model.parameters()]
    newest, older = checkpoints(tmp_path)
    assert (newest.name, older.name) == ("step-000000003.safetensors", "step-000000002.safetensors")
    data = newest.read_bytes()
    newest.write_bytes(
        {"half": data[: len(data) // 2], "empty": b"", "header": data[:50], "noise": b"\xff" * 999}[damage]
    )
    other, other_optimizer = fresh(seed=9)
    assert load_checkpoint(tmp_path, other, other_optimizer)["step"] == 2
    assert all(torch.equal(a, b) for a, b in zip(kept, other.parameters(), strict=True))
    shutil.rmtree(tmp_path)
    assert load_checkpoint(tmp_path, other, other_optimizer) is None


def records_of(cfg, folder, stop=lambda: 0):
    trainer = Trainer(scaled_model(cfg), SmallText(), cfg, folder)
    try:
        return list(trainer.records(stop)), trainer
    except Interrupted:
        return None, trainer


def test_a_run_cut_in_two_ends_like_an_unbroken_one(tmp_path):
    """Dropout and clipping on, so that their noise and state must survive as well."""
    cfg = config("model.dropout=0.2", "trainer.steps=6", "schedule.warmup_steps=2", "optim.grad_clip=0.5")
    whole, trainer = records_of(cfg, None)
    answers = iter([0, 0, 15])
    assert records_of(cfg, tmp_path, lambda: next(answers))[0] is None
    rest, resumed = records_of(cfg, tmp_path)
    assert resumed.progress.step == 6
    kept = ("step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb")
    assert [{key: r.get(key) for key in kept} for r in rest] == [{key: r.get(key) for key in kept} for r in whole[4:]]
    assert resumed.train_loss == trainer.train_loss
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True))
