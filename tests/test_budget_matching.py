"""Sizes that make two models cost the same, held on the models themselves; the rule of the reference; what is refused."""

import copy
import itertools
import json
from functools import cache

import pytest
import torch
from tiny import ALIKE, options
from torch.utils.flop_counter import FlopCounterMode
from variants import option

from lmablate.budget import COSTS, around, forward_products, keys_read, kv_bytes_per_token, meet
from lmablate.budget.flops import spans
from lmablate.budget.search import Missed
from lmablate.config import compose
from lmablate.config.budget_matching import reference_overrides
from lmablate.config.composition import _composed, rewrite, to_request
from lmablate.config.resolve import resolve
from lmablate.core.console import VERBOSE
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.schema.run_config import RunRequest
from lmablate.training import step_time


def built_parameters(cfg):
    """(all, without the tables) of the model that is really built."""
    model = build_model(cfg, device="meta")
    total = sum(p.numel() for p in model.parameters())
    tables = model.embedding.weight.numel() + sum(p.numel() for p in model.head.parameters())
    if model.posemb.is_token_table:
        tables += sum(p.numel() for p in model.posemb.parameters())
    return total, total - tables


def built_flops(cfg):
    """Training FLOPs per token by torch's counter, less those of the pairs that a mask hides."""
    length = cfg.model.context_length
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(cfg, device="meta")(torch.zeros((1, length), dtype=torch.long, device="meta"))
    _, a_key = forward_products(cfg)
    hidden = sum(n * (length - keys_read(length, *span)) for n, span in zip(a_key, spans(cfg), strict=True))
    return 3 * (counter.get_total_flops() / length - 2 * hidden)


BUILT = {"params": lambda cfg: built_parameters(cfg)[0], "flops": built_flops}
PLAIN = ["trainer.precision=fp32", "runtime.device=cpu", "model.n_layers=2"]
GRID = ("activation", "attention", "posemb", "norm")


@cache
def plain_request():
    return to_request(_composed(PLAIN))


def asked(match, **axes):
    """A request of the default size with these options and a budget, as it stands after composing."""
    raw = copy.deepcopy(plain_request())
    for axis, name in axes.items():
        found = option(axis, name)
        raw[axis] = found.get(axis, found)
        raw["model"] |= found.get("model", {})
    raw["choices"] |= {**axes, "budget": match}
    raw["budget"] = {"match": match, "knob": "d_ff", "reference": None}
    return RunRequest.model_validate(raw)


@cache
def reference():
    return compose(PLAIN)


def pairs():
    for a, b in itertools.combinations(GRID, 2):
        yield from ((a, x, b, y) for x in options(a) for y in options(b))


def off(cost, found, wanted):
    return abs(cost(found) / cost(wanted) - 1)


def firsts():
    """Every option with its budgets. FLOPs are traced, so that a budget of them is a slow case for options like another one."""
    found = []
    for axis, word in ((each, name) for each in GRID[:-1] for name in options(each)):
        found.append(pytest.param("params", (axis, word), id=f"params-{axis}-{word}"))
        slow = pytest.mark.slow if word in ALIKE.get(axis, ()) else ()
        found.append(pytest.param("flops", (axis, word), id=f"flops-{axis}-{word}", marks=slow))
    return found


@pytest.mark.parametrize(("match", "first"), firsts())
def test_every_pair_of_options_meets_its_budget(match, first):
    """With every option of the axes that follow in GRID."""
    cost = BUILT[match]
    target = cost(reference())
    for a, x, b, y in pairs():
        if (a, x) == first:
            cfg = resolve(asked(match, **{a: x, b: y}), {}, reference)
            found = cost(cfg)
            assert abs(found / target - 1) <= 0.01, f"{a}={x} {b}={y}: {cfg.solved}"


SHAPES = ("model=small", "trainer.precision=fp32")


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 3.0, 8.0, 16.0, 24.0, 32.0])
def test_ff_ratio_at_ten_million_parameters(ratio, activation):
    """The FFN's dense-equivalent ratio, its weights over 2 d_model^2, stays within 5 %."""
    words = ("budget=params_non_embedding", "budget.knob=d_ff+d_model", f"model.ff_ratio={ratio}")
    cfg = compose([*SHAPES, *words, f"activation={activation}"])
    m, matrices = cfg.model, 3 if activation == "swiglu" else 2
    assert off(lambda c: built_parameters(c)[1], cfg, compose(SHAPES)) <= 0.01
    assert matrices * m.d_ff / m.d_model / 2 == pytest.approx(ratio, rel=0.05)
    assert m.head_dim % 2 == m.d_ff % 2 == m.d_model % 2 == 0
    assert m.n_heads == 6
    assert abs(m.n_heads * m.head_dim - m.d_model) <= m.n_heads


