"""Span corruption, encoder and decoder, T5 and the 2017 Transformer."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_models import D_FF, D_MODEL, HEAD_DIM, LENGTH, N_HEADS, VOCAB, close, hf_config, randomise
from tiny import SmallText, options, tokens_for, training_record
from torch.utils.flop_counter import FlopCounterMode
from variants import variant

from lmablate import presets
from lmablate.budget import flops_per_token, forward_products, keys_of_layers, kv_bytes_per_token, parameters
from lmablate.budget.trace import trace
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.evaluate import evaluate
from lmablate.interop import from_hf, to_hf
from lmablate.model import build_model
from lmablate.model.multi_stack import source_length
from lmablate.objective import IGNORE, SpanCorruption, objective_of
from lmablate.objective.span_corruption import layout
from lmablate.schema.training_config import ObjectiveSettings
from lmablate.training.gang import Gang
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer

SPANS = {"kind": "span_corruption", "mask_share": 0.15, "mean_span": 3.0}
TWO = {"n_encoder_layers": 1}


def corrupted(model=None, objective=None, **axes):
    """The small default configuration with spans taken out, in one stack or, with n_encoder_layers, in two."""
    cfg = variant(model=model, **axes)
    own = ObjectiveSettings(**(SPANS | (objective or {}))) if objective is None or "kind" not in objective else None
    own = own or ObjectiveSettings(**objective)
    return cfg.model_copy(update={"objective": own, "choices": cfg.choices | {"objective": own.kind}})


HALVES = {"kind": "prefix", "prefix_share": 0.5, "prefix_draw": "fixed"}


def batch_of(cfg, rows=3, step=0):
    tokens = tokens_for(cfg, rows=rows)
    return objective_of(cfg).batch(tokens[:, :-1], tokens[:, 1:], data_seed=cfg.data_seed, step=step), tokens[:, 1:]


# --- what is read and what is wanted


@pytest.mark.parametrize("length", [4, 7, 24, 100, 128, 512, 624])
@pytest.mark.parametrize(("share", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 1.0), (0.9, 10.0)])
def test_a_context_is_filled_as_far_as_it_goes(length, share, mean_span):
    shape = layout(length, share, mean_span)
    used = shape.source + shape.noise + shape.spans
    assert length - 2 <= used <= length
    assert 1 <= shape.spans <= shape.noise < shape.text


def test_t5s_own_lengths():
    """Its 512 source tokens hold a text of 568 of which 85 are taken out in 28 spans; both count an end token that ours lack."""
    assert layout(624, 0.15, 3.0) == (568, 85, 28, 511)


def test_the_text_is_read_back_from_source_and_spans():
    objective = SpanCorruption(z_loss=None, mask_share=0.15, mean_span=3.0)
    objective.vocab_size = 1100
    text = torch.randint(0, 1000, (6, 128), generator=torch.Generator().manual_seed(1))
    batch = objective.batch(text, text, data_seed=2, step=4)
    shape = objective.layout(128)
    assert batch.prefix.tolist() == [shape.source] * 6
    for row in range(6):
        source, spans = batch.inputs[row, : shape.source].tolist(), batch.inputs[row, shape.source :].tolist()
        wanted = batch.targets[row, shape.source :].tolist()
        taken: dict[int, list[int]] = {}
        for token in spans[: shape.noise + shape.spans]:
            if token >= 1000:
                now = taken[token] = []
            else:
                now.append(token)
        assert list(taken) == [1099 - k for k in range(shape.spans)]
        back = [x for token in source for x in (taken[token] if token >= 1000 else [token])]
        assert back == text[row, : shape.text].tolist()
        assert all(taken.values())
        assert source[0] < 1000, "T5's code begins with text"
        n = shape.noise + shape.spans
        assert wanted[: n - 1] == spans[1:n]
        assert wanted[n - 1] == 1099 - shape.spans
        assert set(wanted[n:]) <= {IGNORE}
        assert (batch.targets[row, : shape.source] == IGNORE).all()
    assert objective.reserved(128) == shape.spans + 1


def test_spans_hang_on_seed_step_and_place_and_have_the_mean_length():
    objective = SpanCorruption(z_loss=None, mask_share=0.15, mean_span=3.0)
    objective.vocab_size = 1100
    text = torch.arange(128).repeat(300, 1)
    one = objective.batch(text, text, data_seed=0, step=1)
    assert torch.equal(one.inputs, objective.batch(text, text, data_seed=0, step=1).inputs)
    assert torch.equal(one.inputs[:7], objective.batch(text[:7], text[:7], data_seed=0, step=1).inputs)
    assert not torch.equal(one.inputs, objective.batch(text, text, data_seed=0, step=2).inputs)
    shape = objective.layout(128)
    read = one.inputs[:, : shape.source]
    kept = torch.stack([(read == token).any(-1) for token in range(shape.text)], -1)
    share = 1 - kept.float().mean(0)[2:-2]  # the first tokens are kept, the last are taken out
    assert float(share.mean()) == pytest.approx(0.15, abs=0.02)
    assert objective.targets_per_token(128) == float((one.targets != IGNORE).float().mean())


def test_padding_is_no_target():
    objective = SpanCorruption(z_loss=None, mask_share=0.5, mean_span=2.0)
    objective.vocab_size = 100
    inputs, targets = torch.full((4, 40), 7), torch.full((4, 40), IGNORE)
    targets[:, :10] = 5
    wanted = objective.validation(inputs, targets).targets
    assert not (wanted == 7).any()
    assert (wanted == 5).any()


# --- the model of two stacks


QUICK = ("t5", "rope", "learned", "transformer_xl")
CASES = [
    pytest.param(
        word, posemb, marks=() if (word == "serial" and posemb in QUICK) or posemb == "rope" else pytest.mark.slow
    )
    for word in options("block_layout")
    for posemb in options("posemb")
]


@pytest.mark.parametrize(("layout_word", "posemb"), CASES)
def test_every_position_and_layout_builds_counts_and_hides_what_comes_after(posemb, layout_word):
    split = HALVES if posemb in ("rope_dynamic", "rope_longrope") else SPANS  # which refuse a decoder of 4 tokens
    cfg = corrupted(TWO | {"bias": True}, split, posemb=posemb, block_layout=layout_word, attention="gqa")
    model = randomise(build_model(cfg))
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters())
    batch, _ = batch_of(cfg)
    own = source_length(cfg)
    logits = model(batch.inputs)
    assert logits.shape == (3, LENGTH - own, VOCAB)
    later = batch.inputs.clone()
    later[:, own + 2 :] = 1
    close(model(later)[:, :2], logits[:, :2], 1e-6)
    for place in (0, own - 1, own):
        earlier = batch.inputs.clone()
        earlier[:, place] = (earlier[:, place] + 7) % VOCAB
        assert (model(earlier)[:, 0] - logits[:, 0]).abs().max() > 1e-4
    objective_of(cfg)(model, *batch).objective.backward()
    idle = {f"{at}.{n}".lstrip(".") for at, m in model.named_modules() for n in getattr(m, "may_be_idle", ())}
    lost = [n for n, p in model.named_parameters() if n not in idle and (p.grad is None or not p.grad.any())]
    assert not lost


@pytest.mark.parametrize("position", options("norm_position"))
def test_norm_positions_place_cross_attention_as_any_branch(position):
    if position == "deepnorm":
        with pytest.raises(ConfigError, match="norm_position=deepnorm has constants for a model of one stack"):
            build_model(corrupted(TWO, norm_position=position))
        return
    cfg = corrupted(TWO, norm_position=position)
    model = build_model(cfg, device="meta")
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters())
    first, second = model.blocks[0].attention.first, model.blocks[0].attention.second
    assert type(first) is type(second) is type(model.blocks[0].ffn)


@pytest.mark.parametrize(
    "axes",
    [
        {},
        *(
            pytest.param(axes, marks=pytest.mark.slow)
            for axes in ({"attention": "gqa", "posemb": "t5"}, {"attention": "sliding_window"})
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", [SPANS, pytest.param(HALVES, marks=pytest.mark.slow)], ids=["spans", "halves"])
def test_flops_are_torchs_count_less_the_pairs_that_masks_hide(axes, objective):
    cfg = corrupted({"n_encoder_layers": 3}, objective, **axes)
    tokens = torch.zeros((1, LENGTH), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(cfg, device="meta")(tokens)
    _, a_key = forward_products(cfg)
    own = source_length(cfg)
    n, full = LENGTH - own, []
    for layer in range(len(a_key)):
        queries, keys = (own, own) if layer < 3 else (n, n) if layer < 5 else (n, own)
        full.append(queries * keys / LENGTH)
    hidden = sum(a * (all_ - keys) for a, all_, keys in zip(a_key, full, keys_of_layers(cfg), strict=True))
    assert flops_per_token(cfg) == pytest.approx(3 * (counter.get_total_flops() / LENGTH - 2 * hidden), abs=2)
    assert trace(cfg).saved_bytes > 0


def test_the_cache_keeps_the_decoders_tokens_and_the_sources():
    cfg = corrupted(TWO)
    m, own = cfg.model, source_length(cfg)
    numbers = 2 * m.n_kv_heads * m.head_dim * m.n_layers * ((LENGTH - own) + own)
    assert kv_bytes_per_token(cfg) == round(2 * numbers / LENGTH)


# --- T5 both ways, and the formulas of 2017


V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # there: logits are not scaled


def t5(**changes):
    import transformers

    keys = {
        "d_model": D_MODEL,
        "d_kv": HEAD_DIM,
        "num_heads": N_HEADS,
        "d_ff": D_FF,
        "num_layers": 2,
        "vocab_size": VOCAB,
    }
    keys |= {"num_decoder_layers": 3, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 20}
    return randomise(transformers.T5ForConditionalGeneration(hf_config("T5", **(keys | changes))), scale=0.2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "untied"),
    [
        pytest.param({}, False, id="t5"),
        pytest.param(V1_1, True, id="v1_1"),
        pytest.param(V1_1, False, id="v1_1_tied", marks=pytest.mark.slow),
        pytest.param({}, True, id="t5_untied", marks=pytest.mark.slow),
    ],
)
def test_logits_and_gradients_equal_t5_both_ways(changes, untied, tmp_path):
    """T5 v1.1 has a head of its own, which its checkpoint shows and its configuration does not say."""
    from lmablate.interop.families import FAMILIES
    from lmablate.interop.tensors import expand

    theirs = t5(**changes)
    if untied:
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().flip(0).clone())
    draws = torch.Generator().manual_seed(4)
    source, target = (torch.randint(0, VOCAB, (3, n), generator=draws) for n in (19, 11))
    ours = from_hf(theirs)
    logits = ours.logits(ours.hidden_of_pair(source, target))
    expected = theirs(input_ids=source, decoder_input_ids=target).logits
    close(logits, expected)
    assert float((logits - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))
    logits.square().mean().backward()
    expected.square().mean().backward()
    family = next(family for family in FAMILIES if family.name == type(theirs).__name__)
    facts = family.read(theirs.config)
    rules = expand(family.rules(facts), facts["model.n_layers"])
    own = {key: parameter.grad for key, parameter in ours.named_parameters()}
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters())
    for key, parameter in theirs.named_parameters():
        close(
            rules[key].form.pack([own[x] for x in rules[key].ours], facts), parameter.grad, 1e-4, scale=5e-2 * largest
        )
    to_hf(ours).save_pretrained(tmp_path)
    back = type(theirs).from_pretrained(tmp_path)
    assert (back.lm_head.weight is not back.shared.weight) == untied == (not ours.config.model.tie_embeddings)
    with torch.no_grad():
        close(back(input_ids=source, decoder_input_ids=target).logits, logits)
    assert all(
        torch.equal(value, dict(from_hf(back).named_parameters())[key]) for key, value in ours.named_parameters()
    )


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("t5_base", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
        ("t5_11b", {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24, "num_heads": 128}),
        ("t5_v1_1_xxl", {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64} | V1_1),
    ],
)
def test_counts_are_those_of_the_released_class(preset, changes):
    import transformers

    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**changes))
    cfg = presets.config(preset)
    apart = 0 if cfg.model.tie_embeddings else model.lm_head.weight.numel()  # the class ties every new model's head
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters()) + apart


def test_the_transformer_of_2017_is_its_formulas():
    """Vaswani et al. 2017, sections 3.1 to 3.5, written out in float64."""
    cfg = presets.config("transformer_base", "tiny")
    sizes = {"n_layers": 2, "n_encoder_layers": 2, "vocab_size": 50}
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update=sizes)})
    model = randomise(build_model(cfg), scale=0.1)
    w = {name: p.detach().double() for name, p in model.named_parameters()}
    d, h, eps = cfg.model.d_model, cfg.model.n_heads, cfg.norm["eps"]
    draws = torch.Generator().manual_seed(3)
    source, target = torch.randint(0, 50, (9,), generator=draws), torch.randint(0, 50, (7,), generator=draws)

    def embedded(ids):
        x = w["embedding.weight"][ids] * math.sqrt(d)
        for t in range(len(ids)):
            for i in range(d // 2):
                x[t, 2 * i] += math.sin(t / 10000 ** (2 * i / d))
                x[t, 2 * i + 1] += math.cos(t / 10000 ** (2 * i / d))
        return x

    def normed(x, at):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return y * w[f"{at}.norm.gain.weight"] + w[f"{at}.norm.bias.weight"]

    def attended(x, y, at, causal=False):
        q, k, v = (z @ w[f"{at}.branch.{n}_proj.weight"].T for z, n in ((x, "q"), (y, "k"), (y, "v")))
        out = []
        for part in zip(q.chunk(h, -1), k.chunk(h, -1), v.chunk(h, -1), strict=True):
            scores = part[0] @ part[1].T / math.sqrt(d // h)
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            out.append(scores.softmax(-1) @ part[2])
        return normed(x + torch.cat(out, -1) @ w[f"{at}.branch.out_proj.weight"].T, at)

    def fed(x, at):
        inner = (x @ w[f"{at}.branch.in_proj.weight"].T + w[f"{at}.branch.in_proj.bias.weight"]).relu()
        return normed(x + inner @ w[f"{at}.branch.out_proj.weight"].T + w[f"{at}.branch.out_proj.bias.weight"], at)

    x = embedded(source)
    for i in range(2):
        at = f"encoder.reader.blocks.{i}"
        x = fed(attended(x, x, f"{at}.attention"), f"{at}.ffn")
    y = embedded(target)
    for i in range(2):
        y = attended(y, y, f"blocks.{i}.attention.first", causal=True)
        y = fed(attended(y, x, f"blocks.{i}.attention.second"), f"blocks.{i}.ffn")
    with torch.no_grad():
        close(model.logits(model.hidden_of_pair(source[None], target[None]))[0], y @ w["embedding.weight"].T, 1e-5)


# --- training and measuring


@pytest.mark.parametrize("model", [None, TWO], ids=["one", "two"])
def test_gang_members_have_the_bits_of_each_alone(model):
    cfgs = [corrupted(model).model_copy(update={"data_seed": seed, "init_seed": seed}) for seed in (0, 1)]
    alone = [Trainer(build_model(cfg), SmallText(), cfg, folder=None) for cfg in cfgs]
    for trainer in alone:
        list(trainer.records())
    together = {k: Trainer(build_model(cfg), SmallText(), cfg, folder=None) for k, cfg in enumerate(cfgs)}
    list(Gang(together.items(), size=2).run())
    for k, trainer in enumerate(alone):
        for mine, other in zip(trainer.model.parameters(), together[k].model.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_microbatches_weigh_alike_and_a_run_continues_to_the_bit(tmp_path):
    cfg = corrupted(TWO)
    pieces = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": 1})})
    np.testing.assert_allclose(training_record(pieces, 5.0).numbers, training_record(cfg, 5.0).numbers, rtol=1e-5)
    through = Trainer(build_model(cfg), SmallText(), cfg, folder=None)
    list(through.records())
    steps = iter([0, 15])
    with pytest.raises(Interrupted):
        list(Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path).records(lambda: next(steps)))
    resumed = Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path)
    list(resumed.records())
    for mine, other in zip(resumed.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("model", [None, TWO], ids=["one", "two"])
def test_loss_is_over_the_spans_and_stands_beside_that_of_a_unigram_model(model):
    cfg, data = corrupted(model), SmallText()
    net = randomise(build_model(cfg)).eval()
    found = evaluate(net, data, objective_of(cfg), context_length=LENGTH, batch_size=1, device="cpu", with_lengths=True)
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(LENGTH))
    batch = objective_of(cfg).validation(inputs, targets)
    logits = net(batch.inputs) if model else net(batch.inputs, batch.prefix)
    wanted = batch.targets[:, -logits.shape[1] :]
    nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    at = wanted.flatten() != IGNORE
    assert found.val_loss == pytest.approx(float(nats[at].mean()), rel=1e-5)
    shape = objective_of(cfg).layout(LENGTH)
    words = at & (wanted.flatten() < VOCAB - 1 - shape.spans)
    assert found.yardsticks["val_loss_span_text"] == pytest.approx(float(nats[words].mean()), rel=1e-5)
    counts = np.bincount(data.train, minlength=VOCAB) + 1.0
    p, among = counts / counts.sum(), shape.spans / (shape.spans + shape.noise)
    told = [
        among / shape.spans if t >= VOCAB - 1 - shape.spans else p[t] * (1 - among)
        for t in wanted.flatten()[at].tolist()
    ]
    assert found.yardsticks["val_loss_unigram"] == pytest.approx(-np.log(told).mean())
    right = (logits.argmax(-1).flatten() == wanted.flatten())[at].float().mean()
    assert found.yardsticks["val_span_accuracy"] == pytest.approx(float(right))


def test_of_halves_two_stacks_share_the_targets_of_others():
    cfg, data = corrupted(TWO, HALVES), SmallText()
    net = randomise(build_model(cfg)).eval()
    found = evaluate(net, data, objective_of(cfg), context_length=LENGTH, batch_size=1, device="cpu", with_lengths=True)
    assert set(found.yardsticks) == {"val_loss_after_50"}
    assert found.yardsticks["val_loss_after_50"] == found.val_loss
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(LENGTH))
    logits = net.logits(net.hidden_of_pair(inputs[:, : LENGTH // 2 - 1], inputs[:, LENGTH // 2 - 1 :]))
    wanted = targets[:, LENGTH // 2 - 1 :]
    assert found.val_loss == pytest.approx(float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten())), rel=1e-5)


# --- words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.n_encoder_layers=2"], "objective=causal does not split every text at one place"),
        (["model.n_encoder_layers=2", "objective=prefix"], "prefix_draw=uniform does not split"),
        (["model.n_encoder_layers=2", "objective=mlm"], "objective=mlm does not split"),
        (
            ["model.n_encoder_layers=2", "objective=span_corruption", "model.segments=2"],
            "belongs to a model of one stack",
        ),
        (["objective=span_corruption", "objective.special_id=3"], "the first of 7 sentinels"),
        (["objective=span_corruption", "model.context_length=3"], "too short for objective=span_corruption"),
        (["objective=span_corruption", "objective.mean_span=0.5"], "mean_span=0.5"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        compose(words)


def test_two_stacks_write_nothing_yet():
    with pytest.raises(ConfigError, match="an encoder and a decoder: it is not supported"):
        Decoder(build_model(corrupted(TWO)).eval(), 1, 8)
