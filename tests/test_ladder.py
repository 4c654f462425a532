"""Ladder studies: rungs, stages, forecasts before training, resume, and what is refused; with made-up losses."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from corpus import QUICK, here, write_corpus

from lmablate.budget import flops_per_token, parameters
from lmablate.config import compose
from lmablate.config.composition import _composed, to_run_config
from lmablate.core.errors import ConfigError
from lmablate.report.command import write_report
from lmablate.report.reproduce import commands
from lmablate.results import load_runs
from lmablate.results.studies import load_studies, study_path
from lmablate.scaling.forecast import outcomes
from lmablate.scaling.ladder import ladders
from lmablate.schema.result import RunResult
from lmablate.sweeper.ladder import LadderStudy, refuse_sizes
from lmablate.sweeper.outlook import known_and_later
from lmablate.sweeper.settings import read_study

SIZED = ("model.", "trainer.steps")
RULE = (
    "optim.lr_rule.base=3e-3",
    "optim.lr_rule.d_model=64",
    "optim.lr_rule.width_power=-0.5",
    "optim.lr_rule.tokens_power=0",
    "optim.lr_rule.batch_power=0",
)
FIXED = [one for one in QUICK if not one.startswith(SIZED)]
LADDER = {
    "params": [6_000, 12_000, 24_000], "held_out": 48_000, "n_layers": 2, "tokens_per_param": 1.0
}  # fmt: skip
TUNE = {"mode": "per_arm", "factors": [0.5, 1.0, 2.0], "seeds": [1000], "extend": 0}
ARMS = {"rms": [], "layer": ["norm=layer"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("ladder") / "text")


def made_up(cfg) -> float | None:
    """A power law of compute; a layer norm is worth 20 % of it; the best rate is the rule's, for layer norms twice that."""
    flops, layer = flops_per_token(cfg) * cfg.tokens, cfg.choices["norm"] == "layer"
    rule = 3e-3 * (64 / cfg.model.d_model) ** 0.5
    off = math.log(cfg.optim.lr / (2 * rule if layer else rule))
    rng = np.random.default_rng([cfg.init_seed, cfg.model.d_model])
    seed, own = (
        0.004 * rng.standard_normal(),
        0.002 * np.random.default_rng([cfg.init_seed, cfg.model.d_model, 9]).normal(),
    )
    return 1.5 + 30 * (flops * (1.2 if layer else 1.0)) ** -0.12 + 0.1 * off**2 + seed + layer * own


class Fake:
    """A launcher that writes results without training. It stops before run number `only`."""

    def __init__(self, loss=made_up, only=None, seen=None) -> None:
        self.loss, self.only, self.seen, self.trained = loss, only, seen, []

    def __call__(self, jobs, data) -> int:
        for job in (job for job in jobs if not job.done):
            if self.only is not None and len(self.trained) >= self.only:
                return 143
            if self.seen:
                self.seen(job)
            self.trained.append(job.label)
            cfg, loss = job.cfg, self.loss(job.cfg)
            nothing = dict.fromkeys(("train_loss", "init_val_loss", "val_bpb", "diverged_at_step", "peak_memory_bytes"))
            sizes = {"n_params": parameters(cfg).total, "n_params_non_embedding": parameters(cfg).non_embedding}
            job.directory.finish(RunResult.model_validate(nothing | sizes | {
                "run_id": job.run_id, "science_version": 1, "choices": cfg.choices, "seed": cfg.seed, "numerics": {"gang": 2},
                "status": "diverged" if loss is None else "completed", "val_loss": loss, "provenance": {}, "tokens": cfg.tokens,
                "flops_per_token": flops_per_token(cfg), "tokens_per_second": 1.0, "wall_seconds": 1.0,
                "init_seed": cfg.init_seed, "data_seed": cfg.data_seed, "arm": cfg.arm, "stage": cfg.stage, "sweep": cfg.sweep,
                "config": {"optim": {"lr": cfg.optim.lr}},
            }))  # fmt: skip
        return 0


