"""Classes of transformers with random tiny weights in and out: the same logits, the same gradients, the same bits."""

import pytest
import torch
import torch.nn.functional as F
from hf_models import CASES
from reference_models import LENGTH, VOCAB, close
from test_encoders import ENCODERS

from lmablate.interop import from_hf, to_hf
from lmablate.interop.families import FAMILIES
from lmablate.interop.tensors import expand
from lmablate.model.ffn.routing import TokenRouter

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()]
pytestmark = pytest.mark.filterwarnings("ignore")


def text(seed: int = 0, rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients_there(ours, theirs):
    """Our gradients in the form of their weights."""
    family = next(family for family in FAMILIES if family.name == type(theirs).__name__)
    facts = family.read(theirs.config)
    rules = expand(family.rules(facts), facts["model.n_layers"])
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    return {
        name: rules[name].form.pack([own[part] for part in rules[name].ours], facts)
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }


def compare(theirs, tokens):
    """Both directions for one model of theirs; returns ours and what to_hf makes of it in the same class."""
    ours = from_hf(theirs)
    expected = theirs(input_ids=tokens, labels=tokens)
    logits = ours(tokens)
    close(logits, expected.logits, 1e-5)
    assert float((logits - expected.logits).abs().max()) < 1e-4 * max(1.0, float(expected.logits.abs().max()))

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.requires_grad)
    for name, gradient in gradients_there(ours, theirs).items():
        close(gradient, dict(theirs.named_parameters())[name].grad, 1e-4, scale=1e-2 * largest)

    back = to_hf(ours, type(theirs).__name__)
    with torch.no_grad():
        close(back(input_ids=tokens).logits, logits, 1e-5)
    return ours, back


@pytest.mark.parametrize("name", NAMES)
def test_same_logits_and_gradients_both_ways(name):
    case = CASES[name]
    theirs = case.build()
    ours, back = compare(theirs, text())
    again = dict(from_hf(back).named_parameters())
    for key, parameter in ours.named_parameters():
        assert torch.equal(parameter, again[key]), key
    unread = {"model.decoder.embed_positions.weight": 2}  # OPT reads its positions from row 2 on
    theirs_too = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    for key, value in (*back.named_parameters(), *back.named_buffers()):
        wanted, first = theirs_too[key], unread.get(key)
        assert torch.equal(value[first:], wanted[first:]) if first else torch.equal(value, wanted), key
    chosen = to_hf(ours)
    assert type(chosen).__name__ == (case.back or case.name)
    if case.back:
        with torch.no_grad():
            close(chosen(input_ids=text()).logits, ours(text()), 1e-5)


def routing(model, tokens, router):
    """What the modules that `router` knows decide for each token: the experts in order, and their weights."""
    found = []

    def note(module, args, out):
        experts, weights = (out.experts, out.weights) if hasattr(out, "experts") else (out[2], out[1])
        experts, order = experts.flatten(0, -2).sort(-1)
        found.append((experts, weights.flatten(0, -2).gather(-1, order)))

    hooks = [module.register_forward_hook(note) for module in model.modules() if router(module)]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "name", [one for one in NAMES if any(word in one.values[0] for word in ("experts", "moe", "mixtral"))]
)
def test_routing_is_decided_identically(name):
    theirs, tokens = CASES[name].build(seed=3), text(3)
    ours = from_hf(theirs)

    def there():
        return routing(theirs, tokens, lambda module: type(module).__name__.endswith("Router"))

    decided = routing(ours, tokens, lambda module: isinstance(module, TokenRouter))
    expected = there()
    assert len(decided) == len(expected) > 0
    for (experts, weights), (wanted, scores) in zip(decided, expected, strict=True):
        assert torch.equal(experts, wanted)
        close(weights, scores)
    held = (*theirs.named_buffers(), *theirs.named_parameters())
    biases = [value.data for key, value in held if key.endswith("e_score_correction_bias")]
    assert bool(biases) == any(router.bias is not None for router in ours.modules() if isinstance(router, TokenRouter))
    for bias in biases:
        assert bias.abs().min() > 0
        bias.zero_()
    if biases:  # which decide something
        assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(there(), expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_other_weights_texts_and_depths(name, seed):
    case = CASES[name]
    depths = {key for key in case.keys if key in ("n_layer", "n_layers", "num_hidden_layers", "num_layers")}
    fixed = {
        "attention_types",
        "max_window_layers",
        "first_k_dense_replace",
        "mlp_only_layers",
        "mlp_layer_types",
    } & set(case.keys)
    changes = {} if fixed else dict.fromkeys(depths, 3)
    theirs = case.build(seed, **changes)
    compare(theirs, text(seed, rows=2, length=LENGTH - 5 * (seed - 1)))


def test_every_class_has_a_case():
    elsewhere = {*ENCODERS, "T5ForConditionalGeneration"}  # test_encoders.py, test_two_stacks.py
    assert {family.name for family in FAMILIES} == {case.name for case in CASES.values()} | elsewhere
    assert {case.name for case in CASES.values() if not case.slow} == {case.name for case in CASES.values()}
