"""Mixture of experts against a slow reference that goes token by token: outputs, gradients, losses, biases, load."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SmallText, config, options, tokens_for, training_record

from lmablate.budget import flops_per_token, parameters
from lmablate.config import compose
from lmablate.decoding import Decoder
from lmablate.errors import ConfigError
from lmablate.model import build_model, ffn
from lmablate.model.ffn.balance import Balance, losses, move_bias
from lmablate.model.ffn.hashing import mix, normal, read_so_far, spread
from lmablate.model.ffn.mixture import ChosenByExperts
from lmablate.model.init import initialise
from lmablate.model.posemb import Positions
from lmablate.objective import Causal
from lmablate.paths import CONF_DIR
from lmablate.trainer import Trainer

D_MODEL, D_FF, LENGTH, TEXTS = 12, 16, 10, 3
OF_TOKENS = {
    "after": ("token_choice", {}),
    "before": ("token_choice", {"normalise": False}),
    "one": ("token_choice", {"k": 1, "normalise": False}),
    "all": ("token_choice", {"n_experts": 3, "k": 3, "normalise": False}),
    "sigmoid": ("token_choice", {"scores": "sigmoid", "scale": 2.5}),
    "noisy": ("noisy_top_k", {}),
    "fine_grained": ("fine_grained", {}),
    "gated_shared": ("fine_grained", {"shared": 2, "shared_gate": True}),
    "groups_max": ("fine_grained", {"groups": 4, "group_k": 2, "scale": 16.0}),
    "groups_top_2": ("loss_free", {"groups": 4, "group_k": 2, "group_best": 2}),
    "loss_free": ("loss_free", {}),
    "capacity": ("token_choice", {"capacity_factor": 0.6}),
    "one_place_each": ("token_choice", {"capacity_factor": 0.01}),
    "hash": ("hash", {"k": 3}),
}


def file_of(name):
    return yaml.safe_load((CONF_DIR / "ffn" / f"{name}.yaml").read_text())


def made(name, *, bias=True, gated=True, layer=1, length=LENGTH, **changes):
    """The branch of an option, with weights far from rest."""
    part = file_of(name) | changes
    kind = getattr(ffn, part.pop("_target_").rpartition(".")[2])
    shape = ffn.FFNShape(D_MODEL, D_FF, gated, bias, 0.0, length, lambda: F.silu)
    module = kind(**part).branch(shape, layer=layer)
    initialise(module, "test", seed=0, std=0.5, out_proj_scale=1.0)
    for i, p in enumerate(module.parameters()):
        if p.ndim == 1:
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return module


def text(texts=TEXTS, length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 64, (texts, length), generator=generator)
    return torch.randn(texts, length, D_MODEL, generator=generator), tokens


def positions(tokens):
    return Positions(lambda q, k: (q, k), None, tokens=tokens)


def network(part, e, x):
    """Expert e of stacked weights on one token's vector."""

    def linear(proj, x):
        out = proj.weight[e] @ x
        return out if proj.bias is None else out + proj.bias.weight.view(len(proj.weight), -1)[e]

    inner = linear(part.in_proj, x)
    return linear(
        part.out_proj, F.silu(linear(part.gate_proj, x)) * inner if hasattr(part, "gate_proj") else F.silu(inner)
    )


def shared(module, x, where):
    if module.shared is None:
        return 0.0
    out = module.shared(x, where)
    return out if module.shared_gate is None else out / (1 + torch.exp(-(x @ module.shared_gate.weight.T)))


def chosen_experts(module, x, earlier, layer):
    """[(expert, weight)] of one token, whose text so far, itself included, is `earlier`; and all scores."""
    router, n = module.router, module.n_experts
    if not hasattr(router, "proj"):
        words = spread(earlier[-1:], n, layer)[0]
        order = sorted(range(n), key=lambda e: -((int(words[e]) >> 40) & 0xFFFFFF))
        return [(e, 1 / router.k) for e in order[: router.k]], None, None
    h = router.proj.weight @ x
    if router.noise_proj is not None and module.training:
        z = normal(spread(read_so_far(earlier)[-1:], n, layer))[0]
        h = h + z * torch.log1p(torch.exp(router.noise_proj.weight @ x))
    s = torch.special.expit(h) if router.sigmoid else torch.exp(h) / torch.exp(h).sum()
    value = {e: s[e].item() + (0.0 if router.bias is None else router.bias[e].item()) for e in range(n)}
    if (g := router.groups) is not None:
        size = n // g.n
        members = [range(i * size, (i + 1) * size) for i in range(g.n)]
        judged = [sum(sorted((value[e] for e in m), reverse=True)[: g.best]) for m in members]
        allowed = sorted(range(g.n), key=lambda i: -judged[i])[: g.k]
        value = {e: value[e] for i in allowed for e in members[i]}
    best = sorted(value, key=lambda e: -value[e])[: router.k]
    total = sum(s[e] for e in best) if router.normalise else 1.0
    return [(e, router.scale * s[e] / total) for e in best], s, h


