"""Objectives: what they let a token read, which targets count, and that everything beside them handles both."""

import itertools
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hf_models import CASES
from reference_models import D_MODEL, HEAD_DIM, LENGTH, N_HEADS, N_LAYERS, VOCAB, close, hf, hf_config, randomise
from tiny import SmallText, options, tokens_for, training_record
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate.budget import flops_per_token, forward_products, keys_of_layers
from lmablate.budget.flops import spans
from lmablate.budget.trace import trace
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.evaluate import evaluate
from lmablate.interop import from_hf, to_hf
from lmablate.model import build_model
from lmablate.model.attention import AttentionSpan, visible, with_prefix
from lmablate.model.posemb import ALiBi, PositionShape, T5Bias, TransformerXL
from lmablate.objective import IGNORE, OBJECTIVES, Batch, Causal, Prefix, objective_of, stacked
from lmablate.objective.prefix import draws
from lmablate.schema.training_config import ObjectiveSettings
from lmablate.training.gang import Gang, graph_key
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer

AHEAD = PositionShape(D_MODEL, N_HEADS, HEAD_DIM, LENGTH, N_LAYERS, looks_ahead=True)


def prefixed(share=0.5, draw="uniform", **axes):
    """The small default configuration with a prefix."""
    cfg = variant(**axes)
    own = ObjectiveSettings(kind="prefix", prefix_share=share, prefix_draw=draw)
    return cfg.model_copy(update={"objective": own, "choices": cfg.choices | {"objective": "prefix"}})


def batch_of(cfg, rows=3, step=0):
    tokens = tokens_for(cfg, rows=rows)
    return objective_of(cfg).batch(tokens[:, :-1], tokens[:, 1:], data_seed=cfg.data_seed, step=step)


