"""Any two options of two axes: refused in words, or built, causal, differentiable and counted right.

A covering array holds every pair in some row; a pair whose every row is refused is tried alone, so that one refusal hides no other.
"""

import itertools

import pytest
import torch
from allpairspy import AllPairs
from tiny import AXES, config, options, scaled_model, tokens_for

from lmablate.budget import parameters
from lmablate.core.errors import ConfigError
from lmablate.objective import objective_of

GROUPS = (*AXES, "objective")
ROWS = [dict(zip(GROUPS, row, strict=True)) for row in AllPairs([options(group) for group in GROUPS])]
PARTS = 4  # so that several processes can share them
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(row: dict[str, str]) -> set[Pair]:
    return set(itertools.combinations(row.items(), 2))


SCALES = (
    5.0,
    1.0,
    0.2,
    0.04,
)  # of the weights: without norms, large ones overflow in a deep stack, or saturate its scores


def check(words: dict[str, str]) -> bool:
    """What test_axes asks of one option, of several; False if their union is refused."""
    try:
        cfg = config(*(f"{group}={option}" for group, option in words.items()))
        model = scaled_model(cfg, SCALES[0])
    except ConfigError:
        return False
    assert parameters(cfg).total == sum(p.numel() for p in model.parameters()), words
    found = wrong(cfg, model)
    for scale in SCALES[1:]:
        found = found and wrong(cfg, scaled_model(cfg, scale))
    assert found is None, f"{words}: {found}"
    return True


def wrong(cfg, model) -> str | None:
    """What numbers that are too large or too small may explain. Raises AssertionError for what they may not."""
    tokens = tokens_for(cfg, rows=2)
    seen: list[torch.Tensor] = []
    hook = model.embedding.register_forward_hook(
        lambda module, ids, out: seen.append(out.requires_grad_().retain_grad() or out)
    )
    objective = objective_of(cfg)
    batch = objective.batch(tokens[:, :-1], tokens[:, 1:], data_seed=0, step=0)
    last = batch.inputs.shape[1] // 2 if batch.prefix is None else int(batch.prefix.max()) - 1
    given = () if batch.prefix is None else (batch.prefix,)
    logits = model(batch.inputs, *given)
    hook.remove()
    if not torch.isfinite(logits).all():
        return "logits are not finite"
    (gradient,) = torch.autograd.grad(logits[:, last].square().sum(), seen[0], retain_graph=True)
    reached = gradient.abs().amax(-1)
    if not torch.isfinite(reached).all():
        return "gradients are not finite"
    assert (reached[:, last + 1 :] == 0).all(), f"{cfg.choices}: the future leaks"
    objective(model, *batch).objective.backward()
    idle = {f"{at}.{n}".lstrip(".") for at, m in model.named_modules() for n in getattr(m, "may_be_idle", ())}
    lost = [n for n, p in model.named_parameters() if n not in idle and (p.grad is None or not p.grad.any())]
    if lost or not (reached[:, last] > 0).all():
        return f"no gradient reaches {', '.join(lost) or 'the last token'}"
    if not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        return "gradients are not finite"
    return None


def test_the_array_holds_every_pair():
    held = set().union(*map(pairs_of, ROWS))
    for a, b in itertools.combinations(GROUPS, 2):
        for one, other in itertools.product(options(a), options(b)):
            assert ((a, one), (b, other)) in held


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
def test_the_first_rows_build_or_are_refused(part):
    """The array begins with the rows that hold most new pairs."""
    rows = ROWS[: len(ROWS) // 4][part::PARTS]
    assert sum(check(row) for row in rows) > len(rows) / 2


@pytest.mark.slow
def test_every_pair_builds_or_is_refused():
    built = set().union(*(pairs_of(row) for row in ROWS if check(row)))
    for pair in sorted(set().union(*map(pairs_of, ROWS)) - built):
        check(dict(pair))
