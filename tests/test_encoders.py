"""Masked encoders: the mask, the parts that BERT's line adds, and the classes of transformers both ways."""

import numpy as np
import pytest
import torch
from hf_models import USUAL
from reference_models import LENGTH, N_LAYERS, VOCAB, close, hf_config, randomise
from tiny import SmallText, tokens_for, training_record
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate import presets
from lmablate.budget import flops_per_token, keys_of_layers, kv_bytes_per_token, parameters
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.evaluate import evaluate
from lmablate.interop import from_hf, to_hf
from lmablate.model import build_model
from lmablate.model.attention import AttentionSpan, attend, explicit_attention, visible
from lmablate.objective import IGNORE, MaskedLM, objective_of
from lmablate.objective.masking import chosen, fractions, raw, segments
from lmablate.schema.training_config import ObjectiveSettings
from lmablate.training.gang import Gang
from lmablate.training.trainer import Trainer

MLM = {"kind": "mlm", "mask_share": 0.15, "random_share": 0.1, "kept_share": 0.1}


def masked(model=None, objective=None, **axes):
    """The small default configuration as a masked encoder."""
    cfg = variant(model=model, **axes)
    own = ObjectiveSettings(**(MLM | (objective or {})))
    return cfg.model_copy(update={"objective": own, "choices": cfg.choices | {"objective": own.kind}})


BERT = {"segments": 2, "embedding_norm": True, "head_transform": True, "bias": True, "head_bias": True}
BERT |= {"tie_embeddings": True}


def batch_of(cfg, rows=3, step=0):
    tokens = tokens_for(cfg, rows=rows)
    return objective_of(cfg).batch(tokens[:, :-1], tokens[:, 1:], data_seed=cfg.data_seed, step=step), tokens[:, 1:]


# --- which tokens are hidden


def test_the_mask_is_a_function_of_seed_step_and_place():
    cfg = masked()
    (one, text), (same, _) = batch_of(cfg), batch_of(cfg)
    assert torch.equal(one.inputs, same.inputs)
    more, _ = batch_of(cfg, rows=5)
    assert torch.equal(more.inputs[:3] != IGNORE, torch.ones_like(one.inputs, dtype=torch.bool))
    assert torch.equal((more.targets != IGNORE)[:3], one.targets != IGNORE)
    assert not torch.equal(batch_of(cfg, step=1)[0].targets, one.targets)
    seeded = cfg.model_copy(update={"data_seed": 5})
    assert not torch.equal(batch_of(seeded)[0].targets, one.targets)
    open_ = one.targets != IGNORE
    assert torch.equal(one.inputs[~open_], text[~open_])
    assert torch.equal(one.targets[open_], text[open_])
    assert (open_.sum(-1) == round(0.15 * LENGTH)).all()


def test_what_a_seed_hides_stays():
    open_ = np.ones((1, 12), dtype=bool)
    assert chosen(raw(0, 0, 2, 1, 12), open_, 0.25).nonzero()[1].tolist() == [0, 7, 8]


def test_of_the_chosen_80_10_10_and_every_token_is_as_likely_to_be_chosen():
    objective = MaskedLM(z_loss=None, mask_share=0.15, random_share=0.1, kept_share=0.1)
    objective.vocab_size = 1001
    text = torch.arange(500).repeat(400, 1)
    batch = objective.batch(text, text, data_seed=3, step=9)
    at = batch.targets != IGNORE
    n = int(at.sum())
    assert n == 400 * 75
    read = batch.inputs[at]
    shares = [(read == 1000).sum() / n, (read == text[at]).sum() / n]
    assert [float(x) for x in shares] == pytest.approx([0.8, 0.1], abs=0.008)
    others = read[(read != 1000) & (read != text[at])]
    assert int(others.max()) < 1000
    assert float(others.float().mean()) == pytest.approx(499.5, abs=25)
    places = at.sum(0).float()  # of 400 draws each: binomial
    assert float(((places - 60) ** 2 / (60 * 0.85)).sum()) < 620  # chi-squared with 499 degrees of freedom, p = 0.0002


