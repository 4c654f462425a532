"""The benchmarks' arithmetic, shapes and report; no timing is held here."""

import statistics
import sys

import numpy as np
import pytest
import scipy.stats

from lmablate.core.paths import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import bars, conclusions, measure, ours, peers, report, tables
from benchmarks.contenders import contenders
from benchmarks.gang import equality
from benchmarks.shapes import SHAPES, Tokens, solve_width


def raw(name, seconds, *, library="peer", precision="fp32", compiled=False):
    return {
        "name": name, "library": library, "precision": precision, "compiled": compiled, "best": False, "n_params": 800_000,
        "times": seconds,
    }  # fmt: skip


def result(config="C1", **rows):
    made = [raw("lmablate, default", rows.pop("ours"), library="lmablate", precision="bf16")]
    made += [raw(name.replace("_", " "), seconds) for name, seconds in rows.items()]
    return {
        "config": config,
        "note": "made up",
        "tokens_per_step": 768,
        "n_params": 800_000,
        "flops_per_step": 2e9,
        "machine": {
            "processor": "a processor", "cores": 2, "load": 0.1, "date": "2026-01-01", "python": "3.12.1",
            "versions": {"torch": "9.9"},
        },
        "peak": {"before": {"fp32": 1e11, "bf16": 2e11}, "after": {"fp32": 1.3e11, "bf16": 2e11}},
        "rows": made,
        "missing": {"nanoGPT, fp32 eager": "nanoGPT is not installed"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "XTransformers", "LitGPT"])
@pytest.mark.parametrize("name", ["C0", "C1", "C2", "C3", "C4", "W512"])
def test_peers_have_our_parameters(kind, name):
    peer = getattr(peers, kind)
    pytest.importorskip(peer.package)
    import torch

    shape = SHAPES[name]
    target = ours.n_params(shape)
    width = peer.solve(shape, target)
    with torch.device("meta"):
        count = sum(p.numel() for p in peer.build(shape, width).parameters())
    assert abs(count / target - 1) <= 0.01
    assert abs(width / shape.d_model - (8 / 3 if peer.swiglu else 4)) < 0.5  # the FFN is still what its library builds


def test_the_count_we_match_is_that_of_the_model():
    shape = SHAPES["C0"]
    runner = ours.Ours(shape, Tokens(shape.vocab), precision="fp32", compiled=False)
    assert runner.n_params == ours.n_params(shape)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_peer_trains_on_the_rows_that_we_train_on(kind):
    pytest.importorskip("transformers")
    import torch

    shape = SHAPES["C0"]
    tokens = Tokens(shape.vocab)
    runner = ours.Ours(shape, tokens, precision="fp32", compiled=False)
    peer = getattr(peers, kind)(shape, tokens, runner.n_params, precision="fp32", compiled=False)
    assert torch.equal(peer.rows(3), runner.trainer.rows(3))
    before = [p.detach().clone() for p in peer.model.parameters()]
    peer.step(0)
    assert all(not torch.equal(a, b) for a, b in zip(before, peer.model.parameters(), strict=True))


def test_a_contender_of_ours_takes_an_optimizer_step():
    shape = SHAPES["C0"]
    runner = ours.Ours(shape, Tokens(shape.vocab), precision="fp32", compiled=False)
    before = [p.detach().clone() for p in runner.trainer.model.parameters()]
    runner.step(5)
    moved = [
        float((a - b).detach().abs().max()) for a, b in zip(before, runner.trainer.model.parameters(), strict=True)
    ]
    assert min(moved) > 0


def test_names_of_contenders_are_distinct_and_ours_comes_first():
    names = [one.name for one in contenders()]
    assert len(set(names)) == len(names)
    assert names[0] == tables.OURS
    assert bars.COMPILED in names
    assert not any(one.compiled for one in contenders(compiled=False))


def test_every_bar_asks_for_rows_that_exist():
    names = {one.name for one in contenders()}
    for needed in bars.PLAIN.values():
        assert {f"{library}, fp32 eager" for library in needed} <= names


def test_the_interval_of_a_ratio_is_known_where_rounds_agree():
    assert measure.ratio([4.0, 8.0, 6.0], [2.0, 4.0, 3.0])[0] == 2.0
    assert measure.ratio([3.0] * 9, [2.0] * 9) == (1.5, 1.5, 1.5)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        disturbance = rng.lognormal(0, 0.3, 40)  # of a round, met by both
        a, b = 2 * disturbance * rng.lognormal(0, 0.1, 40), disturbance * rng.lognormal(0, 0.1, 40)
        _, low, high = measure.ratio(a, b, draws=400)
        hits += low <= 2 <= high
    assert 0.90 <= hits / 200 <= 1.0