def test_a_finer_width_is_tried_where_a_coarse_one_misses_the_ratio():
    """d_ff=184 meets this budget and lies 5.5 % off the ratio; 186 meets both."""
    cfg = compose([*SHAPES, "budget=params", "budget.knob=d_ff+d_model", "model.ff_ratio=0.5"])
    assert off(BUILT["params"], cfg, compose(SHAPES)) <= 0.01
    assert 3 * cfg.model.d_ff / cfg.model.d_model / 2 == pytest.approx(0.5, rel=0.05)
    assert cfg.model.d_ff % 8


@pytest.mark.parametrize("match", ["none", "params", "flops"])
@pytest.mark.parametrize(
    "ratio", [4, 64, 256, *(pytest.param(between, marks=pytest.mark.slow) for between in (8, 16, 32, 128))]
)
def test_aspect_ratio_at_ten_million_parameters(ratio, match):
    cost = {"params": BUILT["params"], "flops": built_flops}.get(match, lambda c: built_parameters(c)[1])
    cfg = compose([*SHAPES, f"aspect_ratio=r{ratio}", f"budget={match}"])
    assert off(cost, cfg, compose(SHAPES)) <= 0.01
    assert 2**-0.5 <= cfg.model.d_model / cfg.model.n_layers / ratio <= 2**0.5


SWEEPS = [  # head_dim, n_kv_heads and vocabulary sweeps, each with a knob
    (["model.head_dim=16"], "params"),
    (["model.head_dim=64"], "flops"),
    (["model.head_dim=64", "attention=gqa"], "params_non_embedding"),
    (["attention=gqa", "model.n_heads=8", "model.n_kv_heads=4"], "params"),
    (["attention=mqa", "budget.knob=d_model"], "flops"),
    (["attention=mqa", "budget.knob=head_dim"], "kv_cache"),
    (["attention=sliding_window", "attention.window=32", "budget.knob=d_model"], "kv_cache"),
    (["attention=sliding_window", "attention.window=64", "budget.knob=n_layers"], "kv_cache"),
    (["model.n_layers=2", "budget.knob=d_ff+d_model", "budget.reference=[model.n_layers=4]"], "params"),
    (["model.n_layers=8", "budget.knob=d_ff+d_model", "budget.reference=[model.n_layers=4]", "model=small"], "flops"),
    (["tokenizer.vocab_size=1536", "budget.reference=[tokenizer.vocab_size=1024]"], "params"),
    (["tokenizer.vocab_size=512", "budget.reference=[tokenizer.vocab_size=1024]"], "flops"),
    (["tokenizer=bytes", "budget.reference=[tokenizer=bpe]"], "params"),
]


@pytest.mark.parametrize(("words", "match"), SWEEPS, ids=lambda x: " ".join(x) if isinstance(x, list) else x)
def test_sweeps_of_sizes_meet_the_default(words, match):
    cfg = compose(["trainer.precision=fp32", f"budget={match}", *words])
    base = compose(["trainer.precision=fp32", *[word for word in words if word == "model=small"]])
    other = (
        base if "model=small" not in words else compose(["trainer.precision=fp32", "model=small", "model.n_layers=4"])
    )
    cost = COSTS[match]
    assert off(cost, cfg, other) <= 0.01
    assert (
        off(cost, compose([w for w in words if not w.startswith("budget")]), other) > 0.01
    )  # there was something to do
    assert cfg.solved.startswith(f"budget={match}: ")


def test_kv_cache_by_wider_heads():
    """Half the heads of keys and values, each twice as wide."""
    cfg = compose(["attention=gqa", "budget=kv_cache"])
    assert (cfg.model.n_kv_heads, cfg.model.head_dim) == (2, 64)
    assert kv_bytes_per_token(cfg) == kv_bytes_per_token(compose([]))


# --- the reference -----------------------------------------------------------------------------------------------------


def test_the_reference_keeps_the_size_and_drops_what_is_ablated():
    words = ["model=small", "model.d_model=256", "model.n_layers=3", "model.n_heads=8", "tokenizer.vocab_size=2048"]
    changed = [
        "attention=gqa",
        "attention.scale=0.1",
        "+stability.v_norm=null",
        "model.n_kv_heads=2",
        "model.head_dim=16",
        "seed=3",
    ]
    changed += [
        "model.ff_ratio=8",
        "optim.lr=1e-3",
        "budget=params",
        "budget.knob=d_model",
        "norm=layer",
        "~posemb.layout",
    ]
    assert reference_overrides([*words, *changed], None) == words
    assert reference_overrides([*words, *changed], ["norm=layer"]) == [*words, "norm=layer"]
    assert reference_overrides(["model.n_heads=null", "model.head_dim=64"], None) == []


