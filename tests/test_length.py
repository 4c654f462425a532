"""Windows of any length: against loops written out, the evaluation of training, windows of attention and transformers' recipe."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB, options, scaled_model
from variants import variant

from lmablate.core.errors import ConfigError
from lmablate.evaluate import evaluate
from lmablate.evaluate.changes import changed, rebuilt
from lmablate.evaluate.lengths import at_lengths
from lmablate.evaluate.reach import check_lengths
from lmablate.evaluate.scoring import score, windows
from lmablate.evaluate.summary import by_position, position_edges, summarise
from lmablate.evaluate.text import Text
from lmablate.model import build_model
from lmablate.objective import objective_of
from lmablate.schema.evaluation_windows import Protocol, protocols

T = 24  # the training length of tiny.SMALL
END = VOCAB - 1
TOKENS = np.random.default_rng(1).integers(0, VOCAB, 131)


def scored(model, *, length, stride=None, tokens=TOKENS, pass_tokens=4 * T):
    return score(
        model, tokens, first=END, length=length, stride=stride or length, pass_tokens=pass_tokens, device="cpu"
    )


@pytest.fixture(scope="module")
def model():
    return scaled_model(variant(), 3.0).eval()


@pytest.mark.parametrize(
    ("n", "length", "stride"), [(131, 24, 24), (131, 24, 7), (131, 24, 1), (24, 24, 5), (3, 24, 24)]
)
def test_every_token_is_counted_once_and_after_enough_others(n, length, stride):
    plan = list(windows(n, length, stride))
    counted = [t for start, first in plan for t in range(start + first, min(n, start + length))]
    assert counted == list(range(n))
    assert all(start + length > t >= start for start, first in plan for t in (start + first,))
    assert all(first == length - stride for _, first in plan[1:])


@pytest.mark.parametrize(("length", "stride"), [(T, T), (T, 7), (2 * T, T), (3 * T, 5)])
def test_scores_are_those_of_one_forward_pass_a_token(model, length, stride):
    """A loop: the text before each token, cut where its window begins, through the model as it is called."""
    found = scored(model, length=length, stride=stride)
    text = np.concatenate([[END], TOKENS])
    for i in [0, 1, length - 1, length, length + 1, 60, 100, len(TOKENS) - 1]:
        moves = 0 if i < length else -(-(i - length + 1) // stride)
        start = moves * stride
        with torch.no_grad():
            logits = model(torch.from_numpy(text[start : i + 1])[None])[0, -1]
        assert found.nats[i] == pytest.approx(float(F.cross_entropy(logits, torch.tensor(int(TOKENS[i])))), rel=1e-4)
        assert found.confidence[i] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
        assert bool(found.correct[i]) == (int(logits.argmax()) == TOKENS[i])
        assert found.position[i] == i - start


class Validation:
    """What evaluation in training reads of a TokenData."""

    val_bytes = 200
    texts = ()

    def val_windows(self, length):
        n, count = len(TOKENS), -(-len(TOKENS) // length)
        inputs, targets = (np.full(count * length, fill, dtype=np.int64) for fill in (END, -100))
        inputs[1:n], targets[:n] = TOKENS[:-1], TOKENS
        return inputs.reshape(count, length), targets.reshape(count, length)

    def val_rows(self, length):
        return {"": slice(None)}


def test_at_the_training_length_it_is_the_loss_of_training(model):
    found = summarise(scored(model, length=T), n_bytes=200, length=T, stride=T, train_length=T)
    expected = evaluate(model, Validation(), objective_of(variant()), context_length=T, batch_size=4, device="cpu")
    assert found["nats_per_token"] == pytest.approx(expected.val_loss, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(expected.val_bpb, rel=1e-6)


def test_sliding_by_the_whole_length_is_non_overlapping_to_the_bit(model):
    """Window by window, as separate texts; and sliding windows differ."""
    whole = scored(model, length=T, pass_tokens=T)
    text = np.concatenate([[END], TOKENS])
    for start in range(0, len(TOKENS) - T, T):
        alone = scored(model, length=T, tokens=TOKENS[start : start + T], pass_tokens=T)
        if start == 0:
            assert np.array_equal(alone.nats, whole.nats[:T])
        by_hand = score(
            model, TOKENS[start : start + T], first=int(text[start]), length=T, stride=T, pass_tokens=T, device="cpu"
        )
        assert np.array_equal(by_hand.nats, whole.nats[start : start + T])
    assert not np.allclose(scored(model, length=T, stride=T // 2).nats, whole.nats, rtol=1e-3)


def test_loss_by_position_adds_up_to_the_total(model):
    for length, stride in ((T, T), (4 * T, T), (5 * T, 7)):
        found = scored(model, length=length, stride=stride)
        places = by_position(found, length, T)
        assert sum(place["tokens"] for place in places) == len(TOKENS)
        total = sum(place["tokens"] * place["nats_per_token"] for place in places)
        assert total == pytest.approx(float(found.nats.astype(np.float64).sum()), rel=1e-12)
        assert [place["start"] for place in places] == sorted({place["start"] for place in places})


def test_bins_have_an_edge_at_the_training_length():
    for train, length in ((24, 24), (24, 384), (100, 400), (128, 2048), (1, 1)):
        edges = position_edges(length, train)
        assert edges[0] == 0
        assert edges[-1] == length
        assert {train, 2 * train, 4 * train} & set(range(length + 1)) <= set(edges)
        assert len(set(edges)) == len(edges)


def test_a_window_of_attention_reads_nothing_beyond_it():
    """Two layers of 7 tokens reach 12 back: from position 12 on, longer windows change nothing; without it they do."""
    for attention, same in (("sliding_window", True), ("mha", False)):
        net = scaled_model(variant(attention=attention), 3.0)
        short, long = (scored(net, length=length) for length in (T, 4 * T))
        inside = (short.position >= 12) & (long.position >= 12)
        assert inside.sum() > 40
        assert np.allclose(short.nats[inside], long.nats[inside], atol=1e-5) is same


def test_transformers_perplexity_recipe_gives_the_same(model):
    """Its guide to perplexity of models with a fixed length: windows that move on by a stride, and of each only the targets
    that are new. There a window of L + 1 tokens holds L inputs and their targets."""
    pytest.importorskip("transformers")
    from lmablate.interop import to_hf

    theirs = to_hf(model).eval()
    text = torch.from_numpy(np.concatenate([[END], TOKENS]))[None]
    for length, stride in ((T, T), (2 * T, 10)):
        nats, counted, done = 0.0, 0, 0
        for begin in range(0, text.shape[1], stride):
            end = min(begin + length + 1, text.shape[1])
            labels = text[:, begin:end].clone()
            labels[:, : -(end - done)] = -100
            with torch.no_grad():
                loss = theirs(input_ids=text[:, begin:end], labels=labels).loss
            new = int((labels[:, 1:] != -100).sum())
            nats, counted, done = nats + float(loss) * new, counted + new, end
            if end == text.shape[1]:
                break
        found = scored(model, length=length, stride=stride)
        assert counted == len(TOKENS)
        assert float(found.nats.mean()) == pytest.approx(nats / counted, rel=1e-5)


@pytest.mark.parametrize("posemb", options("posemb"))
def test_every_scheme_beyond_the_training_length_or_in_words(posemb):
    cfg = variant(posemb=posemb)
    net, text = build_model(cfg), Text("text", TOKENS, 200, "f")
    plan = protocols([1, 2, 4], 12, T)
    if posemb == "learned":
        with pytest.raises(ConfigError, match=r"posemb=learned has positions for 24 tokens, and 96 are asked for"):
            at_lengths(net, cfg, text, END, plan, train_length=T)
        plan = protocols([1], None, T)
    found = at_lengths(net, cfg, text, END, plan, train_length=T)
    assert [(entry["length"], entry["stride"]) for entry in found] == plan
    assert all(math.isfinite(entry["nats_per_token"]) and 0 <= entry["ece"] <= 1 for entry in found)


@pytest.mark.parametrize("scaled", [option for option in options("posemb") if option.startswith("rope_")])
def test_positions_changed_after_training_are_those_of_a_run_that_had_them(model, scaled):
    """The weights of a rope model in one that was built with the scaled positions and the longer context."""
    cfg, words = changed(variant(), [f"posemb={scaled}", "posemb.rope_theta=500.0"], 4 * T)
    assert "posemb.original_length=24" in words or "original_length" not in cfg.posemb
    made = rebuilt(model, cfg)
    own = {**variant(posemb=scaled).posemb, "rope_theta": 500.0}
    own |= {key: value for key, value in {"factor": 4.0, "original_length": T}.items() if key in own}
    other = build_model(variant(posemb=scaled, model={"context_length": 4 * T}).model_copy(update={"posemb": own}))
    other.load_state_dict(model.state_dict())
    tokens = torch.from_numpy(TOKENS[None, : 4 * T])
    assert torch.equal(made(tokens), other.eval()(tokens))
    assert not torch.allclose(made(tokens), model(tokens), rtol=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["posemb=yarn"], "no such option; posemb has alibi"),
        (["posemb=[bold]"], r"posemb=\[bold\]: no such option; posemb has alibi"),
        (["posemb=alibi"], "tells positions in another way"),
        (["posemb.factor=4"], "no such key; posemb=rope has rope_theta"),
        (["optim.lr=1"], "can change posemb and attention"),
        (["posemb=rope_yarn", "posemb.factor=-1"], "posemb.factor=-1"),
        (["attention=gqa"], "sizes of its own"),
        (["attention=mla"], "other weights than the run"),
    ],
)
def test_changes_that_make_no_sense_are_refused(model, words, said):
    with pytest.raises(ConfigError, match=said):
        rebuilt(model, changed(variant(), words, 4 * T)[0])


def test_lengths_that_make_no_sense_are_refused():
    assert protocols([2, 1], 30, T) == [Protocol(T, T), Protocol(48, 48), Protocol(48, 30)]
    for times, stride, said in (
        ([0.3], None, "whole number"),
        ([], None, "is empty"),
        ([1, 2], 48, "1 to 47"),
        ([1], 0, "stride=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            protocols(times, stride, T)
    check_lengths(variant(posemb="learned"), protocols([0.5, 1], None, T))