def test_rounds_are_drawn_together():
    """A disturbance that both met leaves the ratio exact; drawn apart it would not."""
    disturbance = np.random.default_rng(0).lognormal(0, 1, 51)
    middle, low, high = measure.ratio(2 * disturbance, disturbance)
    assert middle == pytest.approx(2) and low == pytest.approx(2) and high == pytest.approx(2)


def test_a_ratio_needs_equal_rounds():
    with pytest.raises(ValueError, match="as many steps"):
        measure.ratio([1.0], [1.0, 2.0])


def test_steps_come_in_turn_and_the_warm_up_is_left_out():
    seen = []
    steps = {name: lambda number, name=name: seen.append((number, name)) or float(number) for name in "abc"}
    times = measure.interleave(steps, rounds=3, warmup=2)
    assert times == {name: [2.0, 3.0, 4.0] for name in "abc"}
    for number in range(5):
        assert sorted(name for turn, name in seen if turn == number) == ["a", "b", "c"]
    assert [name for turn, name in seen if turn in (0, 1)] == ["a", "b", "c", "b", "c", "a"]


def test_a_width_is_solved_to_the_count():
    assert solve_width(3 * 128 * 344 + 500, lambda width: 3 * 128 * width + 500, guess=340) == 344


def test_bars_are_met_missed_or_too_close():
    assert bars.Bar("x", 2.0, (2.2, 2.1, 2.3)).verdict == "met"
    assert bars.Bar("x", 2.0, (1.5, 1.4, 1.6)).verdict == "**missed by 25 %**"
    assert bars.Bar("x", 2.0, (2.05, 1.9, 2.2)).verdict == "met, within noise"
    assert bars.Bar("x", 2.0, (1.95, 1.8, 2.1)).verdict == "missed, within noise"
    assert bars.Bar("x", 2.0, None).verdict == "not measured"
    assert bars.Bar("x", 700, (600.0, 590.0, 610.0), at_least=False).verdict == "met"
    assert bars.Bar("x", 700, (770.0, 760.0, 780.0), at_least=False).verdict == "**missed by 10 %**"


def test_the_bar_is_against_the_best_peer():
    made = result(ours=[1.0] * 5, slow=[3.0] * 5, fast=[1.5] * 5)
    assert bars.against(made, tables.OURS, "fp32", compiled=False) == (1.5, 1.5, 1.5)
    assert bars.against(made, tables.OURS, "fp32", compiled=True) is None


def test_the_page_shows_what_was_measured_and_says_what_was_not():
    singles = {"C1": result(ours=[0.04] * 5, **{"transformers_GPT-2,_fp32_eager": [0.1] * 5})}
    page = report.page(singles, {}, None, None)
    assert "| lmablate, default | 800,000 | 40.00 [40.00, 40.00] | 19,200 | 1.00 [1.00, 1.00] | 25 % [25, 25] |" in page
    assert (
        "| C1: our default in a short run (eager) over transformers GPT-2, fp32 eager | at least 2.2 | 2.5 | met |"
        in page
    )
    assert (
        "| C1: our default in a short run (eager) over litgpt, fp32 eager | at least 1.6 | not measured | not measured |"
        in page
    )
    assert "**The peak moved by 30 %" in page
    assert "Not measured: nanoGPT, fp32 eager (nanoGPT is not installed)." in page
    assert "a processor, 2026-01-01: Python 3.12.1, torch 9.9." in page
    for name in ("G1", "G2"):
        assert f"### {name}\n\n{SHAPES[name].note}: not measured." in page


def test_a_conclusion_takes_as_many_runs_as_the_t_interval_says():
    noise = [0.0, 0.02, -0.02, 0.01, -0.01, 0.03, -0.03, 0.0]
    found = {
        "rope": {seed: 2.0 + shared for seed, shared in enumerate(noise)},
        "none": {seed: 2.1 + shared + 0.002 * (-1) ** seed for seed, shared in enumerate(noise)},
    }
    paired, apart = (conclusions.conclude(found, 160.0, paired=paired) for paired in (True, False))
    assert paired["sd"] == pytest.approx(0.002 * (8 / 7) ** 0.5)  # the shared part cancels
    assert apart["sd"] == pytest.approx((2 * statistics.variance(noise) + 0.002**2 * 8 / 7) ** 0.5, rel=0.05)
    for way in (paired, apart):
        n, df = way["runs_an_arm"], (lambda n, way=way: n - 1 if way["paired"] else 2 * n - 2)
        width = lambda n: scipy.stats.t.ppf(0.975, df(n)) * way["sd"] / n**0.5  # noqa: B023, E731
        assert width(n) <= way["half_width"] < width(n - 1)
        assert way["conclusions_an_hour"] == pytest.approx(3600 / (2 * n * 10.0))
    ways = {"ours": paired, "plain": apart}
    measured = {"threads": 2, "width": conclusions.WIDTH, "questions": {"short": {"what": "so", "ways": ways}}}
    page = report.page({}, {}, None, None, conclusions=measured)
    gain = apart["runs_an_arm"] / paired["runs_an_arm"]
    assert f"| Conclusions an hour over plain practice: short | at least 5 | {gain:.3g} |" in page