def test_a_run_equal_to_its_reference_stays_as_it_is():
    for match in ("params", "params_non_embedding", "flops", "kv_cache"):
        assert compose([f"budget={match}"]).model == compose([]).model


def test_only_what_is_solved_is_part_of_the_run(monkeypatch):
    from types import SimpleNamespace

    from lmablate.schema.identity import run_id

    data = SimpleNamespace(fingerprint="text", tokenizer_fingerprint="tokens")
    cfg = compose(["attention=mqa", "budget=params"])
    assert cfg.model.d_ff != compose(["attention=mqa"]).model.d_ff
    assert run_id(cfg, data) == run_id(compose(["attention=mqa", f"model.d_ff={cfg.model.d_ff}"]), data)
    assert run_id(compose(["budget=flops"]), data) == run_id(compose([]), data)
    assert cfg.choices["budget"] == "params"


def test_words_of_the_reference_need_no_quotes():
    assert rewrite(["budget.reference=[activation=gelu, norm=layer]"]) == [
        "budget.reference=['activation=gelu','norm=layer']"
    ]
    assert rewrite(['budget.reference=["a=[1,2]"]']) == ['budget.reference=["a=[1,2]"]']
    cfg = compose(["budget=params", "budget.reference=[activation=gelu,model.gated_scale=null]"])
    assert "activation=gelu" in cfg.solved


def test_solved_widths_are_multiples_of_eight_where_that_is_near_enough():
    assert compose(["attention=mqa", "budget=params"]).model.d_ff % 8 == 0
    narrow = compose(["model.d_model=24", "model.n_layers=1", "attention=mqa", "budget=params_non_embedding"])
    assert narrow.model.d_ff % 8 != 0


# --- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    ("budget.knob=d_model",): "budget.knob=d_model has no effect where nothing is matched",
    ("budget.reference=[norm=layer]",): "has no effect where nothing is matched",
    ("budget=kv_cache", "budget.knob=d_ff", "attention=gqa"): "use budget.knob=d_model or n_layers or head_dim",
    ("budget=params", "model.ff_ratio=8"): "model.ff_ratio=8 has no effect where budget.knob=d_ff solves it",
    ("budget=params", "model.gated_scale=1.0"): "model.gated_scale=1.0 has no effect",
    ("budget=params", "model.d_ff=100", "budget.knob=d_ff+d_model"): "model.d_ff=100 has no effect",
    ("budget=kv_cache", "model.head_dim=16"): "model.head_dim=16 has no effect",
    ("budget=params", "aspect_ratio=r8", "budget.knob=d_model"): "solves model.d_model and model.n_layers",
    ("budget=params", "aspect_ratio=r8", "model.n_layers=3"): "aspect_ratio=r8 solves model.n_layers",
    ("budget=wall_time", "budget.knob=d_ff"): "budget=wall_time solves trainer.steps",
    ("budget=params", "budget.knob=null"): "needs a budget.knob",
    ("budget=params", "budget.knob=n_heads"): "budget.knob=n_heads",
    ("budget=params", "budget.reference=[norm=nothing]"): "the reference of the budget, norm=nothing: .*no such option",
    ("budget=params", "budget.knob=d_model", "tokenizer=pretrained", "tokenizer.path=x.json"): "size of the vocabulary",
    ("budget=flops", "tokenizer=pretrained", "tokenizer.path=x.json", "budget.reference=[tokenizer=bpe]"): "size of the voc",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_words_without_effect_are_refused(words):
    with pytest.raises(ConfigError, match=REFUSED[words]):
        compose(list(words))


def test_a_missed_budget_shows_the_nearest_two():
    with pytest.raises(ConfigError) as error:
        compose(["attention=mqa", "budget=params", "budget.knob=n_layers"])
    near = [compose(["attention=mqa", f"model.n_layers={n}"]) for n in (4, 5)]
    below, above = (COSTS["params"](cfg) for cfg in near)
    target = COSTS["params"](compose([]))
    assert below < target < above
    for n, cost in ((4, below), (5, above)):
        assert f"n_layers={n} with {cost:,} ({100 * (cost / target - 1):+.1f} %)" in str(error.value)
    assert "budget.knob=d_ff" in str(error.value)