@cache
def readable(length, prefix, window=None, stride=None):
    """By loops: query i reads key j at or before it, or inside the prefix, within the window, at distances of the stride."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i, j in itertools.product(range(length), repeat=2):
        allowed = j <= i or j < prefix
        mask[i, j] = allowed and (window is None or abs(i - j) < window) and (stride is None or (i - j) % stride == 0)
    return mask


@pytest.mark.parametrize("prefix", [0, 1, 2, 7, 23, 24])
@pytest.mark.parametrize(("window", "stride"), [(None, None), (1, None), (5, None), (None, 3), (24, None)])
def test_mask_is_its_definition(prefix, window, stride):
    mask = visible(24, AttentionSpan(window, stride), torch.device("cpu"), with_prefix(24, torch.tensor([prefix])))
    assert torch.equal(mask[0, 0], readable(24, prefix, window, stride))


def test_a_prefix_of_one_token_is_causal_and_of_all_tokens_hides_nothing():
    mask = with_prefix(9, torch.tensor([[0, 1], [5, 9]]))
    causal = visible(9, AttentionSpan(), torch.device("cpu"))
    assert mask.shape == (2, 2, 1, 9, 9)
    assert torch.equal(mask[0, 0, 0], causal)
    assert torch.equal(mask[0, 1, 0], causal)
    assert mask[1, 1].all()


# --- attention: every path against a softmax written out, gradients included


def written_out(monkeypatch):
    """Replace attention by a softmax over the keys of the definition, text by text."""
    from lmablate.model.attention import heads, latent

    def slowly(q, k, v, *, bias, span, scale, soft_cap, dropout, may_read=None):
        assert dropout == 0.0
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if bias is None else scores + bias
        scores = scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)
        mask = torch.stack([readable(q.shape[-2], prefix, *span) for prefix in PREFIXES])[:, None]
        weights = torch.where(mask, (scores - scores.detach().amax()).exp(), 0.0)
        return weights / weights.sum(-1, keepdim=True) @ v

    for module in (heads, latent):
        monkeypatch.setattr(module, "attend", slowly)


PREFIXES = (1, 11, 24)
MIXES = [("posemb", option) for option in options("posemb")] + [
    ("attention", option) for option in options("attention")
]
MIXES += [("stability", "soft_cap"), ("block_layout", "parallel")]


@pytest.mark.parametrize(("axis", "option"), MIXES, ids=lambda word: word)
def test_every_attention_path_equals_a_softmax_over_the_keys_that_are_read(axis, option, monkeypatch):
    others = {"attention": "gqa"} if axis != "attention" else {"posemb": "t5"}
    cfg = prefixed(**{axis: option, **(others if (axis, option) != ("stability", "soft_cap") else {"posemb": "alibi"})})
    model = randomise(build_model(cfg), scale=0.2)
    tokens = tokens_for(cfg, rows=3)[:, :-1]
    prefix = torch.tensor(PREFIXES)
    logits = model(tokens, prefix)
    gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()), allow_unused=True)
    written_out(monkeypatch)
    expected = model(tokens, prefix)
    wanted = torch.autograd.grad(expected.square().mean(), list(model.parameters()), allow_unused=True)
    close(logits, expected, 2e-5)
    largest = max(float(g.abs().max()) for g in wanted if g is not None)
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            close(mine, theirs, 1e-4, scale=largest)


@pytest.mark.parametrize(
    "name", ["llama3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "pythia"))]
)
def test_logits_equal_a_transformers_model_with_the_mask_in_four_dimensions(name):
    theirs = CASES[name].build()
    ours = from_hf(theirs)
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = torch.stack([readable(LENGTH, prefix) for prefix in PREFIXES])[:, None]
    mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        close(ours(tokens, torch.tensor(PREFIXES)), theirs(input_ids=tokens, attention_mask=mask).logits, 2e-5)


# --- positions ahead of the query


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (16, 20), (4, 3), (8, 1000)])
def test_t5_buckets_are_those_of_its_encoder(n_buckets, max_distance):
    keys = {"relative_attention_num_buckets": n_buckets, "relative_attention_max_distance": max_distance}
    made = hf_config("T5", d_model=D_MODEL, d_kv=HEAD_DIM, num_heads=N_HEADS, is_decoder=False, **keys)
    theirs = randomise(hf("t5", "T5Attention")(made, has_relative_attention_bias=True, layer_idx=0))
    ours = T5Bias(AHEAD, n_buckets=n_buckets, max_distance=max_distance)
    with torch.no_grad():
        ours.table.weight.copy_(theirs.relative_attention_bias.weight)
    close(ours.score_bias(60), theirs.compute_bias(60, 60)[0])


def test_alibi_is_symmetric_where_keys_ahead_are_read():
    bias, before = ALiBi(AHEAD).score_bias(9), ALiBi(AHEAD._replace(looks_ahead=False)).score_bias(9)
    assert torch.equal(bias, bias.mT)
    assert torch.equal(bias.tril(), before.tril())


def test_transformer_xl_has_the_sinusoids_of_negative_distances():
    """``(q + v) W_R r_{i - j}`` by loops, as XLNet has it in both directions."""
    posemb = randomise(TransformerXL(AHEAD, theta=10000.0))
    q = torch.randn(2, N_HEADS, 9, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    _, scores = posemb.relative(q, 1)
    terms = posemb.layers[1]
    frequency = 10000.0 ** (-torch.arange(0, D_MODEL, 2, dtype=torch.float64) / D_MODEL)
    for i, j in itertools.product(range(9), repeat=2):
        angle = (i - j) * frequency
        r = terms.proj(torch.stack((angle.sin(), angle.cos()), -1).flatten().float()).view(N_HEADS, HEAD_DIM)
        wanted = ((q[:, :, i] + terms.position.weight.view(N_HEADS, HEAD_DIM)) * r).sum(-1)
        close(scores[:, :, i, j], wanted, 2e-5)


# --- which targets count


def test_only_targets_after_the_prefix_count():
    batch = batch_of(prefixed(), rows=16)
    tokens = tokens_for(prefixed(), rows=16)
    assert len(set(batch.prefix.tolist())) > 4
    for row, prefix in enumerate(batch.prefix.tolist()):
        assert (batch.targets[row, : prefix - 1] == IGNORE).all()
        assert torch.equal(batch.targets[row, prefix - 1 :], tokens[row, prefix:])
    assert torch.equal(batch.inputs, tokens[:, :-1])


def test_no_target_that_counts_is_read():
    """The gradient of each counted logit with respect to the embedding of the token it predicts, and of all after it."""
    cfg = prefixed()
    model = randomise(build_model(cfg))
    batch = next(
        batch for step in itertools.count() if 4 < int((batch := batch_of(cfg, rows=1, step=step)).prefix) < 20
    )
    prefix = int(batch.prefix)
    seen = []
    model.embedding.register_forward_hook(
        lambda module, ids, out: seen.append(out.requires_grad_().retain_grad() or out)
    )
    logits = model(batch.inputs, batch.prefix)
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), seen[0], retain_graph=True)
        reached = gradient[0].abs().amax(-1) > 0
        last = max(t + 1, prefix)
        assert reached[:last].all()
        assert not reached[last:].any()
        assert (batch.targets[0, t] == IGNORE) == (last > t + 1)


@pytest.mark.parametrize("z_loss", [None, 0.3])
@pytest.mark.parametrize("chunked", [False, True])
def test_loss_is_the_mean_over_the_targets_that_count(z_loss, chunked, monkeypatch):
    monkeypatch.setattr("lmablate.objective.likelihood.worth_chunking", lambda rows, vocab: chunked)
    cfg = prefixed()
    model, batch = randomise(build_model(cfg)), batch_of(cfg)
    loss = Prefix(z_loss=z_loss, prefix_share=0.5, prefix_draw="uniform")(model, *batch)
    logits = model(batch.inputs, batch.prefix)
    kept = batch.targets != IGNORE
    nats = torch.stack([-logits[b, t].log_softmax(-1)[batch.targets[b, t]] for b, t in kept.nonzero().tolist()])
    close(loss.nats, nats.mean())
    extra = 0 if z_loss is None else z_loss * logits[kept].logsumexp(-1).square().mean()
    close(loss.objective, nats.mean() + extra)


def test_of_one_token_it_is_the_causal_loss_to_the_bit_of_the_mask():
    cfg = prefixed()
    model, tokens = randomise(build_model(variant())), tokens_for(cfg)
    ones = torch.ones(len(tokens), dtype=torch.long)
    causal = Causal(z_loss=0.1)(model, tokens[:, :-1], tokens[:, 1:])
    close(
        Prefix(z_loss=0.1, prefix_share=0.5, prefix_draw="fixed")(model, tokens[:, :-1], tokens[:, 1:], ones).objective,
        causal.objective,
        1e-6,
    )


# --- how long a prefix is


def test_draws_are_a_function_of_seed_step_and_place_and_uniform():
    assert np.array_equal(draws(3, 5, 8, 24), draws(3, 5, 8, 24))
    assert np.array_equal(draws(3, 5, 8, 24), draws(3, 5, 16, 24)[:8])
    assert not np.array_equal(draws(3, 5, 8, 24), draws(3, 6, 8, 24))
    assert not np.array_equal(draws(3, 5, 8, 24), draws(4, 5, 8, 24))
    counts = np.bincount(np.concatenate([draws(0, step, 32, 8) for step in range(250)]), minlength=9)
    assert counts[0] == 0
    assert ((counts[1:] - 1000) ** 2 / 1000).sum() < 24.3  # chi-squared with 7 degrees of freedom, p = 0.001


def test_what_a_seed_draws_stays():
    assert draws(0, 0, 6, 128).tolist() == [91, 35, 9, 24, 76, 82]


@pytest.mark.parametrize("draw", ["uniform", "fixed"])
def test_training_texts_have_the_prefixes_of_the_rule(draw):
    cfg = prefixed(0.25, draw)
    for step in (0, 7):
        expected = draws(cfg.data_seed, step, 3, LENGTH).tolist() if draw == "uniform" else [6, 6, 6]
        assert batch_of(cfg, step=step).prefix.tolist() == expected
    tokens = tokens_for(cfg)
    assert objective_of(cfg).validation(tokens[:, :-1], tokens[:, 1:]).prefix.tolist() == [6, 6, 6]


# --- training, gangs, evaluation


def trained(cfg, **keys):
    cfg = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update=keys)})
    return training_record(cfg, 5.0)


def test_microbatches_weigh_targets_alike():
    cfg = prefixed()
    whole, parts = trained(cfg), trained(cfg, microbatch_size=1)
    np.testing.assert_allclose(parts.numbers, whole.numbers, rtol=1e-5)


def test_a_run_continues_with_the_prefixes_of_its_step(tmp_path):
    cfg = prefixed()
    through = Trainer(build_model(cfg), SmallText(), cfg, folder=None)
    list(through.records())
    steps = iter([0, 15])  # asked after each step: a signal after the second
    with pytest.raises(Interrupted):
        list(Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path).records(lambda: next(steps)))
    resumed = Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path)
    list(resumed.records())
    for mine, theirs in zip(resumed.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.progress.evaluation == through.progress.evaluation
    assert resumed.progress.evaluation.val_bpb is None


def test_members_of_a_gang_have_their_own_prefixes_and_the_bits_of_each_alone():
    cfgs = [prefixed().model_copy(update={"data_seed": seed, "init_seed": seed}) for seed in (0, 1, 2)]
    assert len({graph_key(cfg, SimpleNamespace(fingerprint="a", tokenizer_fingerprint="b")) for cfg in cfgs}) == 1
    alone = [Trainer(build_model(cfg), SmallText(), cfg, folder=None) for cfg in cfgs]
    for trainer in alone:
        list(trainer.records())
    together = {k: Trainer(build_model(cfg), SmallText(), cfg, folder=None) for k, cfg in enumerate(cfgs)}
    list(Gang(together.items(), size=3).run())
    for k, trainer in enumerate(alone):
        for mine, theirs in zip(trainer.model.parameters(), together[k].model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_another_objective_is_another_graph():
    data = SimpleNamespace(fingerprint="a", tokenizer_fingerprint="b")
    keys = [graph_key(cfg, data) for cfg in (prefixed(), prefixed(draw="fixed"), variant())]
    assert len(set(keys)) == 3


def test_losses_of_members_are_their_own():
    cfgs = [prefixed().model_copy(update={"data_seed": seed}) for seed in (0, 1)]
    model = randomise(build_model(cfgs[0]))
    batches = [batch_of(cfg) for cfg in cfgs]
    logits = torch.stack([model(batch.inputs, batch.prefix) for batch in batches])

    class Told(torch.nn.Module):
        def forward(self, inputs, prefix):
            assert torch.equal(prefix, torch.stack([batch.prefix for batch in batches]))
            return logits

    objectives = [objective_of(cfg) for cfg in cfgs]
    together = objectives[0](Told(), *stacked(batches))
    for k, (objective, batch) in enumerate(zip(objectives, batches, strict=True)):
        close(together.nats[k], objective(model, *batch).nats, 1e-6)


def by_hand(model, data, prefix, first):
    """Mean nats of the targets from input `first` on, windows read with a prefix, one text at a time."""
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(LENGTH))
    nats = []
    for x, y in zip(inputs, targets, strict=True):
        logits = model(x[None], torch.tensor([prefix]))[0]
        each = F.cross_entropy(logits, y, reduction="none")
        nats += each[first:].tolist()
    return sum(nats) / len(nats)


@pytest.mark.parametrize("cfg", [prefixed(), prefixed(0.25, "fixed"), variant()], ids=["uniform", "quarter", "causal"])
def test_validation_is_of_fixed_prefixes_and_the_yardsticks_are_of_the_same_targets(cfg):
    model, data = randomise(build_model(cfg)).eval(), SmallText()
    with torch.no_grad():
        found = evaluate(
            model, data, objective_of(cfg), context_length=LENGTH, batch_size=1, device="cpu", with_lengths=True
        )
        reads_prefix = cfg.objective.kind == "prefix"
        own = round((cfg.objective.prefix_share or 0) * LENGTH) or 1
        assert found.val_loss == pytest.approx(by_hand(model, data, own, own - 1), rel=1e-5)
        assert set(found.yardsticks) == {
            "val_loss_causal",
            "val_loss_after_25",
            "val_loss_after_50",
            "val_loss_after_75",
        }
        assert found.yardsticks["val_loss_causal"] == pytest.approx(by_hand(model, data, 1, 0), rel=1e-5)
        for share in (25, 50, 75):
            place = LENGTH * share // 100
            wanted = by_hand(model, data, place if reads_prefix else 1, place - 1)
            assert found.yardsticks[f"val_loss_after_{share}"] == pytest.approx(wanted, rel=1e-5)
    if reads_prefix:
        assert found.val_bpb is None
        assert found.val_loss == pytest.approx(
            found.yardsticks[f"val_loss_after_{round(100 * cfg.objective.prefix_share)}"]
        )
    else:
        assert found.val_bpb == pytest.approx(found.val_loss * 2 * LENGTH / math.log(2) / data.val_bytes)


def test_a_row_says_how_many_targets_a_token_brings():
    for cfg in (prefixed(), prefixed(0.3, "fixed"), variant()):
        counts = [float((batch_of(cfg, rows=64, step=s).targets != IGNORE).float().mean()) for s in range(40)]
        expected = objective_of(cfg).targets_per_token(LENGTH)
        assert np.mean(counts) == pytest.approx(expected, abs=4 * np.std(counts) / 40**0.5 + 1e-9)


# --- what it costs


@pytest.mark.parametrize("draw", ["uniform", "fixed"])
@pytest.mark.parametrize("option", options("attention"))
def test_keys_are_those_that_the_mask_lets_through(option, draw):
    cfg = prefixed(0.4, draw, attention=option)
    lengths = range(1, LENGTH + 1) if draw == "uniform" else [round(0.4 * LENGTH)]
    for keys, span in zip(keys_of_layers(cfg), spans(cfg), strict=True):
        wanted = np.mean([int(readable(LENGTH, prefix, *span).sum()) / LENGTH for prefix in lengths])
        assert keys == pytest.approx(wanted)


@pytest.mark.parametrize("axes", [{}, {"attention": "gqa"}, {"attention": "mla", "posemb": "t5"}], ids=str)
def test_flops_are_torchs_count_less_the_pairs_that_the_mask_hides(axes):
    cfg = prefixed(**axes)
    tokens, prefix = (
        torch.zeros((1, LENGTH), dtype=torch.long, device="meta"),
        torch.ones(1, dtype=torch.long, device="meta"),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(cfg, device="meta")(tokens, prefix)
    _, a_key = forward_products(cfg)
    hidden = sum(n * (LENGTH - keys) for n, keys in zip(a_key, keys_of_layers(cfg), strict=True))
    assert flops_per_token(cfg) == round(3 * (counter.get_total_flops() / LENGTH - 2 * hidden))
    assert flops_per_token(cfg) > flops_per_token(variant(**axes))


def test_transformer_xl_makes_the_keys_of_distances_ahead_too():
    cfg = prefixed(posemb="transformer_xl")
    tokens, prefix = (
        torch.zeros((1, LENGTH), dtype=torch.long, device="meta"),
        torch.ones(1, dtype=torch.long, device="meta"),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(cfg, device="meta")(tokens, prefix)
    matrices, a_key = forward_products(cfg)
    m = cfg.model
    columns = m.n_heads * m.head_dim * m.n_layers * (LENGTH - 1)  # of scores by distance beyond the T keys
    assert counter.get_total_flops() / LENGTH == pytest.approx(
        2 * (matrices + sum(a_key) * LENGTH + columns), abs=2 * m.n_layers
    )


def test_activation_bytes_are_those_that_autograd_keeps():
    cfg = prefixed(posemb="t5")
    model, batch = build_model(cfg), batch_of(cfg, rows=1)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def pack(x):
        alive.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    batch = Batch(*(None if x is None else x.clone() for x in batch))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = objective_of(cfg)(model, *batch).objective
    assert loss.isfinite()
    assert trace(cfg).saved_bytes == sum(size for place, size in kept.items() if place not in own)


# --- words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["objective=prefix", "objective.prefix_share=0.01"],
            r"prefix_share=0.01 of model.context_length=128 .*at least 0.0156",
        ),
        (["objective=prefix", "objective.prefix_share=1.0"], "objective.prefix_share=1.0: input should be less than 1"),
        (
            ["objective=prefix", "objective.prefix_draw=random"],
            "prefix_draw=random: input should be 'uniform' or 'fixed'",
        ),
        (["+objective.prefix_share=0.5"], "objective=causal has no prefix_share; it belongs to objective=prefix"),
        (["objective=prefix", "objective.prefix_draw=null"], "objective=prefix needs a prefix_draw"),
        (["objective=prefix", "posemb=t5", "posemb.n_buckets=6"], "posemb.n_buckets=6 must then be a multiple of 4"),
        (["objective=prefix", "data=mqar"], "data=mqar brings the answers"),
        (["objective=nsp"], "objective has causal, mlm, prefix, rtd, span_corruption"),
    ],
)
def test_what_makes_no_sense_is_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        compose(words)


def test_no_class_of_transformers_reads_a_prefix():
    with pytest.raises(
        ConfigError, match=r"none has objective=prefix.*LlamaForCausalLM would, but for objective=prefix"
    ):
        to_hf(build_model(prefixed()))


def test_every_option_has_its_class_and_says_whether_it_looks_ahead():
    assert sorted(OBJECTIVES) == options("objective")
    assert all(isinstance(kind.looks_ahead, bool) for kind in OBJECTIVES.values())
