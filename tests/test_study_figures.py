"""The figures of the stored studies: they draw what the runs say, and the published numbers are those of their sources."""

import importlib
import math
import random

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from lmablate.analysis import _studies, learning_rate
from lmablate.analysis.noise_floor import near_arms, spread
from lmablate.core.paths import SWEEPS_DIR
from lmablate.schema.training_config import LrRule

STUDIES = {
    path.stem: yaml.safe_load(path.read_text())["sweep"]
    for path in sorted(SWEEPS_DIR.glob("*.yaml"))
    if "sweeper: study" in path.read_text()
}
T_3 = 3.182446  # 0.975 quantile of Student's t with 3 degrees of freedom, from the tables
SIZES = {
    "model.head_dim": 32,
    "model.d_model": 128,
    "model.n_layers": 4,
    "model.d_ff": 512,
    "kv_bytes_per_token": 1024,
    "model.vocab_size": 512,
    "model.context_length": 128,
    "trainer.batch_size": 16,
    "tokens": 1_000_000,
    "tokens_per_second": 1000,
}


def arms_of(sweep: str) -> list[str]:
    node, names = STUDIES[sweep], list(STUDIES[sweep]["arms"])
    for key, values in (node.get("cross") or {}).items():
        names = [f"{name}, {key.rpartition('.')[2]} {value}" for name in names for value in values]
    return names


def made_up(sweep: str, seeds: int = 4, diverged: str = "") -> pd.DataFrame:
    """Runs of a study as load_runs and study_runs would give them: seed effects shared by the arms, and a little noise."""
    rng = random.Random(0)
    shared = [rng.gauss(0, 0.02) for _ in range(seeds)]
    rows = []
    for i, arm in enumerate(arms_of(sweep)):
        sizes = {key: value * 2**i for key, value in SIZES.items()} | {"model.d_model": 128}
        common = {"sweep": sweep, "arm": arm, "numerics": "cpu fp32 eager", **sizes}
        status = "diverged" if arm == diverged else "completed"
        for stage, n in (("tune", 1), ("evaluate", seeds), ("evaluate_shared", seeds)):
            for seed in range(n):
                for lr in (1e-3, 2e-3, 4e-3) if stage == "tune" else (2e-3,):
                    loss = 3 + 0.03 * i + shared[seed] + rng.gauss(0, 0.002) + 0.1 * math.log(lr / 2e-3) ** 2
                    row = {"status": status, "val_loss": loss if status == "completed" else math.nan, "optim.lr": lr}
                    row |= {
                        "diagnostics.early_max_attention_logit": 100.0 * 2**i,
                        "run_id": f"{arm} {stage} {seed} {lr}",
                    }
                    row |= {"init_val_loss": 6.0, "train_loss": row["val_loss"], "val_bpb": row["val_loss"] / 2}
                    rows.append({**common, **row, "stage": stage, "init_seed": seed, "data_seed": seed})
    return pd.DataFrame(rows)


def words(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("sweep", STUDIES)
def test_every_study_has_a_figure_of_its_runs_and_of_published_numbers(sweep):
    module = importlib.import_module(f"lmablate.analysis.{sweep}")
    shown = words(module.figure(made_up(sweep)))
    assert STUDIES[sweep]["question"].split("?")[0] in shown.replace("\n", " ")  # a long one is wrapped
    for series in _studies.published(sweep):
        assert series["label"] in shown
        assert series["grade"] in ("V1", "V2", "V3", "R")
        assert "arXiv" in series["source"] or "CS336" in series["source"]


@pytest.mark.parametrize("sweep", STUDIES)
def test_without_runs_the_figure_says_how_to_get_them(sweep):
    module = importlib.import_module(f"lmablate.analysis.{sweep}")
    assert f"sweeps={sweep}" in words(module.figure(made_up(sweep).iloc[:0]))


@pytest.mark.parametrize("sweep", [name for name in STUDIES if name not in ("noise_floor",)])
def test_an_arm_that_diverged_is_drawn_as_such(sweep):
    arm = arms_of(sweep)[-1]
    shown = words(importlib.import_module(f"lmablate.analysis.{sweep}").figure(made_up(sweep, diverged=arm)))
    assert f"{arm} (4 of 4 diverged)" in shown or f"no seed completed ({arm})" in shown


def test_a_run_that_learned_nothing_is_no_pair_and_is_counted():
    runs = made_up("norm_position").assign(**{"data.unigram_val_loss": 6.0})
    own = runs[runs["stage"] == "evaluate"].copy()
    arm, base = arms_of("norm_position")[2], arms_of("norm_position")[0]
    own.loc[(own["arm"] == arm) & (own["init_seed"] == 1), "val_loss"] = 5.99
    effect = _studies.effects(own, base)[arm]
    assert effect.n == 3 and effect.lost == "1 of 4 lost" and abs(effect.mean) < 5
    runs.loc[own.index, "val_loss"] = own["val_loss"]
    module = importlib.import_module("lmablate.analysis.norm_position")
    assert f"{arm} (1 of 4 lost)" in words(module.figure(runs))


def test_effects_are_paired_and_in_per_cent():
    runs = _studies.stage(made_up("activation"), "evaluate")
    found = _studies.effects(runs, "gelu")["swiglu"]
    a, b = (runs[runs["arm"] == arm].sort_values("init_seed")["val_loss"].to_numpy() for arm in ("gelu", "swiglu"))
    change = 100 * (b - a) / a.mean()
    half = T_3 * change.std(ddof=1) / 2
    assert found.mean == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half))
    assert found.n == 4