def study(text, folder, *, arms=ARMS, tune=TUNE, seeds=3, ladder=LADDER, extra=(), rule=RULE, **node) -> LadderStudy:
    node = {"question": "Which?", "arms": arms, "seeds": seeds, "ladder": ladder, **node}
    settings, tuning = read_study(node, tune if isinstance(tune, dict) else {"mode": tune}, {})
    fixed = [
        *FIXED,
        *rule,
        *extra,
        f"data.paths={text}/*.txt",
        f"results_dir={folder}",
        "trainer.precision=fp32",
        "runtime.compile=false",
    ]
    return LadderStudy(
        "which", settings, tuning, lambda own, counted: to_run_config(_composed([*fixed, *own]), counted)
    )


def saved(folder) -> dict:
    return json.loads(study_path(folder, "which").read_text())


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """A finished ladder, what stood in its file when the held-out rung began, and its launcher."""
    folder = tmp_path_factory.mktemp("done")
    early: list[dict] = []

    def seen(job):
        if " at 48k " in job.label and not early:
            early.append(saved(folder))

    launch = Fake(seen=seen)
    assert study(text, folder).run(launch) == 0
    return folder, early, launch


def test_stages_of_a_ladder_tune_at_one_rung_bracket_the_top_and_forecast_the_largest(done):
    folder, early, launch = done
    kinds = [
        ("tune" if "tune" in label else "run", label.partition(" · ")[0].partition(" at ")[2])
        for label in launch.trained
    ]
    assert kinds[:6] == [("tune", "12k")] * 6 and kinds[6:12] == [("tune", "24k")] * 6
    assert set(kinds[12:30]) == {("run", rung) for rung in ("6k", "12k", "24k")} and kinds[30:] == [("run", "48k")] * 6
    content = saved(folder)
    assert content["stage"] == "done" and early[0]["forecasts"] == content["forecasts"]
    (entry,) = content["forecasts"]
    assert (
        entry["rung"] == "48k"
        and entry["arms"][0]["blind"]
        and len(entry["runs"]) == 18
        and entry["date"].startswith("20")
    )
    (ladder,) = ladders(load_runs(folder), load_studies(folder).values())
    (row,) = outcomes(ladder, content["forecasts"])
    assert row["arm"] == "layer" and row["interval"][0] < row["outcome"] < row["interval"][1] and row["held"]


def test_every_rung_has_the_rate_of_the_rule_times_the_factor_of_its_arm(done):
    folder, _, _ = done
    runs = load_runs(folder)
    final = runs[runs["stage"] == "evaluate"].groupby("arm")["optim.lr"].unique()
    for rung in ("6k", "12k", "24k", "48k"):
        ours, base = (final[f"{arm} at {rung}"] for arm in ("layer", "rms"))
        assert len(ours) == len(base) == 1 and ours[0] / base[0] == pytest.approx(2, rel=0.02)
    assert "bracket: " in saved(folder)["arms"]["layer at 24k"]["words"]


def test_a_ladder_that_is_killed_anywhere_gives_the_same_rows_and_keeps_its_forecast(text, done, tmp_path):
    folder, _, _ = done
    rows = {path.parent.name: json.loads(path.read_text())["val_loss"] for path in folder.glob("*/result.json")}
    for only in (33, None):
        code = study(text, tmp_path).run(
            Fake(only=None if only is None else only - len(list(tmp_path.glob("*/result.json"))))
        )
        assert code == (0 if only is None else 143)
        if only == 33:
            before = saved(tmp_path)["forecasts"]
    assert {p.parent.name: json.loads(p.read_text())["val_loss"] for p in tmp_path.glob("*/result.json")} == rows
    assert saved(tmp_path)["forecasts"] == before and len(before) == 1 and before[0]["arms"][0]["blind"]


