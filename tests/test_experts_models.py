"""Experts in whole models: what they cost, that runs repeat to the bit, and what is refused."""

import pytest
from tiny import config, options, tokens_for, training_record

from lmablate.budget import flops_per_token, parameters
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model, ffn
from lmablate.objective import Causal


@pytest.mark.parametrize("name", [name for name in options("ffn") if name != "dense"])
def test_flops_equal_torchs_counter_and_the_active_parameters_are_those_a_token_meets(name):
    from torch.utils.flop_counter import FlopCounterMode

    cfg = config(f"ffn={name}", "ffn.shared=1", "stability=soft_cap", "model.bias=true")
    model, rows = build_model(cfg), tokens_for(cfg)
    with FlopCounterMode(display=False) as counter:
        Causal(z_loss=None)(model, rows[:, :-1], rows[:, 1:]).objective.backward()
    length, m = cfg.model.context_length, cfg.model
    unread = m.n_layers * (length - 1) / 2
    expected = flops_per_token(cfg) + 12 * m.n_heads * m.head_dim * unread
    assert counter.get_total_flops() / rows[:, 1:].numel() == pytest.approx(expected, abs=1.0)
    met = {"fine_grained": 3}.get(name, 2)
    experts = [part for part in model.modules() if isinstance(part, ffn.Mixture)]
    assert len(experts) == m.n_layers
    one = sum(p.numel() for part in experts for p in part.experts.parameters()) / experts[0].n_experts
    counted = parameters(cfg)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.total - counted.active == (experts[0].n_experts - met) * one


def test_what_a_token_meets_costs_what_the_dense_network_does():
    words = ("model.d_model=64", "runtime.device=cpu", "trainer.precision=fp32")
    dense = compose(words)
    for name in ("token_choice", "fine_grained", "hash"):
        cfg = compose([*words, f"ffn={name}"])
        assert flops_per_token(cfg) == pytest.approx(flops_per_token(dense), rel=0.03)  # the router comes on top
        matched = compose([*words, f"ffn={name}", "budget=flops"])
        assert flops_per_token(matched) == pytest.approx(flops_per_token(dense), rel=0.01)
        assert parameters(matched).active == pytest.approx(parameters(dense).total, rel=0.02)
        assert parameters(matched).total > 1.5 * parameters(dense).total


def test_the_same_bits_again():
    for name in ("fine_grained", "noisy_top_k"):
        cfg = config(f"ffn={name}")
        assert training_record(cfg).numbers == training_record(cfg).numbers


def test_first_layers_may_be_dense():
    cfg = config("ffn=token_choice", "ffn.first_dense=1", "model.n_layers=3")
    kinds = [type(block.ffn.branch).__name__ for block in build_model(cfg, device="meta").blocks]
    assert kinds == ["GatedFFN", "ChosenByTokens", "ChosenByTokens"]
    assert build_model(cfg, device="meta").blocks[0].ffn.branch.in_proj.weight.shape[0] == cfg.model.d_ff


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ffn=token_choice", "ffn.k=9"), "ffn.k=9 experts a token, and there are ffn.n_experts=8"),
        (("ffn=token_choice", "ffn.k=1"), "ffn.normalise=true makes the weight of ffn.k=1 expert 1"),
        (("ffn=token_choice", "ffn.balance_over=null"), "needs ffn.balance_over=text or batch"),
        (("ffn=token_choice", "ffn.balance_loss=null"), "says what a loss is over that is off"),
        (("ffn=token_choice", "ffn.device_loss=0.1"), "ffn.device_loss is over groups of experts: set ffn.groups"),
        (
            ("ffn=token_choice", "ffn.communication_loss=0.1", "ffn.groups=4"),
            "of the few that it may: set ffn.groups and ffn.group_k",
        ),
        (
            ("ffn=loss_free", "ffn.communication_loss=0.1", "ffn.groups=4", "ffn.group_k=2"),
            "ffn.device_loss or ffn.communication_loss needs ffn.balance_over=text or batch",
        ),
        (("ffn=token_choice", "ffn.groups=3", "ffn.group_k=2"), "ffn.groups=3 does not split ffn.n_experts=8"),
        (("ffn=token_choice", "ffn.groups=4"), "ffn.groups=4 has no effect without ffn.group_k"),
        (("ffn=token_choice", "ffn.group_k=1"), "ffn.group_k=1 has no effect without ffn.groups"),
        (
            ("ffn=token_choice", "ffn.groups=8", "ffn.group_k=1"),
            "ffn.k=2 experts do not fit into ffn.group_k=1 groups of 1",
        ),
        (("ffn=token_choice", "ffn.groups=4", "ffn.group_k=4"), "limits nothing: give less than 4"),
        (("ffn=token_choice", "ffn.shared_gate=true"), "gates the shared experts, and there are none"),
        (("ffn=token_choice", "ffn.first_dense=2"), "leaves no layer of experts in model.n_layers=2"),
        (("ffn=token_choice", "ffn.scores=tanh"), "ffn.scores=tanh: input should be 'softmax' or 'sigmoid'"),
        (
            ("ffn=token_choice", "ffn.balance_over=batch", "runtime.microbatch_size=2"),
            "is a loss of the whole batch, and runtime.microbatch_size=2 cuts it",
        ),
        (("ffn=expert_choice", "ffn.capacity_factor=9.0"), "and there are ffn.n_experts=8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_means_nothing_is_refused(words, told):
    with pytest.raises(ConfigError) as found:
        config(*words)
    assert told in str(found.value)