def test_the_cost_of_diagnostics_is_a_ratio_of_processor_seconds():
    one = {
        "config": "C1",
        "option": "diagnostics=standard",
        "every": 50,
        "cost": [1.02, 0.99, 1.03],
        "machine": {"load": 2},
    }
    one["tokens_per_second"] = {"with": 19000.0, "without": 19400.0}
    page = report.page({}, {}, None, None, diagnostics={"results": [one]})
    assert "every 50 steps: 1.020 [0.990, 1.030] (19,000 tokens/s with, 19,400 without; load 2)" in page
    assert "## Diagnostics" not in report.page({}, {}, None, None)


def test_of_several_budgets_the_one_that_needs_most_seeds_decides():
    quiet = {arm: {seed: 2.0 + 0.001 * seed * (arm == "rope") for seed in range(8)} for arm in conclusions.ARMS}
    loud = {arm: {seed: 2.0 + 0.01 * seed * (arm == "rope") for seed in range(8)} for arm in conclusions.ARMS}
    way = conclusions.answer({100: quiet, 200: loud}, 160.0, paired=True)
    assert way["runs_an_arm"] == conclusions.conclude(loud, 160.0, paired=True)["runs_an_arm"]
    assert way["wall_seconds_a_run"] == 10.0  # of a seed, all budgets together


def test_the_gang_and_the_sweep_have_their_tables():
    about = result(ours=[1.0])["machine"]
    one = {
        "config": "C0",
        "tokens_per_step": 64,
        "rows": [
            {"name": "solo eager", "size": 1, "times": [1.0] * 5},
            {"name": "K=8", "size": 8, "times": [2.0] * 5, "bytes_per_member": 5e6},
        ],
        "equality": [{"steps": 1, "bitwise": True, "relative": 0.0, "ulp": 0.0}],
        "plans": [{"compiled": False, "size": 8, "why": "faster", "over_solo": [4.0, 4.0, 4.0]}],
    }
    ways = (("lmablate, defaults", 60.0, 0.04), ("shell loop over a script with transformers Llama", 180.0, 0.3))
    sweep = {
        "machine": about,
        "tokens": 200_000,
        "threads": 2,
        "rows": [
            {
                "way": way, "runs": 16, "wall_seconds": wall, "processor_seconds": wall, "outside_share": share,
                "start_share": share, "mean_val_loss": 2.0,
            }
            for way, wall, share in ways
        ],
    }  # fmt: skip
    page = report.page({}, {}, {"machine": about, "results": [one]}, sweep)
    assert "| K=8 | 256 | 4.00 [4.00, 4.00] | not measured | 5 |" in page
    assert "| C0: gang of 8 over solo eager | at least 3.5 | 4 | met |" in page
    assert "| C0: the planner's K = 8 over solo, both eager | at least 0.95 | 4 | met |" in page
    assert "weights of members against solo runs: equal to the bit" in page
    assert "| lmablate, defaults | 16 | 60 | 60 | 960 | 4 % | 4.0 % | 2.000 |" in page
    assert (
        "16-job sweep, graphs new: runs an hour over shell loop over a script with transformers Llama | at least 2.5 | 3 | met |"
        in page
    )


def test_the_figure_is_drawn(tmp_path):
    from benchmarks.figure import draw, has_something

    singles = {"C1": result(ours=[0.04] * 5, **{"transformers_GPT-2,_fp32_eager": [0.1] * 5})}
    assert has_something(singles)
    draw(singles, None, tmp_path / "figure")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert (
        "transformers GPT-2" in (tmp_path / "figure.svg").read_text() or (tmp_path / "figure.svg").stat().st_size > 1000
    )


def test_equality_is_told_from_difference(monkeypatch):
    shape = SHAPES["C0"]
    tokens = Tokens(shape.vocab)
    assert equality(shape, tokens, 1, size=2)["relative"] < 1e-3
    from lmablate.training.gang import MemberStack

    plain = MemberStack.backward
    monkeypatch.setattr(
        MemberStack, "backward", lambda self, rows: plain(self, [row.flip(0).roll(1, 1) for row in rows])
    )
    wrong = equality(shape, tokens, 1, size=2)
    assert not wrong["bitwise"] and wrong["ulp"] > 10