def test_a_plan_prices_every_run_of_a_ladder_and_writes_nothing(text, done, tmp_path):
    jobs, later, _ = known_and_later(study(text, tmp_path))
    assert (len(jobs), len(later)) == (6, 6 + 24)
    assert not list(tmp_path.iterdir())
    jobs, later, _ = known_and_later(study(text, done[0]))
    assert (len(jobs), later) == (36, []) and all(job.done for job in jobs.values())


def test_an_arm_that_diverges_at_a_rung_has_no_forecast_and_says_where(text, tmp_path):
    lost = lambda cfg: None if cfg.choices["norm"] == "layer" and cfg.model.d_model > 30 else made_up(cfg)  # noqa: E731
    s = study(text, tmp_path, arms={**ARMS, "none": ["norm=none"]}, tune="none", seeds=2)
    assert s.run(Fake(lost)) == 0
    layer, none = saved(tmp_path)["forecasts"][0]["arms"]
    assert (
        layer["interval"] is None
        and "a run diverged or learned nothing at 24k" in layer["problem"]
        and none["interval"] is not None
    )
    assert any("learned nothing at 24k" in note for note in s.notes())


def test_a_forecast_is_blind_while_no_pair_of_its_arm_is_trained(text, tmp_path):
    for others in (["none"], ["none", "layer"]):  # the second finds the baseline's runs
        arms = {"rms": ["norm=rms"], **{one: [f"norm={one}"] for one in others}}
        assert study(text, tmp_path, arms=arms, tune="none", seeds=2).run(Fake()) == 0
    blind = [{one["arm"]: one["blind"] for one in entry["arms"]} for entry in saved(tmp_path)["forecasts"]]
    assert blind == [{"none": True}, {"none": False, "layer": True}]


def test_the_largest_rung_waits_for_runs_that_failed(text, tmp_path):
    class Failing(Fake):
        def __call__(self, jobs, data) -> int:
            super().__call__(jobs[:3], data)
            return 1

    assert study(text, tmp_path, tune="none").run(Failing()) == 1
    content = saved(tmp_path)
    assert (
        content["stage"] == "evaluate"
        and content["forecasts"] == []
        and not any("48k" in use["rung"] for use in content["runs"])
    )


def test_branches_of_a_ladder_are_budgets_of_one_rung(text, tmp_path):
    ladder = {**LADDER, "held_out": None, "tokens_per_param": 4.0}
    extra = ["schedule=wsd_branches"]
    assert study(text, tmp_path, ladder=ladder, tune="none", seeds=2, extra=extra).run(Fake()) == 0
    (one,) = ladders(load_runs(tmp_path), load_studies(tmp_path).values())
    assert sorted({round(run.budget, 2) for run in one.runs}) == pytest.approx([0.25, 0.5, 1.0], abs=0.02)
    assert len(one.at("layer", "6k")) == 2 and len(one.law("chinchilla", resamples=0).residuals) == 18


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"params": [6_000, 12_000], "held_out": 24_000}, "needs 3 or more"),
        ({"params": [6_000, 24_000, 12_000], "held_out": None}, "must rise"),
        ({"params": [100, 12_000, 24_000]}, "no whole width and depth make 100 parameters"),
        ({"ratio": 8.0}, "not both"),
        ({"n_layers": None}, "not neither"),
        ({"tune_at": 48_000}, "names one of the fitted rungs, 6k, 12k, 24k"),
        ({"rungs": {"a": []}}, "give params"),
        ({"tokens_per_param": -1.0}, "tokens_per_param"),
    ],
)
def test_rungs_that_make_no_ladder_are_refused_before_anything_runs(text, tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        study(text, tmp_path, ladder={**LADDER, **change}).check()


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"arms": {"rms": [], "wide": ["model.d_model=64"]}}, "wide sets model.d_model"),
        ({"arms": {"rms": [], "fast": ["optim.lr=1e-2"]}, "rule": ()}, "one rate for all rungs"),
        ({"looks": [2]}, "do not go together"),
        ({"tune": {**TUNE, "mode": "both"}}, "do not go together"),
    ],
)
def test_arms_and_settings_that_no_ladder_takes_are_refused(text, tmp_path, node, says):
    with pytest.raises(ConfigError, match=says):
        study(text, tmp_path, **node).check()


