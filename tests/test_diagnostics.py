"""Diagnostics change no bit of the training, in any option, alone or in a gang; and each number is what it says."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from test_gang import assert_same_bits
from tiny import SmallText, config, every_option, scaled_model
from variants import variant

from lmablate.check.training import summary
from lmablate.diagnostics import activations, attention
from lmablate.diagnostics.gradients import update_ratios
from lmablate.diagnostics.logits import logit_scale
from lmablate.diagnostics.module_names import branches, groups, layers
from lmablate.diagnostics.norms import gains
from lmablate.diagnostics.probe import measure_pass
from lmablate.diagnostics.spikes import DEVIATIONS, LEAST, WINDOW, spike_scores, spikes
from lmablate.model import build_model
from lmablate.model.posemb import AttentionContext
from lmablate.model.primitives import Gain
from lmablate.objective import Batch
from lmablate.schema.diagnostics import SETTINGS_KEY, DiagnosticsSettings
from lmablate.training.gang import Gang
from lmablate.training.trainer import Trainer

ALL = DiagnosticsSettings(
    measures=["gradients", "updates", "activations", "ffn", "attention", "logits", "norms"], every=2, sequences=2
)
EVERY = set(ALL.measures)


def with_diagnostics(cfg, **changes):
    return cfg.model_copy(update={"diagnostics": ALL.model_copy(update=changes)})


def shortened(cfg, steps=2):
    return cfg.model_copy(update={"trainer": cfg.trainer.model_copy(update={"steps": steps})})


def trained(cfg, scale=1.0):
    trainer = Trainer(scaled_model(cfg, scale), SmallText(), cfg, folder=None)
    return trainer, list(trainer.records())


def without(records):
    """The records as a run without diagnostics writes them; those of measurements alone are left out."""
    kept = [{k: v for k, v in record.items() if not k.startswith("diag")} for record in records]
    return [record for record in kept if "val_loss" in record or "train_loss" in record]


def texts(cfg, rows=2):
    inputs, targets = SmallText().val_windows(cfg.model.context_length)
    return Batch(torch.from_numpy(inputs[:rows]), torch.from_numpy(targets[:rows]))


@pytest.mark.parametrize(
    ("axis", "option"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair[0] == "aspect_ratio" else ()) for pair in every_option()],
    ids=lambda word: word,
)
def test_a_run_is_the_same_to_the_bit_and_every_layer_is_seen(axis, option):
    cfg = shortened(config(f"{axis}={option}") if axis == "aspect_ratio" else variant(**{axis: option}))
    plain, alone = trained(cfg)
    probed, records = trained(with_diagnostics(cfg))
    assert_same_bits(summary(plain, alone), summary(probed, without(records)))
    for record in (records[0], records[-1]):
        assert record["step"] in (0, 2)
        numbers = {k: v for k, v in record.items() if k.startswith("diag/")}
        assert np.isfinite(list(numbers.values())).all()
        for i in range(cfg.model.n_layers):
            for name in ("stream_rms", "attn/max_logit", "attn/entropy", "attn/out_rms", "ffn/dead", "ffn/grad_norm"):
                assert f"diag/layer{i:02}/{name}" in numbers


def test_dropout_draws_the_same_noise():
    cfg = shortened(config("model.dropout=0.2", "norm_position=sandwich"), 4)
    plain, alone = trained(cfg)
    probed, records = trained(with_diagnostics(cfg))
    assert_same_bits(summary(plain, alone), summary(probed, without(records)))


def test_a_step_between_two_records_is_measured_and_leaves_the_records_alone():
    cfg = config("runtime.log_every=3", "trainer.steps=6", "runtime.evaluations=1")
    plain, alone = trained(cfg)
    probed, records = trained(with_diagnostics(cfg))
    assert_same_bits(summary(plain, alone), summary(probed, without(records)))
    assert [r["step"] for r in records if SETTINGS_KEY in r] == [0, 2, 4, 6]
    assert [r["step"] for r in records if "train_loss" in r] == [3, 6]


def test_members_of_a_gang_have_the_numbers_they_have_alone():
    cfgs = [with_diagnostics(config("attention=gqa", f"seed={seed}"), every=1 + seed) for seed in (0, 1)]
    trainers = {k: Trainer(build_model(cfg), SmallText(), cfg, folder=None) for k, cfg in enumerate(cfgs)}
    together = {k: [] for k in trainers}
    for name, record in Gang(trainers.items(), size=2).run():
        if record is not None:
            together[name].append(record)
    for k, cfg in enumerate(cfgs):
        alone, records = trained(cfg)
        assert any("diag/layer01/ffn/update_ratio" in record for record in records)
        assert_same_bits(summary(trainers[k], together[k]), summary(alone, records))


@pytest.mark.slow
def test_a_compiled_run_is_the_same_with_and_without():
    cfg = config("runtime.compile=true", "runtime.microbatch_size=2")
    plain, alone = trained(cfg)
    if not plain.compiled:
        pytest.skip(plain.compile_note or "not compiled")
    probed, records = trained(with_diagnostics(cfg))
    assert probed.compiled
    assert_same_bits(summary(plain, alone), summary(probed, without(records)))
    assert "diag/layer01/attn/entropy" in records[-1]


def test_places_hold_every_parameter_once():
    for words in (
        {"attention": "mla", "block_layout": "parallel", "norm_position": "sandwich", "posemb": "transformer_xl"},
        {"stability": "qk_norm", "norm": "layer", "posemb": "learned", "model": {"head_bias": True, "tie_embeddings": True}},
    ):  # fmt: skip
        model = build_model(variant(**words))
        found = [id(p) for some in groups(model).values() for p in some]
        assert sorted(found) == sorted(map(id, model.parameters()))
        assert not any(place.endswith("/other") for place in groups(model))


def test_gradient_norms_are_the_steps_own_before_clipping():
    cfg = with_diagnostics(config("optim.grad_clip=0.01"), every=1)
    _, records = trained(cfg)
    for record in records[1:]:
        squares = [v**2 for k, v in record.items() if k.startswith("diag/") and k.endswith("/grad_norm")]
        assert sum(squares) ** 0.5 == pytest.approx(record["grad_norm"], rel=1e-5)
    model = build_model(cfg)
    batch = torch.from_numpy(SmallText().batch(0, data_seed=0, batch_size=4, context_length=cfg.model.context_length))
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, -2), batch[:, 1:].flatten())
    (gradient,) = torch.autograd.grad(loss, [model.embedding.weight])
    for record in records[:2]:  # before training, and of the first step: the same batch and the same weights
        assert record["diag/embed/grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_the_first_update_of_a_gain_is_the_learning_rate():
    """Adam's first step moves every weight by lr; gains are 1 and do not decay."""
    _, records = trained(with_diagnostics(config("norm_position=sandwich", "trainer.steps=1"), every=1))
    assert records[1]["diag/layer00/norm/update_ratio"] == pytest.approx(records[1]["lr"], rel=1e-3)