def test_padding_is_not_hidden():
    inputs = torch.zeros(1, 20, dtype=torch.long)
    targets = torch.full((1, 20), IGNORE)
    targets[:, :10] = 5
    objective = MaskedLM(z_loss=None, mask_share=0.3, random_share=0.0, kept_share=0.0)
    objective.vocab_size = 9
    batch = objective.validation(inputs, targets)
    assert (batch.targets[:, 10:] == IGNORE).all()
    assert int((batch.targets != IGNORE).sum()) == 3


@pytest.mark.parametrize(("total", "parts"), [(7, 1), (7, 3), (7, 7), (2, 2)])
def test_segments_add_up(total, parts):
    cut = segments(raw(1, 2, 3, 50, total - 1), total, parts)
    assert (cut.sum(-1) == total).all()
    assert (cut >= 1).all()


def test_fractions_are_in_the_unit_interval():
    x = fractions(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert x[0] == 0.0
    assert 0.999 < x[1] < 1.0


# --- attention without a mask


@pytest.mark.parametrize("span", [AttentionSpan(), AttentionSpan(5), AttentionSpan(stride=3)])
def test_reading_everything_is_a_mask_of_ones(span):
    q, k, v = torch.randn(3, 2, 4, 12, 8, generator=torch.Generator().manual_seed(0))
    every = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    keys = {"bias": None, "span": span, "scale": None, "soft_cap": None, "dropout": 0.0}
    close(attend(q, k, v, may_read=True, **keys), explicit_attention(q, k, v, may_read=every, **keys))
    close(explicit_attention(q, k, v, may_read=True, **keys), explicit_attention(q, k, v, may_read=every, **keys))
    near = visible(12, span, q.device, True)
    assert torch.equal(near, near.mT)


def test_a_plain_encoder_uses_the_fused_path_without_a_mask(monkeypatch):
    seen = []
    inner = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **keys):
        seen.append((keys.get("attn_mask"), keys.get("is_causal", False)))
        return inner(*args, **keys)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    cfg = masked()
    build_model(cfg)(batch_of(cfg)[0].inputs)
    assert seen == [(None, False)] * cfg.model.n_layers


# --- transformers, both ways

ENCODERS = {
    "BertForMaskedLM": {},
    "RobertaForMaskedLM": {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1, "type_vocab_size": 1},
    "AlbertForMaskedLM": {"embedding_size": 12, "num_hidden_groups": 1},
    "ElectraForMaskedLM": {"embedding_size": 12},
}


def theirs_of(name, **changes):
    import transformers

    keys = {**USUAL, **ENCODERS[name], **changes}
    config = hf_config(name.removesuffix("ForMaskedLM"), **keys)
    return randomise(getattr(transformers, name)(config))


def text(low=0):
    return torch.randint(low, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENCODERS)
def test_logits_and_gradients_equal_transformers_both_ways(name):
    from lmablate.interop.families import FAMILIES
    from lmablate.interop.tensors import expand

    theirs, tokens = theirs_of(name), text(low=2)
    ours = from_hf(theirs)
    logits, expected = ours(tokens), theirs(input_ids=tokens).logits
    close(logits, expected)
    assert float((logits - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))
    logits.square().mean().backward()
    expected.square().mean().backward()
    family = next(family for family in FAMILIES if family.name == name)
    facts = family.read(theirs.config)
    rules = expand(family.rules(facts), facts["model.n_layers"])
    own = {key: parameter.grad for key, parameter in ours.named_parameters()}
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters())
    for key, parameter in theirs.named_parameters():
        mine = rules[key].form.pack([own[part] for part in rules[key].ours], facts)
        close(mine, parameter.grad, 1e-3, scale=1e-2 * largest)
    back = to_hf(ours, name)
    with torch.no_grad():
        close(back(input_ids=tokens).logits, logits)
    assert type(to_hf(ours)).__name__ == {"RobertaForMaskedLM": "BertForMaskedLM"}.get(name, name)


