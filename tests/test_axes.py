"""Every option of every axis, listed from conf/: a new YAML file is tested without a line here."""

from functools import cache

import pytest
import torch
from tiny import config, distance, option_cases, options, scaled_model, tokens_for, training_record

from lmablate.budget import flops_per_token, parameters
from lmablate.model import build_model
from lmablate.model.attention import EVERYTHING, visible, with_prefix
from lmablate.objective import Causal, objective_of

pytestmark = pytest.mark.parametrize(("axis", "option"), option_cases(), ids=lambda word: word)


def test_composes_builds_and_is_finite(axis, option):
    cfg = config(f"{axis}={option}")
    logits = build_model(cfg)(tokens_for(cfg)[:, :-1])
    assert cfg.choices[axis] == option
    assert logits.shape == (3, cfg.model.context_length, cfg.model.vocab_size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("objective", options("objective"))
def test_gradient_respects_the_mask_the_objective_declares(axis, option, objective):
    cfg = config(f"{axis}={option}").model_copy(update={"objective": config(f"objective={objective}").objective})
    model, rows, length = scaled_model(cfg, 5.0), [], cfg.model.context_length
    tokens = tokens_for(cfg, rows=1)
    batch = objective_of(cfg).validation(tokens[:, :-1], tokens[:, 1:])
    mask = None if batch.prefix is None else with_prefix(length, batch.prefix)[0, 0]
    allowed = visible(length, EVERYTHING, tokens.device, mask)
    hook = model.embedding.register_forward_hook(
        lambda module, ids, out: rows.append(out.requires_grad_().retain_grad() or out)
    )
    logits = model(batch.inputs, *[x for x in (batch.prefix,) if x is not None])
    hook.remove()
    assert torch.equal((allowed.float() @ allowed.float()) > 0, allowed), "layers see more than one does"
    for t in (length // 4, length // 2, length - 2):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), rows[0], retain_graph=True)
        reached = gradient[0].abs().amax(-1)
        assert reached[t] > 0
        assert reached[:t].max() > 0, "nothing before the position reaches it"
        assert (reached[~allowed[t]] == 0).all(), "the future leaks"
        if allowed[t, t + 1 :].any():
            assert reached[t + 1 :].max() > 0, "nothing after the position reaches it, and the objective lets it"


def test_every_parameter_gets_a_gradient(axis, option):
    cfg = config(f"{axis}={option}", "model.bias=true")
    model = scaled_model(cfg, 5.0)
    batch = tokens_for(cfg)
    Causal(z_loss=cfg.stability.z_loss)(model, batch[:, :-1], batch[:, 1:]).objective.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    idle = {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        for name in getattr(module, "may_be_idle", ())
    }
    floor = 1e-7 * max(norms.values())
    assert {name for name, norm in norms.items() if norm <= floor} <= idle


@pytest.mark.parametrize(
    "extra", [(), ("model.bias=true", "model.tie_embeddings=true", "norm_position=sandwich")], ids=["plain", "biases"]
)
def test_predicted_parameters_equal_built(axis, option, extra):
    if axis == "norm_position":
        extra = tuple(word for word in extra if not word.startswith("norm_position"))
    cfg = config(f"{axis}={option}", *extra)
    model = build_model(cfg, device="meta")
    total = sum(p.numel() for p in model.parameters())
    tables = model.embedding.weight.numel() + sum(p.numel() for p in model.head.parameters())
    if model.posemb.is_token_table:
        tables += sum(p.numel() for p in model.posemb.parameters())
    assert parameters(cfg) == (total, total - tables)
    assert flops_per_token(cfg) > 0


@cache
def record_of(scale, *overrides):
    return training_record(config(*overrides), scale)


def test_training_record_differs_from_every_sibling(axis, option):
    """Rule 11 for options. Weights are scaled up until the option acts; "differs" is 100 times the difference between
    two exact paths of one option: the whole batch at once, and one sequence at a time."""
    left = [other for other in options(axis) if other != option]
    for scale in (1.0, 5.0, 20.0, 60.0):
        record = record_of(scale, f"{axis}={option}")
        rounding = distance(record_of(scale, f"{axis}={option}", "runtime.microbatch_size=1"), record)
        left = [
            other for other in left if distance(record_of(scale, f"{axis}={other}"), record) < max(100 * rounding, 1e-9)
        ]
        if not left:
            return
    pytest.fail(f"{axis}={option} trains like {axis}={' and '.join(left)}")


def test_lead_axes_are_carried_through(axis, option):
    """Parts never assume how many axes stand before [B, T]: a stack of batches gives the stack of the results."""
    cfg = config(f"{axis}={option}")
    model = build_model(cfg).eval()
    one, two = tokens_for(cfg, rows=2)[:, :-1], tokens_for(cfg, rows=2)[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.stack((one, two))), torch.stack((model(one), model(two))), rtol=1e-5, atol=1e-6
        )
