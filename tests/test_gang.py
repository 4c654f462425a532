"""A gang member is indistinguishable from the same run trained alone: to the bit, on CPU, whatever sits beside it."""

import pytest
import torch
from tiny import SmallText, config

from lmablate.check.training import alone as solo
from lmablate.check.training import members, unlike
from lmablate.check.training import together as gang
from lmablate.model import build_model
from lmablate.training.gang import Gang, graph_key
from lmablate.training.trainer import Trainer

STEPS = 10


def members_of(*overrides, count=3):
    """Runs that differ in whatever a gang may differ in."""
    return members(config(*overrides, f"trainer.steps={STEPS}", "runtime.log_every=5"), count)


def assert_same_bits(a, b):
    assert unlike(a, b) is None


@pytest.mark.parametrize(
    "extra",
    [
        ("model.bias=true", "norm=layer"),
        ("model.tie_embeddings=true",),
        ("runtime.microbatch_size=3", "model.d_ff=64"),  # whole vectors: see gang_run.self_test
        ("attention=gqa", "stability=all", "posemb=t5"),
        (
            *("norm=layer", "norm.unit_offset=true", "model.embedding_norm=true", "model.embedding_scale=sqrt_d_model"),
            *("model.logit_scale=0.5", "model.head_bias=true", "model.qkv_bias=true", "optim.decay=independent"),
        ),
    ],
    ids=lambda words: words[0],
)
def test_combinations_gang_to_the_bit(extra):
    cfgs = members_of(*extra, count=4)
    for mine, alone in zip(gang(cfgs), map(solo, cfgs), strict=True):
        assert_same_bits(mine, alone)


def test_size_and_order_change_no_bit():
    cfgs = members_of(count=4)
    whole = gang(cfgs)
    for mine, other in zip(whole, gang(cfgs, size=2), strict=True):  # two slots, refilled as they come free
        assert_same_bits(mine, other)
    for mine, other in zip(whole, reversed(gang(cfgs[::-1])), strict=True):
        assert_same_bits(mine, other)


def test_a_member_that_diverges_leaves_the_others_untouched():
    cfgs = members_of("norm=none", count=4)
    wild = cfgs[1].optim.model_copy(update={"lr": 1e9, "grad_clip": None})
    cfgs[1] = cfgs[1].model_copy(update={"optim": wild})
    together = gang(cfgs)
    assert together[1].diverged is not None
    for k in (0, 2, 3):
        assert together[k].diverged is None
        assert_same_bits(together[k], solo(cfgs[k]))
    assert together[1].diverged == solo(cfgs[1]).diverged


def test_members_of_different_lengths_and_a_queue_longer_than_the_gang():
    cfgs = of_lengths(6, 20, 11, 3)
    for mine, alone in zip(gang(cfgs, size=2), map(solo, cfgs), strict=True):
        assert_same_bits(mine, alone)


def of_lengths(*steps):
    """Members that end after different numbers of steps."""
    return [
        cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"steps": n})})
        for cfg, n in zip(members_of(count=len(steps)), steps, strict=True)
    ]


def test_slots_of_a_compiled_gang_stay_until_half_are_free(monkeypatch):
    built = []
    monkeypatch.setattr(
        "lmablate.training.gang.compile_model", lambda model, cfg, step, objective: built.append(step())
    )
    cfgs = of_lengths(6, 20, 3, 11)
    for mine, alone in zip(gang(cfgs, compiled=True), map(solo, cfgs), strict=True):
        assert_same_bits(mine, alone)
    assert len(built) == 3  # for four members, for two, for one


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("extra", [("norm=rms",), ("norm=layer", "posemb=t5", "attention=gqa"), ("stability=all",)])
def test_a_compiled_gang_computes_what_compiled_runs_do(extra, precision):
    cfgs = members_of(*extra, f"trainer.precision={precision}", "runtime.compile=true", count=3)
    for mine, alone in zip(gang(cfgs, compiled=True), map(solo, cfgs), strict=True):
        for name, weight in mine.weights.items():
            torch.testing.assert_close(weight, alone.weights[name], rtol=1e-4, atol=1e-5)


def test_a_gang_checkpoint_resumes_alone_and_a_solo_one_in_a_gang(tmp_path):
    cfgs = [
        cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"checkpoint_seconds": 0.0})})
        for cfg in members_of(count=2)
    ]
    whole = [solo(cfg) for cfg in cfgs]

    def trainer(k, way):
        folder = tmp_path / way / str(k)
        folder.mkdir(parents=True, exist_ok=True)
        return Trainer(build_model(cfgs[k]), SmallText(), cfgs[k], folder)

    stop = iter([0] * 14 + [15] * 2)  # both members ask once a step; stop after seven
    with pytest.raises(Exception, match="15"):
        list(Gang([(k, trainer(k, "gang first")) for k in range(2)], size=2, stop=lambda: next(stop)).run())
    for k in range(2):  # seven steps in a gang, the rest alone
        alone = trainer(k, "gang first")
        list(alone.records())
        assert_same_weights(alone, whole[k])
    for k in range(2):
        count = iter([0] * 6 + [15])
        with pytest.raises(Exception, match="15"):
            list(trainer(k, "solo first").records(lambda count=count: next(count)))
    together = {k: trainer(k, "solo first") for k in range(2)}
    list(Gang(together.items(), size=2).run())
    for k in range(2):
        assert_same_weights(together[k], whole[k])


def assert_same_weights(trainer, wanted):
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, wanted.weights[name])


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "init_seed=4",
        "data_seed=4",
        "optim.lr=1e-3",
        "optim.weight_decay=0.0",
        "optim.beta1=0.8",
        "optim.grad_clip=0.5",
        "schedule=wsd",
        "schedule.warmup_steps=2",
        "model.init_std=0.05",
        "trainer.steps=9",
    ],
)
def test_what_may_differ_in_a_gang(word):
    assert graph_key(config(), SmallText()) == graph_key(config(word), SmallText())


@pytest.mark.parametrize(
    "word",
    [
        "norm=layer",
        "activation=geglu",
        "posemb=alibi",
        "model.d_ff=80",
        "model.bias=true",
        "trainer.batch_size=3",
        "model.context_length=16",
        "trainer.precision=bf16",
        "stability=z_loss",
        "norm.eps=1e-5",
        "posemb.rope_theta=500.0",
        "runtime.microbatch_size=2",
    ],
)
def test_what_may_not_differ_in_a_gang(word):
    assert graph_key(config(), SmallText()) != graph_key(config(word), SmallText())


def test_dropout_runs_solo():
    assert graph_key(config("model.dropout=0.1"), SmallText()) is None


def test_z_loss_may_differ_in_size():
    assert graph_key(config("stability.z_loss=1e-4"), SmallText()) == graph_key(
        config("stability.z_loss=1e-3"), SmallText()
    )