def test_a_ladder_sizes_its_runs_itself_and_belongs_to_a_study(text):
    settings, _ = read_study({"question": "?", "arms": ARMS, "seeds": 2, "ladder": LADDER}, {"mode": "none"}, {})
    with pytest.raises(ConfigError, match=r"sweep\.ladder\.tokens_per_param"):
        refuse_sizes(settings.ladder, ["trainer.steps=10"])
    with pytest.raises(ConfigError, match="ladder=laptop sizes the arms of a study"):
        compose([*QUICK, "ladder=laptop", f"data.paths={text}/*.txt"])


def test_rungs_by_their_overrides_may_differ_in_anything(text, tmp_path):
    rungs = {
        name: [f"model.d_model={w}", "model.n_layers=1"] for name, w in (("a", 16), ("b", 24), ("c", 32), ("d", 48))
    }
    ladder = {"rungs": rungs, "held_out": "d", "tokens_per_param": 1.0}
    s = study(text, tmp_path, ladder=ladder, tune="none")
    s.check()
    assert [(r.name, r.held_out) for r in s.rungs] == [("a", False), ("b", False), ("c", False), ("d", True)]
    counts = {name: cfg.trainer.steps for (name, _), cfg in s._configs.items()}
    assert counts["rms at a"] == counts["layer at a"] < counts["rms at d"]


@pytest.mark.slow
def test_a_stored_sweep_becomes_a_ladder_on_the_command_line(text, tmp_path):
    words = ["sweeps=norm", "ladder=laptop", "sweep.ladder.params=[6000,12000,24000]", "sweep.ladder.held_out=null"]
    words += [
        "sweep.ladder.n_layers=2",
        "sweep.ladder.tokens_per_param=1",
        "tune=none",
        *FIXED,
        f"data.paths={text}/*.txt",
    ]
    plan = here("lmablate.plan", *words, cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "rms at 24k" in plan.stdout


@pytest.mark.slow
def test_a_report_has_the_ladder_in_figure_table_and_verdicts(done, tmp_path):
    folder, _, _ = done
    write_report([folder], tmp_path)
    record = json.loads((tmp_path / "verdicts.json").read_text())
    assert [(row["arm"], row["rung"], row["held"]) for row in record["forecasts"]] == [("layer", "48k", True)]
    assert {row["a"].partition(" at ")[2] == row["b"].partition(" at ")[2] for row in record["comparisons"]} == {True}
    assert len(record["comparisons"]) == 4 and (tmp_path / "figures" / "which_ladder.png").exists()
    page = (tmp_path / "index.html").read_text()
    assert "From small to large" in page and "came out" in page
    assert (tmp_path / "tables" / "ladders.csv").read_text().count("\n") == 2
    done = here("lmablate.cli.scaling", str(folder), "--out", str(tmp_path / "law"))
    assert done.returncode == 0, done.stderr
    assert "1 of 1 forecasts held" in done.stdout and (tmp_path / "law" / "which.png").exists()


def test_the_command_of_a_ladder_leaves_its_sizes_to_the_rungs():
    words = [
        ("sweeps=which", "tokenizer=bytes", f"model.d_model={width}", "model.n_layers=2", "trainer.tokens_per_param=3", "optim.lr=0.01")
        for width in (16, 32)
    ]  # fmt: skip
    frame = pd.DataFrame({"sweep": "which", "stage": "evaluate", "provenance.overrides": words})
    assert commands(frame, sized={"model.n_layers", "model.d_model", "trainer.tokens_per_param"}) == [
        "lmablate train sweeps=which tokenizer=bytes"
    ]