def test_update_ratio_in_numbers():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    before = {"here": [torch.tensor([3.0, 3.0])]}
    assert float(update_ratios({"here": [weight]}, before)["here/update_ratio"]) == pytest.approx(1 / 18**0.5)


def test_rms_and_kurtosis_are_scipys():
    x = torch.randn(4, 30, 16, generator=torch.Generator().manual_seed(0)) ** 3 + 0.5
    assert float(activations.rms(x)) == pytest.approx(np.sqrt((x.double().numpy() ** 2).mean()), rel=1e-5)
    wanted = scipy.stats.kurtosis(x.double().numpy(), axis=None, fisher=False)
    assert float(activations.kurtosis(x)) == pytest.approx(wanted, rel=1e-4)


def test_the_stream_is_what_the_blocks_give():
    cfg = variant(posemb="none", norm_position="post")
    model = scaled_model(cfg, 3.0).eval()
    found = measure_pass(model, texts(cfg), EVERY)
    with torch.no_grad():
        x = model.embed(texts(cfg).inputs)
        stream = [float(x.square().mean().sqrt())]
        for block in model.blocks:
            x = block(x, AttentionContext(lambda q, k: (q, k), None))
            stream.append(float(x.square().mean().sqrt()))
    names = ["embed/stream_rms", *(f"layer{i:02}/stream_rms" for i in range(len(model.blocks)))]
    assert [float(found[name]) for name in names] == pytest.approx(stream, rel=1e-5)
    assert float(found["stream_growth"]) == pytest.approx(stream[-1] / stream[0], rel=1e-5)


