"""Routing of experts against a reference that goes token by token: outputs, gradients, and who is told of what comes after."""

import math

import pytest
import torch
from experts_slowly import (
    D_MODEL,
    LENGTH,
    OF_TOKENS,
    TEXTS,
    assert_same_gradients,
    both_ways,
    file_of,
    gradients,
    made,
    network,
    positions,
    text,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config

from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.model import build_model
from lmablate.model.ffn.hashing import hash_each, mix, normal, prefix_hash
from lmablate.model.ffn.mixture import ChosenByExperts


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("bias", "gated"), [(True, True), (False, False)], ids=["gated", "plain"])
@pytest.mark.parametrize("case", OF_TOKENS)
def test_routing_and_gradients_equal_the_slow_reference(case, bias, gated, training):
    name, changes = OF_TOKENS[case]
    module = made(name, bias=bias, gated=gated, **changes).train(training)
    x, tokens = text()
    (y, fast, extra), (wanted, slowly, other) = both_ways(module, tokens, x, getattr(module, "balance", None))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    assert_same_gradients(fast, slowly)
    assert (extra is None) == (other is None)
    if extra is not None:
        torch.testing.assert_close(extra, other)


@st.composite
def mixtures(draw):
    n = draw(st.integers(1, 9))
    k = draw(st.integers(1, n))
    return n, k, draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.booleans()), draw(st.integers(0, 10**6))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(mixtures())
def test_any_shape_number_and_choice_of_experts(case):
    """Of one expert up to nine; one of them is never chosen, where there are others enough."""
    n, k, texts, length, sigmoid, seed = case
    scores = {"scores": "sigmoid", "normalise": k > 1} if sigmoid else {"normalise": k > 1}
    off = {"balance_loss": None, "balance_over": None}
    module = made("token_choice", n_experts=n, k=k, length=length, **scores, **off)
    x, tokens = text(texts, length, seed)
    x[..., 0] = x[..., 0].abs() + 1
    if n > k:
        module.router.proj.weight.data[-1] = 0.0
        module.router.proj.weight.data[-1, 0] = -60.0  # far below every other score
    (y, fast, _), (wanted, slowly, _) = both_ways(module, tokens, x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    assert_same_gradients(fast, slowly)
    choice = module.choose(module.by_member(x), tokens)
    assert all(len(set(row)) == k for row in choice.experts.flatten(0, -2).tolist())
    if n > k:
        assert not (choice.experts == n - 1).any()
        for name in ("gate_proj", "in_proj", "out_proj"):
            assert not fast[f"experts.{name}.weight"][-1].any()
    if module.router.normalise:
        torch.testing.assert_close(choice.weights.sum(-1), torch.ones(1, texts, length))


def test_an_expert_that_is_not_chosen_does_not_count_at_all():
    """Weights that are not numbers stand in the experts that one token does not choose."""
    module = made("token_choice").eval()
    x, tokens = text(1, 1)
    wanted = module(x, positions(tokens))
    chosen = set(module.choose(module.by_member(x), tokens).experts.flatten().tolist())
    for e in set(range(8)) - chosen:
        for p in (module.experts.gate_proj.weight, module.experts.out_proj.weight):
            p.data[e] = math.nan
    assert torch.equal(module(x, positions(tokens)), wanted)


@pytest.mark.parametrize("gated", [True, False])
def test_one_expert_is_the_dense_network(gated):
    module = made("token_choice", n_experts=1, k=1, normalise=False, balance_loss=None, balance_over=None, gated=gated)
    dense = made("dense", gated=gated)
    for name, p in dense.named_parameters():
        p.data = module.experts.get_parameter(name).data.view(p.shape).clone()
    x, tokens = text()
    torch.testing.assert_close(module(x, positions(tokens)), dense(x, positions(tokens)), rtol=1e-5, atol=1e-6)


def leak(module, at=3):
    """How much the output at a place moves when a later token changes."""
    x, tokens = text(1)
    other = x.clone()
    other[:, at + 1 :] = text(1, seed=9)[0][:, at + 1 :]
    with torch.no_grad():
        a, b = (module(one, positions(tokens))[:, : at + 1] for one in (x, other))
    return float((a - b).abs().max())


def test_expert_choice_tells_a_token_of_those_after_it_and_the_others_do_not():
    assert leak(made("expert_choice", leaks=True)) > 0.1
    for case in ("after", "capacity", "one_place_each", "hash", "loss_free"):
        name, changes = OF_TOKENS[case]
        assert leak(made(name, **changes).eval()) < 1e-5, case  # products of other sizes round otherwise


def test_expert_choice_under_a_causal_objective_is_refused_until_told_that_it_leaks():
    with pytest.raises(ConfigError, match=r"tells of those after it.*ffn\.leaks=true to measure it all the same"):
        build_model(config("ffn=expert_choice").model_copy(update={"ffn": file_of("expert_choice")}))
    cfg = config("ffn=expert_choice", "ffn.leaks=true")
    with pytest.raises(ConfigError, match="cannot be read piece by piece"):
        Decoder(build_model(cfg).eval(), 1, 9)


@pytest.mark.parametrize("factor", [2.0, 0.7, 8.0])
def test_expert_choice_equals_the_slow_reference(factor):
    module = made("expert_choice", leaks=True, capacity_factor=factor)
    x, tokens = text()
    results = []
    for how in ("fast", "slow"):
        given = x.clone().requires_grad_()
        if how == "fast":
            y = module(given, positions(tokens))
        else:
            y, capacity = torch.zeros_like(x), min(LENGTH, max(1, round(factor * LENGTH / 8)))
            scores = torch.softmax(given @ module.router.proj.weight.T, -1)
            for i in range(TEXTS):
                for e in range(8):
                    best = sorted(range(LENGTH), key=lambda t, i=i, e=e: -scores[i, t, e].item())[:capacity]
                    for t in best:
                        add = scores[i, t, e] * network(module.experts, e, given[i, t])
                        y = y.index_put((torch.tensor(i), torch.tensor(t)), add, accumulate=True)
        results.append((y.detach(), gradients(module, y, given)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    assert_same_gradients(results[0][1], results[1][1])
    assert isinstance(module, ChosenByExperts)
    load, dropped = module.load(module.by_member(x), tokens)
    assert load.tolist() == [TEXTS * min(LENGTH, max(1, round(factor * LENGTH / 8)))] * 8
    assert int(dropped) == 0


def test_hashed_numbers_are_spread_and_depend_on_the_text_alone():
    words = hash_each(torch.arange(4000), 8, 3)
    drawn = normal(words)
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float((drawn[:, 0] * drawn[:, 1]).mean())) < 0.06
    # the first outputs of SplitMix64 with seed 0, of its authors' C code
    seeds = torch.tensor([1, 2])
    assert [int(word) % 2**64 for word in mix(seeds)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    _, tokens = text()
    assert torch.equal(prefix_hash(tokens)[1:2], prefix_hash(tokens[1:2]))
    changed = tokens.clone()
    changed[:, 6] += 1
    same = prefix_hash(changed) == prefix_hash(tokens)
    assert same[:, :6].all()
    assert not same[:, 6:].any()
    by_hash = made("hash").eval()
    chosen = by_hash.choose(torch.zeros(1, 1, 4000, D_MODEL), torch.arange(4000)[None]).experts
    counts = torch.bincount(chosen.flatten(), minlength=8)
    assert counts.sum() == 8000
    assert float((counts - 1000).abs().max()) < 130  # four standard deviations