def test_a_budget_that_is_spent_already_says_so():
    words = ["model.d_model=32", "model.n_heads=4", "posemb=transformer_xl"]
    with pytest.raises(ConfigError, match=r"the nearest is already d_ff=2 with [\d,]+ \(\+"):
        compose([*words, "model.d_ff=8", "budget=params_non_embedding"])


def test_the_search_brackets_its_target():
    assert around(100, lambda n: n, 8, 50) == [96, 104]
    assert around(96, lambda n: n, 8, 1) == [96, 104]
    assert around(5, lambda n: n, 8, 800) == [8]
    assert meet(1000, lambda n: 3 * n, 8) == 336  # 0.8 % by a multiple of 8
    assert meet(100, lambda n: 3 * n + 1, 8, (8, 1)) == 33
    with pytest.raises(Missed) as missed:
        meet(100, lambda n: 30 * n, 8)
    assert missed.value.nearest == [2, 4]


# --- equal seconds -----------------------------------------------------------------------------------------------------


def test_wall_time_gives_the_steps_of_equal_seconds(monkeypatch):
    speed = {"mha": 0.030, "mqa": 0.020}
    monkeypatch.setattr("lmablate.config.budget_matching.seconds_per_step", lambda cfg: speed[cfg.choices["attention"]])
    cfg = compose(["attention=mqa", "budget=wall_time", "trainer.steps=100"])
    assert cfg.trainer.steps == 150
    assert cfg.schedule.warmup_steps == round(0.05 * 150)
    assert cfg.model == compose(["attention=mqa"]).model
    assert "150 of 20.0 ms take the 3.0 s that 100 steps of 30.0 ms" in cfg.solved
    back = compose(["budget=wall_time", "trainer.steps=100", "budget.reference=[attention=mqa]"])
    assert back.trainer.steps == round(100 * 2 / 3)
    both = compose(["attention=mqa", "aspect_ratio=r8", "budget=wall_time", "trainer.steps=100"])
    assert (both.trainer.steps, both.model.n_layers) == (
        150,
        compose(["attention=mqa", "aspect_ratio=r8"]).model.n_layers,
    )


def test_a_step_is_timed_once_for_a_shape(monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(step_time, "_measure", lambda cfg: measured.append(cfg) or 0.01 * len(measured))
    words = [f"runtime.cache_dir={tmp_path}", "trainer.precision=fp32"]
    first = step_time.seconds_per_step(compose(words))
    for same in ("seed=3", "optim.lr=1e-3", "trainer.steps=7", "runtime.log_every=3"):
        assert step_time.seconds_per_step(compose([*words, same])) == first
    others = ("model.d_ff=64", "norm=layer", "trainer.batch_size=3", "runtime.threads=2", "tokenizer.vocab_size=512")
    assert len({step_time.seconds_per_step(compose([*words, other])) for other in others}) == len(others)
    assert len(measured) == 1 + len(others)
    (tmp_path / "timings.json").write_text("{half")
    assert step_time.seconds_per_step(compose(words)) not in (None, first)
    assert len(json.loads((tmp_path / "timings.json").read_text())) == 1


def test_a_step_that_is_really_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(step_time, "BUDGET_SECONDS", 0.05)
    small = ["model.d_model=16", "model.n_heads=2", "model.n_layers=1", "trainer.batch_size=2", "runtime.device=cpu"]
    threads = torch.get_num_threads()
    assert 0 < step_time.seconds_per_step(compose([*small, f"runtime.cache_dir={tmp_path}"])) < 60
    assert torch.get_num_threads() == threads
    assert (tmp_path / "timings.json").is_file()


def test_commands_say_what_was_solved(capsys, tmp_path, caplog, monkeypatch):
    from corpus import QUICK, write_corpus

    from lmablate.cli.front_door import main as front_door
    from lmablate.launcher import jobs
    from lmablate.plan import plan

    jobs._logged.clear()
    monkeypatch.setenv(VERBOSE, "1")
    text = write_corpus(tmp_path / "text")
    words = ["-m", "attention=mqa", "seed=0,1", "budget=flops", *QUICK, f"data.paths={text}/*.txt"]
    with caplog.at_level("INFO", logger="lmablate"):
        assert front_door("plan", plan, [*words, f"results_dir={tmp_path / 'results'}"]) == 0
    said = [record.message for record in caplog.records if "budget=flops" in record.message]
    assert len(said) == 1
    assert "d_ff=" in said[0] and "of the reference (attention=mha" in said[0]
    printed = capsys.readouterr().out
    assert "KV B/token" in printed
    assert "KV bytes per token: keys and values in bf16" in printed