def test_an_encoder_of_theirs_without_its_line_is_refused():
    with pytest.raises(ConfigError, match="is_decoder"):
        from_hf(theirs_of("BertForMaskedLM", is_decoder=True))
    with pytest.raises(ConfigError, match="objective=mlm"):
        to_hf(build_model(masked()))


@pytest.mark.parametrize(
    ("preset", "name", "changes"),
    [
        ("bert_base", "Bert", {}),
        pytest.param(
            "bert_large",
            "Bert",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            marks=pytest.mark.slow,
        ),
        ("roberta_base", "Roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
        ("albert_base", "Albert", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
        pytest.param("albert_xxlarge", "Albert", {}, marks=pytest.mark.slow),
        pytest.param(
            "albert_large",
            "Albert",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_counts_are_those_of_the_released_classes(preset, name, changes):
    import transformers

    config = getattr(transformers, f"{name}Config")(**changes)
    with torch.device("meta"):
        model, encoder = (getattr(transformers, name + kind)(config) for kind in ("ForMaskedLM", "Model"))
    unread = 2 * config.hidden_size if name == "Roberta" else 0
    assert parameters(presets.config(preset)).total == sum(p.numel() for p in model.parameters()) - unread
    assert presets.published_facts(preset).published_params == sum(p.numel() for p in encoder.parameters())


# --- parts of the model


def test_post_norm_in_an_encoder_is_post_norm():
    """The same weights in a decoder of one token, where both read the same."""
    cfg = masked(norm_position="post", norm="layer")
    model = randomise(build_model(cfg))
    causal = build_model(cfg.model_copy(update={"objective": variant().objective}))
    causal.load_state_dict(model.state_dict())
    one = torch.tensor([[3], [9]])
    assert torch.equal(model(one), causal.eval()(one))


def test_shared_layers_are_the_blocks_in_a_row():
    cfg = masked({"n_distinct_layers": 1, "n_layers": 3})
    model = randomise(build_model(cfg))
    assert len(model.blocks) == 1
    long = build_model(masked({"n_layers": 3}))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("blocks")}
    for i in range(3):
        state |= {
            key.replace("blocks.0", f"blocks.{i}"): v for key, v in model.state_dict().items() if "blocks.0" in key
        }
    long.load_state_dict(state)
    tokens = text()
    close(model(tokens), long.eval()(tokens))


@pytest.mark.parametrize(
    "sizes",
    [
        BERT,
        BERT | {"embedding_dim": 12, "n_distinct_layers": 1},
        {"embedding_dim": 12},
        {"head_transform": True, "embedding_dim": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "axes",
    [{"posemb": "learned"}, pytest.param({"posemb": "transformer_xl", "attention": "gqa"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_counts_and_flops_are_those_of_the_model(sizes, axes):
    cfg = masked({"n_layers": 2, **sizes}, **axes)
    model = build_model(cfg, device="meta")
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters())
    tokens = torch.zeros((1, LENGTH), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert all(keys == LENGTH for keys in keys_of_layers(cfg))
    extra = 0
    if axes["posemb"] == "transformer_xl":  # scores by distance beyond the T keys, as for prefixes
        extra = 2 * cfg.model.n_heads * cfg.model.head_dim * cfg.model.n_layers * (LENGTH - 1)
    assert flops_per_token(cfg) / 3 == pytest.approx(counter.get_total_flops() / LENGTH - extra, abs=2 * N_LAYERS)
    assert kv_bytes_per_token(cfg) == 0


def test_every_part_of_bert_trains():
    cfg = masked(
        BERT | {"embedding_dim": 12, "n_distinct_layers": 1}, norm="layer", norm_position="post", posemb="learned"
    )
    model = randomise(build_model(cfg))
    objective_of(cfg)(model, *batch_of(cfg)[0]).objective.backward()
    idle = {f"{at}.{n}".lstrip(".") for at, m in model.named_modules() for n in getattr(m, "may_be_idle", ())}
    assert not [n for n, p in model.named_parameters() if n not in idle and (p.grad is None or not p.grad.any())]


# --- training and measuring


def test_gang_members_have_the_bits_of_each_alone():
    cfgs = [masked(BERT).model_copy(update={"data_seed": seed, "init_seed": seed}) for seed in (0, 1)]
    alone = [Trainer(build_model(cfg), SmallText(), cfg, folder=None) for cfg in cfgs]
    for trainer in alone:
        list(trainer.records())
    together = {k: Trainer(build_model(cfg), SmallText(), cfg, folder=None) for k, cfg in enumerate(cfgs)}
    list(Gang(together.items(), size=2).run())
    for k, trainer in enumerate(alone):
        for mine, other in zip(trainer.model.parameters(), together[k].model.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_microbatches_weigh_alike():
    cfg = masked()
    pieces = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": 1})})
    np.testing.assert_allclose(training_record(pieces, 5.0).numbers, training_record(cfg, 5.0).numbers, rtol=1e-5)


def test_accuracy_and_the_unigram_model_beside_it():
    cfg, data = masked(), SmallText()
    model = randomise(build_model(cfg)).eval()
    found = evaluate(
        model, data, objective_of(cfg), context_length=LENGTH, batch_size=1, device="cpu", with_lengths=True
    )
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(LENGTH))
    batch = objective_of(cfg).validation(inputs, targets)
    at = batch.targets != IGNORE
    logits = model(batch.inputs)[at]
    right = batch.targets[at]
    assert found.val_bpb is None
    assert found.val_loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, right)), rel=1e-5)
    assert found.yardsticks["val_masked_accuracy"] == pytest.approx(float((logits.argmax(-1) == right).float().mean()))
    counts = np.bincount(data.train, minlength=VOCAB) + 1.0
    assert found.yardsticks["val_masked_accuracy_unigram"] == pytest.approx(
        float((right == counts.argmax()).float().mean())
    )
    log_p = torch.from_numpy(np.log(counts / counts.sum()))
    assert found.yardsticks["val_loss_unigram"] == pytest.approx(float(-log_p[right].mean()))


# --- words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.n_distinct_layers=3"], "n_distinct_layers=3 of model.n_layers=4.*allowed are 1, 2"),
        (["objective=mlm", "model.embedding_dim=32", "model.tie_embeddings=true"], "add model.head_transform=true"),
        (["objective=mlm", "objective.random_share=0.7", "objective.kept_share=0.7"], "more than all"),
        (["+objective.mask_share=0.1"], "objective=causal has no mask_share"),
        (["objective=mlm", "data=mqar"], "data=mqar brings the answers"),
        (["objective=mlm", "budget=kv_cache", "attention=gqa"], "does not change the bytes of KV cache"),
        (["objective=mlm", "runtime.evaluate_lengths=[1,2]"], "does not predict a text from left to right"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        compose(words)


def test_an_encoder_and_shared_layers_write_nothing():
    with pytest.raises(ConfigError, match="an encoder reads a whole text"):
        Decoder(build_model(masked()).eval(), 1, 8)
    with pytest.raises(ConfigError, match="layers that share their weights"):
        Decoder(build_model(variant(model={"n_distinct_layers": 1})).eval(), 1, 8)


def test_the_vocabulary_has_a_mask_above_the_tokenizers():
    assert compose(["objective=mlm"]).model.vocab_size == compose([]).model.vocab_size + 1
    assert compose(["objective=mlm", "objective.special_id=7"]).model.vocab_size == compose([]).model.vocab_size
    assert presets.config("bert_base").model.vocab_size == 30522
    shrunk = presets.config("bert_base", "tiny")
    assert shrunk.objective.special_id is None
