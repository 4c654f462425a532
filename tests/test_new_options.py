"""What somebody who adds an option needs of the checks and of the base classes, on options that the project does not have."""

import pytest
import torch
from tiny import config, distance, request, scaled_model, tokens_for, training_record
from torch import nn

from lmablate.check.keys import Records, dead
from lmablate.check.reading import decoded
from lmablate.check.training import alone, members, together, unlike
from lmablate.model import components
from lmablate.model.attention.cross import CrossAttention
from lmablate.model.attention.heads import MultiHead
from lmablate.model.attention.latent import LatentAttention


class Damped(nn.Module):
    """``weight * tanh(alpha * x) + bias`` (Zhu et al. 2025, arXiv 2503.10622), of plain parameters."""

    def __init__(self, d_model, *, alpha: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return self.weight * torch.tanh(self.alpha * x) + self.bias


class Late(Damped):
    """Has a key that acts beside another value only."""

    acts_with = {"ramp": {"norm.alpha": 5.0}}  # noqa: RUF012

    def __init__(self, d_model, *, alpha: float, ramp: float):
        super().__init__(d_model, alpha=alpha + ramp * max(0.0, alpha - 1))


def gate(x):
    return 2 * torch.sigmoid(x.mean(-1)).unsqueeze(-2).unsqueeze(-1)


class Gated(MultiHead):
    def output(self, y, x):
        return super().output(gate(x) * y, x)


class GatedLatent(LatentAttention):
    def output(self, y, x):
        return super().output(gate(x) * y, x)


@pytest.fixture(autouse=True)
def _trusted(monkeypatch):
    monkeypatch.setattr(components, "_trusted", {__name__})


def with_norm(name, **keys):
    return request() | {"norm": {"_target_": f"{__name__}.{name}", **keys}}


def test_a_key_that_a_damping_norm_hides_acts_on_larger_weights():
    records = Records(with_norm("Damped", alpha=1e-3))
    assert dead(records, "model.n_heads") == dead(records, "norm.alpha") == []


def test_a_class_says_beside_which_values_its_keys_act(monkeypatch):
    records = Records(with_norm("Late", alpha=0.5, ramp=1.0))
    assert dead(records, "norm.ramp") == []
    monkeypatch.setattr(Late, "acts_with", {})
    assert dead(records, "norm.ramp") != []


@pytest.mark.parametrize(("option", "name"), [("mha", "Gated"), ("mla", "GatedLatent")])
def test_the_output_of_attention_sees_what_the_branch_was_given(option, name):
    """In training, in generation, and in a gang."""
    raw = request(f"attention={option}")
    raw["attention"]["_target_"] = f"{__name__}.{name}"
    cfg, plain = config(raw=raw), config(f"attention={option}")
    tokens = tokens_for(cfg)[:, :-1]
    assert not torch.allclose(scaled_model(cfg, 5.0)(tokens), scaled_model(plain, 5.0)(tokens), rtol=1e-2)
    assert max(decoded(cfg, kinds=("pieces",)).values()) < 1e-4
    cfgs = members(cfg, count=2)
    assert [unlike(mine, alone(one)) for mine, one in zip(together(cfgs), cfgs, strict=True)] == [None, None]


def test_the_output_of_cross_attention_sees_what_the_branch_was_given(monkeypatch):
    raw = request("objective=span_corruption")
    raw["model"]["n_encoder_layers"] = 2
    cfg = config(raw=raw, given={"model.n_encoder_layers": 2})
    plain = training_record(cfg)
    output = CrossAttention.output
    monkeypatch.setattr(CrossAttention, "output", lambda self, y, x: output(self, gate(x) * y, x))
    assert distance(training_record(cfg), plain) > 0
