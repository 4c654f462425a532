"""Replaced-token detection: generator, samples, loss, what it costs, and ELECTRA."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_models import LENGTH, VOCAB, close, randomise
from tiny import SmallText, tokens_for, training_record
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate import presets
from lmablate.budget import flops_per_token, parameters
from lmablate.budget.trace import trace
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.evaluate import evaluate
from lmablate.model import build_model
from lmablate.model.multi_stack import generator_of
from lmablate.objective import IGNORE, ReplacedTokens, objective_of
from lmablate.objective.rtd import precision_of_top, rates
from lmablate.schema.training_config import ObjectiveSettings
from lmablate.training.gang import graph_key

RTD = {"kind": "rtd", "mask_share": 0.15, "generator_share": 0.5, "discriminator_weight": 50.0}


def detecting(model=None, objective=None, **axes):
    cfg = variant(model=model, **axes)
    own = ObjectiveSettings(**(RTD | (objective or {})))
    return cfg.model_copy(update={"objective": own, "choices": cfg.choices | {"objective": "rtd"}})


def batch_of(cfg, rows=3, step=0):
    tokens = tokens_for(cfg, rows=rows)
    return objective_of(cfg).batch(tokens[:, :-1], tokens[:, 1:], data_seed=cfg.data_seed, step=step), tokens[:, 1:]


class Fixed(torch.nn.Module):
    """A generator with one distribution for every place."""

    def __init__(self, p):
        super().__init__()
        self.log_p = torch.tensor(p).log()

    def generator_logits(self, tokens, at):
        return self.log_p.expand(*at.shape, -1)


def test_samples_have_the_generators_probabilities_and_hang_on_the_noise_alone():
    p = [0.5, 0.2, 0.2, 0.05, 0.05]
    objective = ReplacedTokens(z_loss=None, mask_share=0.25, generator_share=0.5, discriminator_weight=50.0)
    objective.vocab_size = 5
    text = torch.zeros(200, 400, dtype=torch.long)
    batch = objective.batch(text, text, data_seed=1, step=2)
    made = objective.filled(Fixed(p), batch.inputs, batch.targets, batch.noise)
    at = batch.targets != IGNORE
    counts = torch.bincount(made.text[at], minlength=5)
    expected = 20_000 * torch.tensor(p)
    assert int(counts.sum()) == 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # chi-squared with 4 degrees of freedom, p = 0.001
    assert torch.equal(made.replaced, at & (made.text != text))
    assert (made.text[~at] == 0).all()
    again = objective.filled(Fixed(p), batch.inputs, batch.targets, batch.noise)
    assert torch.equal(again.text, made.text)
    few = objective.batch(text[:7], text[:7], data_seed=1, step=2)
    assert torch.equal(few.noise, batch.noise[:7])


def test_loss_is_the_generators_plus_fifty_times_the_models_and_samples_carry_no_gradient():
    cfg = detecting()
    model = randomise(build_model(cfg))
    batch, text = batch_of(cfg)
    loss = objective_of(cfg)(model, *batch)
    at = (batch.targets != IGNORE).nonzero()
    every = torch.arange(LENGTH).expand(3, -1)
    logits = model.generator_logits(batch.inputs, every)
    nats = torch.stack([-logits[b, t].log_softmax(-1)[text[b, t]] for b, t in at.tolist()]).mean()
    sampled = text.clone()
    for b, t in at.tolist():
        cumulative = logits[b, t].detach().double().softmax(-1).cumsum(-1)
        sampled[b, t] = int((cumulative <= batch.noise[b, t]).sum())
    was = (sampled != text).float()
    p = model(sampled).squeeze(-1).sigmoid()
    binary = -(was * p.log() + (1 - was) * (1 - p).log()).mean()
    close(loss.nats, binary)
    close(loss.objective, nats + 50 * binary)
    weights = [p for name, p in model.named_parameters() if name.startswith("generator.")]
    of_all = torch.autograd.grad(loss.objective, weights)
    of_generator = torch.autograd.grad(nats, weights)
    for mine, own in zip(of_all, of_generator, strict=True):
        close(mine, own, 1e-4, scale=1e-3)


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"posemb": "learned", "norm": "layer", "norm_position": "post", "activation": "gelu"},
        pytest.param({"posemb": "t5", "attention": "gqa", "norm_position": "sandwich"}, marks=pytest.mark.slow),
        {"posemb": "transformer_xl", "attention": "mqa", "block_layout": "parallel"},
        pytest.param({"attention": "mla"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "sizes", [{}, {"embedding_dim": 12, "bias": True, "segments": 2, "embedding_norm": True}], ids=["plain", "mapped"]
)
def test_every_weight_trains_and_is_counted(axes, sizes):
    cfg = detecting(sizes, **axes)
    model = randomise(build_model(cfg))
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters())
    objective_of(cfg)(model, *batch_of(cfg)[0]).objective.backward()
    idle = {f"{at}.{n}".lstrip(".") for at, m in model.named_modules() for n in getattr(m, "may_be_idle", ())}
    assert not [n for n, p in model.named_parameters() if n not in idle and (p.grad is None or not p.grad.any())]


def test_the_generator_is_a_share_of_the_model_and_shares_its_tables():
    cfg = detecting(posemb="learned")
    own = generator_of(cfg).model
    assert (own.d_model, own.n_heads, own.head_dim) == (
        cfg.model.d_model // 2,
        cfg.model.n_heads // 2,
        cfg.model.head_dim,
    )
    assert own.d_ff == pytest.approx(cfg.model.d_ff / 2, abs=1)
    model = build_model(cfg)
    names = [name for name, _ in model.named_parameters() if name.startswith("generator.")]
    assert not [name for name in names if "table" in name or "embedding.weight" in name]
    assert model(tokens_for(cfg)[:, :-1]).shape == (3, LENGTH, 1)


@pytest.mark.parametrize("sizes", [{}, {"embedding_dim": 12}], ids=["plain", "mapped"])
def test_flops_are_torchs_count(sizes):
    cfg = detecting(sizes)
    with torch.device("meta"):
        model, tokens = build_model(cfg, device="meta"), torch.zeros((1, LENGTH), dtype=torch.long)
        at = torch.zeros((1, round(0.15 * LENGTH)), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.generator_logits(tokens, at)
        model(tokens)
    assert flops_per_token(cfg) / 3 == pytest.approx(counter.get_total_flops() / LENGTH, abs=1)
    assert trace(cfg).saved_bytes > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("electra_small", {}),
        (
            "electra_base",
            {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        ),
        pytest.param(
            "electra_large",
            {
                "embedding_size": 1024,
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_counts_are_those_of_the_released_classes(preset, changes):
    """The discriminator's class, and the generator's without the embeddings that they share."""
    import transformers

    cfg = presets.config(preset)
    own = transformers.ElectraConfig(**changes)
    g = generator_of(cfg).model
    sizes = {"hidden_size": g.d_model, "num_attention_heads": g.n_heads, "intermediate_size": g.d_ff}
    other = transformers.ElectraConfig(**{**changes, **sizes, "embedding_size": own.embedding_size})
    with torch.device("meta"):
        encoder, model = transformers.ElectraModel(own), transformers.ElectraForPreTraining(own)
        generator = transformers.ElectraForMaskedLM(other)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert presets.published_facts(preset).published_params == count(encoder)
    assert parameters(cfg).total == count(model) + count(generator) - count(generator.electra.embeddings)


@pytest.mark.filterwarnings("ignore")
def test_both_models_equal_the_classes_of_transformers_both_ways():
    from lmablate.interop.electra import from_electra, to_electra

    theirs = to_electra(randomise(build_model(electra())))
    ours = from_electra(*theirs)
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(7))
    at = torch.arange(LENGTH).expand(3, -1)
    expected, found = theirs[0](input_ids=tokens).logits, theirs[1](input_ids=tokens).logits
    close(ours.generator_logits(tokens, at), expected)
    close(ours(tokens).squeeze(-1), found)
    again = to_electra(ours)
    with torch.no_grad():
        close(again[0](input_ids=tokens).logits, expected)
        close(again[1](input_ids=tokens).logits, found)


def electra():
    own = {"bias": True, "embedding_norm": True, "segments": 2, "embedding_dim": 12}
    return detecting(own, posemb="learned", norm="layer", norm_position="post", activation="gelu")


def test_measures_by_hand():
    cfg, data = detecting(), SmallText()
    model = randomise(build_model(cfg)).eval()
    found = evaluate(
        model, data, objective_of(cfg), context_length=LENGTH, batch_size=1, device="cpu", with_lengths=True
    )
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(LENGTH))
    objective = objective_of(cfg)
    batch = objective.validation(inputs, targets)
    with torch.no_grad():
        own = objective.filled(model, batch.inputs, batch.targets, batch.noise)
        detected = model(own.text)
    logits, was = detected.squeeze(-1).flatten(), own.replaced.flatten()
    assert found.val_loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, was.float())), rel=1e-5)
    assert found.val_bpb is None
    top = logits.argsort(descending=True)[: int(was.sum())]
    assert found.yardsticks["val_replaced_accuracy"] == pytest.approx(float(was[top].float().mean()))
    assert found.yardsticks["val_replaced_share"] == pytest.approx(float(was.float().mean()))
    right = own.logits.argmax(-1) == own.targets
    assert found.yardsticks["val_masked_accuracy"] == pytest.approx(float(right.float().mean()))
    nats = F.cross_entropy(own.logits.flatten(0, 1), own.targets.flatten())
    assert found.yardsticks["val_loss_generator"] == pytest.approx(float(nats), rel=1e-5)


def test_of_equal_scores_some_are_right_by_chance():
    was = np.array([True, False, False, True, False])
    assert precision_of_top(was, np.array([5.0, 1.0, 1.0, 1.0, 0.0])) == pytest.approx((1 + 1 / 3) / 2)
    assert precision_of_top(was, np.zeros(5)) == pytest.approx(0.4)
    assert precision_of_top(was, was.astype(float)) == 1.0


def test_runs_train_alone_and_in_pieces_alike():
    cfg = detecting()
    assert graph_key(cfg, SimpleNamespace(fingerprint="a", tokenizer_fingerprint="b")) is None
    pieces = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": 1})})
    np.testing.assert_allclose(training_record(pieces, 2.0).numbers, training_record(cfg, 2.0).numbers, rtol=1e-4)


@pytest.mark.parametrize("key", ["tie_embeddings", "head_bias", "head_transform"])
def test_keys_of_a_head_over_the_vocabulary_are_refused(key):
    with pytest.raises(ConfigError, match=f"model.{key}=true belongs to a head over the vocabulary"):
        compose(["objective=rtd", f"model.{key}=true"])


def test_the_rate_of_a_kind_of_token_is_that_of_the_other_half():
    tokens = np.array([0, 0, 0, 1, 2, 0, 0, 1, 1, 3])
    was = np.array([True, True, False, False, True, False, False, True, True, False])
    mean = {"first": 3 / 5, "second": 2 / 5}
    of_second = {0: (0 + 2 / 5) / 3, 1: (2 + 2 / 5) / 3, 2: 2 / 5, 3: (0 + 2 / 5) / 2}
    of_first = {0: (2 + 3 / 5) / 4, 1: (0 + 3 / 5) / 2, 2: (1 + 3 / 5) / 2, 3: 3 / 5}
    want = [of_second[t] for t in tokens[:5]] + [of_first[t] for t in tokens[5:]]
    assert mean == {"first": was[:5].mean(), "second": was[5:].mean()}
    np.testing.assert_allclose(rates(was, tokens), want)
    rng = np.random.default_rng(0)  # where nothing can be known, nothing is: a rate of the same text would seem to know
    tokens, was = rng.integers(0, 1000, 4000), rng.random(4000) < 0.1
    assert precision_of_top(was, rates(was, tokens)) == pytest.approx(was.mean(), abs=0.05)