def slow(module, x, tokens, layer=1):
    """Token by token; the outputs, what each token chose (dropped ones too), the scores before and after softmax."""
    out, chosen, scores, logits = torch.zeros_like(x), [], [], []
    capacity = math.inf
    if module.capacity_factor is not None:
        capacity = math.ceil(module.capacity_factor * module.router.k * x.shape[1] / module.n_experts)
    for i, one in enumerate(x):
        taken = [0] * module.n_experts
        for t, vector in enumerate(one):
            picks, s, h = chosen_experts(module, vector, tokens[i, : t + 1], layer)
            total = torch.zeros(x.shape[-1])
            for e, weight in picks:
                if taken[e] < capacity:
                    total = total + weight * network(module.experts, e, vector)
                taken[e] += 1
            out = out.index_put((torch.tensor(i), torch.tensor(t)), total)
            chosen.append([e for e, _ in picks]), scores.append(s), logits.append(h)
    return out + shared(module, x, positions(tokens)), chosen, scores, logits


def slow_losses(chosen, scores, logits, balance, n_experts, texts, length):
    """The formulas of balance.py, sum by sum."""
    total = torch.zeros(())
    spans = (
        [range(texts * length)] if balance.whole_batch else [range(i * length, (i + 1) * length) for i in range(texts)]
    )
    chances = [s / s.sum() for s in scores]
    for span in spans:
        k = len(chosen[0])
        f = [n_experts / (k * len(span)) * sum(e in chosen[t] for t in span) for e in range(n_experts)]
        p = [sum(chances[t][e] for t in span) / len(span) for e in range(n_experts)]
        total = total + balance.balance / len(spans) * sum(a * b for a, b in zip(f, p, strict=True))
        size = n_experts // balance.n_groups
        for d in range(balance.n_groups):
            own = range(d * size, (d + 1) * size)
            total = total + balance.device / len(spans) * (sum(f[e] for e in own) / size) * sum(p[e] for e in own)
    z = sum(torch.log(torch.exp(h).sum()) ** 2 for h in logits) / len(logits)
    return total + balance.router_z * z


def gradients(module, y, x, extra=None):
    for p in module.parameters():
        p.grad = None
    loss = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum()
    (loss if extra is None else loss + extra).backward()
    found = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return found | {"x": x.grad.clone()}


def assert_same_gradients(fast, slowly):
    assert fast.keys() == slowly.keys()
    for name, gradient in fast.items():
        other = slowly[name]
        if gradient is None or other is None:
            assert gradient is other or not (other if gradient is None else gradient).any(), name
        else:
            torch.testing.assert_close(
                gradient, other, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def both_ways(module, tokens, x, balance=None):
    """Outputs and gradients, fast and slow."""
    results = []
    for how in ("fast", "slow"):
        given = x.clone().requires_grad_()
        if how == "fast":
            module.extra_loss = None
            y, extra = module(given, positions(tokens)), module.extra_loss
        else:
            y, chosen, scores, logits = slow(module, given, tokens)
            extra = None
            if balance is not None and balance.on and module.training:
                extra = slow_losses(chosen, scores, logits, balance, module.n_experts, *x.shape[:2])
        results.append((y.detach(), gradients(module, y, given, extra), extra))
    return results


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


BALANCES = {
    "switch": {"balance_loss": 0.3, "k": 1, "normalise": False},
    "top_2_over_texts": {"balance_loss": 0.3},
    "top_2_over_the_batch": {"balance_loss": 0.3, "balance_over": "batch"},
    "devices": {"balance_loss": None, "device_loss": 0.7, "groups": 4},
    "devices_over_the_batch": {"device_loss": 0.7, "groups": 2, "balance_over": "batch"},
    "router_z": {"balance_loss": None, "balance_over": None, "router_z_loss": 0.2},
    "all_with_sigmoid": {
        "balance_loss": 0.3,
        "device_loss": 0.7,
        "groups": 4,
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


def test_an_even_load_costs_the_weight_itself():
    experts = torch.tensor([[0, 1], [2, 3]]).view(1, 1, 2, 2)
    even = ffn.routing.Choice(
        experts, torch.ones(1, 1, 2, 2), None, torch.full((1, 1, 2, 4), 0.25), torch.zeros(1, 1, 2, 4)
    )
    assert losses(even, Balance(0.3, 0.7, 0.0, False, 2)).tolist() == pytest.approx([1.0])
    assert losses(even, Balance(0.0, 0.0, 0.2, False, 2)).tolist() == pytest.approx([0.2 * math.log(4) ** 2])


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
    choice = module.choose(module.texts(x), tokens)
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
    chosen = set(module.choose(module.texts(x), tokens).experts.flatten().tolist())
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
    load, dropped = module.load(module.texts(x), tokens)
    assert load.tolist() == [TEXTS * min(LENGTH, max(1, round(factor * LENGTH / 8)))] * 8
    assert int(dropped) == 0


def test_hashed_numbers_are_spread_and_depend_on_the_text_alone():
    words = spread(torch.arange(4000), 8, 3)
    drawn = normal(words)
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float((drawn[:, 0] * drawn[:, 1]).mean())) < 0.06
    # the first outputs of SplitMix64 with seed 0, of its authors' C code
    seeds = torch.tensor([1, 2])
    assert [int(word) % 2**64 for word in mix(seeds)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    _, tokens = text()
    assert torch.equal(read_so_far(tokens)[1:2], read_so_far(tokens[1:2]))
    changed = tokens.clone()
    changed[:, 6] += 1
    same = read_so_far(changed) == read_so_far(tokens)
    assert same[:, :6].all()
    assert not same[:, 6:].any()
    by_hash = made("hash").eval()
    chosen = by_hash.choose(torch.zeros(1, 1, 4000, D_MODEL), torch.arange(4000)[None]).experts
    counts = torch.bincount(chosen.flatten(), minlength=8)
    assert counts.sum() == 8000
    assert float((counts - 1000).abs().max()) < 130  # four standard deviations


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