def test_within_seed_intervals_follow_the_published_formula():
    """Against the normalised scores of Morey 2008, computed on the table."""
    runs = _studies.stage(made_up("aspect_ratio"), "evaluate")
    table = runs.pivot(index="init_seed", columns="arm", values="val_loss")
    k = table.shape[1]
    normed = table.sub(table.mean(axis=1), axis=0) + table.to_numpy().mean()
    best = table.mean().min()
    found = _studies.increases(runs)
    for arm in table:
        half = T_3 * normed[arm].std() / 2 * math.sqrt(k / (k - 1))
        assert found[arm].mean == pytest.approx(100 * (table[arm].mean() - best) / best, abs=1e-9)
        assert found[arm].high - found[arm].mean == pytest.approx(100 * half / best)


def test_published_changes_are_those_of_the_printed_losses():
    losses = {
        "activation": [
            {"gelu": 1.679, "silu": 1.683, "geglu": 1.633, "swiglu": 1.636},
            {"gelu": 1.838, "silu": 1.847, "geglu": 1.792, "swiglu": 1.789},
        ],
        "norm_position": [{"pre": 1.645, "post": 1.68}, {"pre": 1.4364, "post": 1.4449}],
    }
    for sweep, tables in losses.items():
        for table, series in zip(tables, _studies.published(sweep), strict=True):
            base = next(iter(table.values()))
            assert series["values"] == pytest.approx(
                {arm: 100 * (loss / base - 1) for arm, loss in table.items() if loss != base}, abs=0.006
            )


def test_variance_components_agree_with_the_draws():
    """Ten thousand numbers from a known two-way layout."""
    rng = random.Random(1)
    rows, columns = ([rng.gauss(0, s) for _ in range(100)] for s in (0.03, 0.02))
    runs = pd.DataFrame(
        {"status": "completed", "init_seed": i, "data_seed": j, "val_loss": 3 + a + b + rng.gauss(0, 0.01)}
        for i, a in enumerate(rows)
        for j, b in enumerate(columns)
    )
    found = spread(runs)
    assert found.init == pytest.approx(0.03, rel=0.2)
    assert found.data == pytest.approx(0.02, rel=0.2)
    assert found.both == pytest.approx(0.01, rel=0.03)
    assert found.total == pytest.approx(math.sqrt(found.init**2 + found.data**2 + found.both**2))
    assert spread(runs[runs["init_seed"] == 0]) is None


def test_near_arms_are_compared_pair_by_pair():
    losses = {"base": [3.0, 3.1, 2.9], "layer": [3.03, 3.13, 2.93], "gelu": [3.0, 3.1, 2.9], "silu": [3.03, 3.07, 2.93]}
    runs = pd.DataFrame(
        {"status": "completed", "arm": arm, "init_seed": seed, "data_seed": seed, "val_loss": loss}
        for arm, own in losses.items()
        for seed, loss in enumerate(own)
    )
    assert near_arms(runs) == pytest.approx(
        {"layer against base": 0.0, "silu against gelu": 100 * 0.034641 / 3}, abs=1e-4
    )


def test_the_rule_of_the_learning_rate_is_found_in_runs_that_follow_one():
    rng, rows = random.Random(1), []
    truth = LrRule(base=0.02, **learning_rate.AT, width_power=-0.6, tokens_power=-0.2, batch_power=0.4)
    cells = [(64, 4e6, 16), (64, 1e6, 16), (48, 4e6, 16), (48, 8e6, 16), (48, 4e6, 8), (48, 4e6, 32), (96, 4e6, 16)]
    for width, tokens, batch in cells:
        best = truth.lr(d_model=width, tokens=tokens, batch_tokens=batch * 128)
        for base in (0.006, 0.012, 0.024, 0.048):
            loss = 3.5 * (1 + 0.008 * math.log(base / best) ** 2 + rng.gauss(0, 0.0005))
            sizes = {"model.d_model": width, "tokens": tokens, "trainer.batch_size": batch, "model.context_length": 128}
            own = {"arm": f"{width} {tokens:g} {batch}, base {base}", "optim.lr": base, "val_loss": loss}
            rows.append({**sizes, **own, "status": "completed", "stage": "evaluate", "init_seed": 0, "data_seed": 0})
    found = learning_rate.fit(learning_rate.sizes(pd.DataFrame(rows)))
    assert found.rule.base == pytest.approx(truth.base, rel=0.1) and found.spread == pytest.approx(0.05, rel=0.5)
    for power in learning_rate.POWERS:
        assert abs(getattr(found.rule, power) - getattr(truth, power)) < 3 * found.errors[power] < 0.6
    few = pd.DataFrame([row for row in rows if row["model.d_model"] == 64])
    assert learning_rate.fit(learning_rate.sizes(few)) is None  # one width tells nothing about widths