def test_units_that_never_fire_are_dead_and_those_that_hardly_do_dormant():
    cfg = variant(activation="relu")
    model = scaled_model(cfg, 3.0).eval()
    ffn = next(branch for word, branch in model.blocks[0].named_modules() if word.endswith("ffn.branch"))
    with torch.no_grad():
        ffn.in_proj.weight[:10] = 0.0
        ffn.in_proj.weight[10:20] *= 1e-3
    found = measure_pass(model, texts(cfg), {"ffn"})
    assert float(found["layer00/ffn/dead"]) == pytest.approx(10 / cfg.model.d_ff)
    assert float(found["layer00/ffn/dormant"]) == pytest.approx(20 / cfg.model.d_ff)
    assert float(found["layer01/ffn/dead"]) == 0.0


def test_entropy_of_attention_is_that_of_torchs_weights():
    """The same weights in torch's own attention module, whose attention weights scipy takes the entropy of."""
    cfg = variant(posemb="none")
    model = scaled_model(cfg, 8.0).eval()
    inputs = []
    own = [branch for _, block in layers(model) for word, branch in branches(block) if word == "attn"]
    hooks = [branch.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for branch in own]
    found = measure_pass(model, texts(cfg), {"attention"})
    for i, (branch, x) in enumerate(zip(own, inputs, strict=True)):
        hooks[i].remove()
        theirs = torch.nn.MultiheadAttention(x.shape[-1], cfg.model.n_heads, bias=False, batch_first=True).eval()
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (branch.q_proj, branch.k_proj, branch.v_proj)]))
            theirs.out_proj.weight.copy_(branch.out_proj.weight)
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            _, weights = theirs(x, x, x, attn_mask=future, average_attn_weights=False)  # [B, H, T, T]
        by_head = scipy.stats.entropy(weights.double().numpy(), axis=-1).mean(axis=(0, 2))
        assert by_head.max() - by_head.min() > 0.01
        assert float(found[f"layer{i:02}/attn/entropy"]) == pytest.approx(by_head.mean(), rel=1e-4)
        assert float(found[f"layer{i:02}/attn/entropy_min"]) == pytest.approx(by_head.min(), rel=1e-4)


@pytest.mark.parametrize("masked", ["causal", "added", "bool"])
def test_scores_are_those_that_fused_attention_takes_the_softmax_of(masked):
    q, k, v = torch.randn(3, 5, 2, 7, 8, generator=torch.Generator().manual_seed(1)).unbind()
    mask = {"causal": None, "added": torch.randn(2, 7, 7), "bool": torch.ones(7, 7, dtype=torch.bool).tril(-0)}[masked]
    how = {"attn_mask": mask, "is_causal": masked == "causal", "scale": 0.7}
    scores = torch.cat(list(attention._score_chunks(q, k, v, **how)))
    torch.testing.assert_close(scores.softmax(-1) @ v, F.scaled_dot_product_attention(q, k, v, **how))


