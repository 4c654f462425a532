"""Balancing of experts: losses and gradients against the formulas sum by sum, and the bias that takes no gradient."""

import itertools
import math

import pytest
import torch
from experts_slowly import assert_same_gradients, both_ways, made, text
from tiny import SmallText, config

from lmablate.model import build_model, ffn
from lmablate.model.ffn.balance import Balance, losses, move_bias
from lmablate.training.trainer import Trainer

BALANCES = {
    "switch": {"balance_loss": 0.3, "k": 1, "normalise": False},
    "top_2_over_texts": {"balance_loss": 0.3},
    "top_2_over_the_batch": {"balance_loss": 0.3, "balance_over": "batch"},
    "devices": {"balance_loss": None, "device_loss": 0.7, "groups": 4},
    "devices_over_the_batch": {"device_loss": 0.7, "groups": 2, "balance_over": "batch"},
    "sent_to_devices": {"balance_loss": None, "communication_loss": 0.7, "groups": 4, "group_k": 2, "k": 3},
    "sent_to_devices_over_the_batch": {"communication_loss": 0.7, "groups": 4, "group_k": 2, "balance_over": "batch"},
    "router_z": {"balance_loss": None, "balance_over": None, "router_z_loss": 0.2},
    "all_with_sigmoid": {
        "balance_loss": 0.3,
        "device_loss": 0.7,
        "communication_loss": 0.4,
        "groups": 4,
        "group_k": 3,
        "router_z_loss": 0.2,
        "scores": "sigmoid",
    },
}


@pytest.mark.parametrize("case", BALANCES)
def test_balancing_losses_and_their_gradients_equal_the_formulas(case):
    module = made("token_choice", **BALANCES[case])
    x, tokens = text()
    (_, fast, extra), (_, slowly, other) = both_ways(module, tokens, x, module.balance)
    torch.testing.assert_close(extra, other)
    assert_same_gradients(fast, slowly)
    assert fast["router.proj.weight"].any()


def choices(experts, n_experts, probabilities=None):
    """One text whose tokens meet `experts`, with even scores if none are given."""
    tokens, k = len(experts), len(experts[0])
    even = torch.full((1, 1, tokens, n_experts), 1 / n_experts)
    return ffn.routing.Choice(
        torch.tensor(experts).view(1, 1, tokens, k),
        torch.ones(1, 1, tokens, k),
        None,
        even if probabilities is None else torch.tensor(probabilities).expand_as(even),
        torch.zeros_like(even),
    )


def test_an_even_load_costs_the_weight_itself():
    even = choices([[0, 1], [2, 3]], 4)
    assert losses(even, Balance(0.3, 0.7, 0.0, 0.0, False, 2, 1)).tolist() == pytest.approx([1.0])
    assert losses(even, Balance(0.0, 0.0, 0.5, 0.0, False, 2, 1)).tolist() == pytest.approx([0.5])
    assert losses(even, Balance(0.0, 0.0, 0.0, 0.2, False, 2, 1)).tolist() == pytest.approx([0.2 * math.log(4) ** 2])
    both = choices([[0, 2], [1, 3], [0, 3]], 4)  # every token is sent to the two devices that it may
    assert losses(both, Balance(0.0, 0.0, 0.5, 0.0, False, 2, 2)).tolist() == pytest.approx([0.5])


def test_the_communication_loss_counts_a_device_once_for_a_token():
    """By hand: of four tokens three are sent to the first device, one to the second and two to the third; which have 0.5, 0.2 and
    0.3 of the scores; D / (M T) = 3 / (2 * 4)."""
    found = choices([[0, 1], [1, 0], [0, 4], [3, 5]], 6, [0.4, 0.1, 0.1, 0.1, 0.1, 0.2])
    wanted = 3 / 8 * (3 * 0.5 + 1 * 0.2 + 2 * 0.3)
    assert losses(found, Balance(0.0, 0.0, 1.0, 0.0, False, 3, 2)).tolist() == pytest.approx([wanted])
    assert losses(found, Balance(0.0, 1.0, 0.0, 0.0, False, 3, 2)).tolist() != pytest.approx([wanted])


def test_members_of_a_gang_have_the_losses_of_each_alone():
    def draw(seed):
        scores = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))
        experts = scores.topk(3).indices
        return ffn.routing.Choice(experts, scores.gather(-1, experts), None, scores.softmax(-1), scores)

    own = [draw(seed) for seed in (0, 1)]
    both = ffn.routing.Choice(*(None if x[0] is None else torch.stack(x) for x in zip(*own, strict=True)))
    for whole_batch in (False, True):
        weights = Balance(0.3, 0.7, 0.4, 0.2, whole_batch, 4, 2)
        alone = [losses(ffn.routing.Choice(*(x if x is None else x[None] for x in one)), weights) for one in own]
        assert torch.equal(losses(both, weights), torch.cat(alone))
        assert alone[0] != alone[1]


def test_the_bias_moves_against_the_load_of_the_whole_step():
    bias, load = torch.tensor([0.5, 0.0, -0.5, 0.0]), torch.tensor([7, 1, 4, 4])
    move_bias(bias, load, 0.1)
    assert bias.tolist() == pytest.approx([0.4, 0.1, -0.5, 0.0])
    cfg = config("ffn=loss_free", "ffn.bias_rate=0.25")
    records = {}
    for word in ("whole", "pieces"):
        runtime = cfg.runtime.model_copy(update={"microbatch_size": 1 if word == "pieces" else None})
        trainer = Trainer(build_model(cfg), SmallText(), cfg.model_copy(update={"runtime": runtime}), folder=None)
        trainer._step(0)
        layers = [m for m in trainer.model.modules() if isinstance(m, ffn.Mixture)]
        records[word] = [(m.step_load.tolist(), m.router.bias.tolist()) for m in layers]
    assert records["whole"] == records["pieces"]
    for load, bias in records["whole"]:
        assert sum(load) == 2 * cfg.tokens_per_step
        assert bias == [0.25 * (sum(load) > 8 * n) - 0.25 * (sum(load) < 8 * n) for n in load]


def test_the_bias_evens_out_the_load_and_a_checkpoint_keeps_it(tmp_path):
    cfg = config("ffn=loss_free", "ffn.bias_rate=0.05", "trainer.steps=12", "runtime.checkpoint_seconds=0")
    whole = Trainer(build_model(cfg), SmallText(), cfg, folder=None)
    list(whole.records())
    count = itertools.count(1)
    first = Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path)
    with pytest.raises(Exception, match="15"):
        list(first.records(lambda: 15 * (next(count) == 7)))
    second = Trainer(build_model(cfg), SmallText(), cfg, folder=tmp_path)
    list(second.records())
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    biases = [p for name, p in whole.model.named_parameters() if name.endswith("router.bias")]
    assert len(biases) == 2
    assert all(p.any() for p in biases)