def test_the_largest_logit_is_found_and_a_cap_bounds_it():
    for stability, bounded in (("none", False), ("soft_cap", True)):
        cfg = variant(stability=stability)
        found = measure_pass(scaled_model(cfg, 60.0).eval(), texts(cfg), {"attention"})
        largest = float(found["max_attention_logit"])
        assert largest == max(float(found[f"layer{i:02}/attn/max_logit"]) for i in range(2))
        assert (largest <= (cfg.stability.attention_soft_cap or 50.0)) is bounded


def test_logits_and_their_normaliser():
    cfg = variant(stability="soft_cap")
    model = scaled_model(cfg, 20.0).eval()
    with torch.no_grad():
        logits = model(texts(cfg).inputs).double().numpy()
        found = logit_scale(model, model.hidden(texts(cfg).inputs))
    z = logsumexp(logits, axis=-1)
    assert float(found["logits/log_z"]) == pytest.approx(z.mean(), rel=1e-5)
    assert float(found["logits/log_z2"]) == pytest.approx((z**2).mean(), rel=1e-5)
    assert float(found["logits/max"]) == pytest.approx(np.abs(logits).max(), rel=1e-5)
    assert float(found["logits/std"]) == pytest.approx(np.sqrt(logits.var(-1).mean()), rel=1e-5)


def test_gains_of_a_place_however_they_are_stored():
    model = build_model(config("norm.unit_offset=true", "stability=qk_norm"))
    with torch.no_grad():
        for module in model.blocks[1].modules():
            if isinstance(module, Gain) and module.weight.shape == (32,):
                module.weight[0] = -4.0
    found = gains(model)
    assert float(found["layer01/norm/gain_max"]) == 3.0
    assert float(found["layer01/norm/gain_mean"]) == pytest.approx((31 + 3) / 32)
    assert float(found["layer01/attn/gain_mean"]) == float(found["layer00/norm/gain_max"]) == 1.0


def slow_spikes(values):
    """The definition, value by value."""
    hits = judged = 0
    for t, value in enumerate(values):
        past = values[max(0, t - WINDOW) : t]
        past = past[np.isfinite(past)]
        if len(past) >= LEAST:
            judged += 1
            hits += not abs(value - past.mean()) < DEVIATIONS * past.std()
    return 100 * hits / judged, judged


def test_spike_score_is_its_definition():
    values = 3 + 0.1 / np.arange(1, 1501) ** 0.5 + np.random.default_rng(0).normal(0, 0.01, 1500)
    values[[300, 900, 1300]] += (0.6, -0.6, 5.0)
    values[1400] = np.nan
    score, judged = spikes(values)
    assert (score, judged) == pytest.approx(slow_spikes(values))
    assert score == pytest.approx(100 * 4 / 1480)
    assert spikes([1.0] * 100).score == 0.0
    assert spikes([1.0] * LEAST) == (None, 0)


def test_spikes_of_records_count_training_records_alone():
    noise = np.random.default_rng(1).normal(0, 0.1, 60)
    rows = [{"step": 0, "val_loss": 9.0}]
    rows += [{"step": i, "lr": 1e-3, "train_loss": 3 + noise[i], "grad_norm": 1 + noise[i]} for i in range(1, 60)]
    rows.insert(30, {"step": 29, "diag/logits/max": 1.0})
    rows[50]["grad_norm"] = None  # it was not finite
    found = spike_scores(rows)
    assert found == {"loss_spike_score": 0.0, "grad_norm_spike_score": 100 / 39, "spike_values": 39}


def test_a_record_says_what_was_asked_for():
    _, records = trained(with_diagnostics(config(), measures=["norms"], every=3))
    told = [record for record in records if SETTINGS_KEY in record]
    assert [record["step"] for record in told] == [0, 3, 4]
    assert json.loads(told[0][SETTINGS_KEY]) == {"measures": ["norms"], "every": 3, "sequences": 2}
    assert {k.rpartition("/")[2] for k in told[0] if k.startswith("diag/")} == {"gain_mean", "gain_max"}
