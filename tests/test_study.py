"""Studies: stages, what is trained and what is not, the study's file; with made-up losses, and on the command line."""

import json
import math
import random
import shutil

import pytest
from corpus import QUICK, command, here, write_corpus

from lmablate.budget import flops_per_token, parameters
from lmablate.cli import front_door
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.core.paths import SWEEPS_DIR
from lmablate.launcher.jobs import prepare_jobs
from lmablate.results import load_runs
from lmablate.results.studies import load_studies, study_path, study_runs
from lmablate.schema.result import RunResult
from lmablate.sweeper.looks import rule_of
from lmablate.sweeper.settings import read_study
from lmablate.sweeper.study import Study

ARMS = {"rms": [], "layer": ["norm=layer"]}
TUNE = {"mode": "per_arm", "factors": [0.5, 1.0, 2.0], "seeds": [1000, 1001], "extend": 2, "cross": None}
BEST = {"rms": 3.4e-3, "layer": 9e-3}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("study") / "text")


def made_up(cfg) -> float | None:
    """A final loss with a known best learning rate, and a little that depends on the seed."""
    lr = cfg.optim.lr
    return 2 + 0.1 * math.log(lr / BEST[cfg.choices["norm"]]) ** 2 + 1e-4 * (cfg.init_seed % 7)


class Fake:
    """A launcher that writes results without training, and counts them."""

    def __init__(self, loss=made_up, code: int = 0, only: int | None = None) -> None:
        self.loss, self.code, self.only = loss, code, only
        self.trained: list[list[str]] = []
        self.words: dict[str, list[str]] = {}

    def __call__(self, jobs, data) -> int:
        todo = [job for job in jobs if not job.done][: self.only]
        self.trained.append([job.label for job in todo])
        for job in todo:
            cfg, loss = job.cfg, self.loss(job.cfg)
            self.words[job.run_id] = cfg.overrides
            if job.starts_others:
                job.directory.checkpoint_dir.mkdir(parents=True, exist_ok=True)
                (job.directory.checkpoint_dir / "step-000000001.safetensors").touch()
            row = dict.fromkeys(
                ("train_loss", "init_val_loss", "val_loss", "val_bpb", "diverged_at_step", "tokens_per_second",
                 "wall_seconds", "peak_memory_bytes")
            ) | dict.fromkeys(("n_params", "n_params_non_embedding", "flops_per_token", "tokens"), 1)  # fmt: skip
            row |= {
                "run_id": job.run_id,
                "science_version": 1,
                "choices": cfg.choices,
                "seed": cfg.seed,
                "numerics": {},
            }
            row |= {"status": "completed" if loss is not None else "diverged", "val_loss": loss, "provenance": {}}
            row |= {"init_seed": cfg.init_seed, "data_seed": cfg.data_seed, "arm": cfg.arm, "stage": cfg.stage}
            job.directory.finish(
                RunResult.model_validate(row | {"sweep": cfg.sweep, "config": {"optim": {"lr": cfg.optim.lr}}})
            )
        return self.code


# A base rate of 3e-3 whatever the sizes.
RATE = ("optim.lr_rule.base=3e-3", *(f"optim.lr_rule.{size}_power=0" for size in ("width", "tokens", "batch")))


def study(text, folder, *, arms=ARMS, tune=TUNE, seeds=3, rule=None, rate=RATE, **node) -> Study:
    node = {"question": "Which?", "claims": ["N7"], "scales": {}, "arms": arms, "seeds": seeds, **node}
    settings, tuning = read_study(node, tune if isinstance(tune, dict) else {"mode": tune}, {})
    fixed = [
        *QUICK,
        *rate,
        f"data.paths={text}/*.txt",
        f"results_dir={folder}",
        "trainer.precision=fp32",
        "runtime.compile=false",
    ]
    more = {} if rule is None else {"rule": rule}
    return Study("which", settings, tuning, lambda words, counted: compose([*fixed, *words]), **more)


def saved(folder) -> dict:
    return json.loads(study_path(folder, "which").read_text())


def test_each_arm_is_evaluated_at_its_own_best_rate_on_fresh_seeds(text, tmp_path):
    launch = Fake()
    assert study(text, tmp_path).run(launch) == 0
    runs = load_runs(tmp_path)
    assert [len(batch) for batch in launch.trained] == [
        12,
        2,
        2,
        6,
    ]  # 2 arms x 3 rates x 2 seeds; twice a new rate; 2 arms x 3
    counts = {("tune", "rms"): 6, ("tune", "layer"): 10, ("evaluate", "rms"): 3, ("evaluate", "layer"): 3}
    assert runs.groupby(["stage", "arm"]).size().to_dict() == counts
    final = runs[runs["stage"] == "evaluate"]
    for arm, best in BEST.items():
        rates = set(final.loc[final["arm"] == arm, "optim.lr"])
        assert len(rates) == 1
        assert rates.pop() == pytest.approx(best, rel=3e-3)
    assert set(final["init_seed"]) == {0, 1, 2}
    assert set(runs.loc[runs["stage"] == "tune", "init_seed"]) == {1000, 1001}
    content = saved(tmp_path)
    assert content["stage"] == "done"
    assert content["arms"]["layer"]["lr"] == pytest.approx(9e-3, rel=3e-3)
    assert content["arms"]["layer"]["fit"]["coefficients"][0] == pytest.approx(0.1)
    assert {use["run_id"] for use in content["runs"]} == set(runs["run_id"])


def test_running_it_again_trains_nothing_and_more_seeds_train_only_themselves(text, tmp_path):
    study(text, tmp_path).run(Fake())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    again, more = Fake(), Fake()
    assert study(text, tmp_path).run(again) == 0
    assert [len(batch) for batch in again.trained] == [0]
    assert study(text, tmp_path, seeds=5).run(more) == 0
    assert [len(batch) for batch in more.trained] == [4]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}.items()


def test_a_stopped_study_goes_on_where_it_was(text, tmp_path):
    assert study(text, tmp_path).run(Fake(code=143, only=5)) == 143
    assert saved(tmp_path)["stage"] == "tune"
    rest = Fake()
    assert study(text, tmp_path).run(rest) == 0
    assert [len(batch) for batch in rest.trained] == [12 - 5, 2, 2, 6]


def test_a_shared_rate_and_both_views(text, tmp_path):
    assert study(text, tmp_path / "shared", tune={**TUNE, "mode": "shared"}).run(Fake()) == 0
    runs = load_runs(tmp_path / "shared")
    assert runs.loc[runs["stage"] == "evaluate", "optim.lr"].nunique() == 1
    assert study(text, tmp_path / "both", tune={**TUNE, "mode": "both"}).run(Fake()) == 0
    runs, content = load_runs(tmp_path / "both"), load_studies(tmp_path / "both")["which"]
    seen = study_runs(runs, content)
    assert seen[seen["stage"] == "evaluate"].groupby("arm")["optim.lr"].nunique().tolist() == [1, 1]
    assert seen.loc[seen["stage"] == "evaluate_shared", "optim.lr"].unique().tolist() == [content["shared"]["lr"]]


def test_without_tuning_every_arm_has_its_own_words_rate(text, tmp_path):
    arms = {"rms": [], "fast": ["optim.lr=6e-3"]}
    launch = Fake()
    two = study(text, tmp_path, arms=arms, tune="none", seeds={"values": 2, "mode": "crossed"}, rate=())
    assert two.run(launch) == 0
    assert [len(batch) for batch in launch.trained] == [8]
    runs, by_rule = load_runs(tmp_path), compose([*QUICK, f"data.paths={text}/*.txt"]).optim.lr
    assert runs.groupby("arm")["optim.lr"].unique().map(list).to_dict() == {"fast": [0.006], "rms": [by_rule]}
    assert sorted(zip(runs["init_seed"], runs["data_seed"], strict=True)) == sorted(
        [(0, 0), (0, 1), (1, 0), (1, 1)] * 2
    )


def test_an_arm_that_diverges_everywhere_is_a_result_in_words(text, tmp_path):
    s = study(text, tmp_path)
    assert s.run(Fake(lambda cfg: None if cfg.choices["norm"] == "layer" else made_up(cfg))) == 0
    content = saved(tmp_path)
    assert "every learning rate from" in content["arms"]["layer"]["words"]
    runs = load_runs(tmp_path)
    final = runs[(runs["stage"] == "evaluate") & (runs["arm"] == "layer")]
    assert final["status"].tolist() == ["diverged"] * 3


def test_runs_that_failed_are_missing_and_said(text, tmp_path):
    assert study(text, tmp_path).run(Fake(code=1, only=2)) == 1
    content = saved(tmp_path)
    assert content["stage"] != "done"
    assert any("without a result" in note for note in content["notes"])


def test_the_rate_of_a_study_names_the_run_that_an_override_would(text, tmp_path):
    s = study(text, tmp_path, tune="none", seeds=[3])
    s.check()
    trial = next(s.stages())[1]
    (mine,), _ = prepare_jobs(s.configs(trial))
    typed = [*QUICK, *RATE, f"data.paths={text}/*.txt", f"results_dir={tmp_path}", "trainer.precision=fp32"]
    (theirs,), _ = prepare_jobs([compose([*typed, "norm=layer", "seed=3"])])
    assert mine.run_id == theirs.run_id


def test_two_arms_that_are_one_run_are_refused(text, tmp_path):
    with pytest.raises(ConfigError, match="the arms rms and same are the same run"):
        study(text, tmp_path, arms={"rms": [], "same": ["norm=rms"]}).run(Fake())
    assert not list(tmp_path.glob("*/result.json"))


def test_an_arm_that_cannot_be_built_is_refused_before_anything_is_trained(text, tmp_path):
    launch = Fake()
    with pytest.raises(ConfigError, match=r"arm bad of sweeps=which: .*does not divide"):
        study(text, tmp_path, arms={"rms": [], "bad": ["attention=gqa", "model.n_kv_heads=3"]}).run(launch)
    assert launch.trained == []


def test_looks_stop_an_arm_by_pair_and_leave_the_others(text, tmp_path):
    seen = []

    def rule(look):
        seen.append((look.number, look.baseline, {arm: len(values) for arm, values in look.losses.items()}))
        return {"layer": "clear enough"} if look.number == 0 else {}

    arms = {**ARMS, "none": ["norm=none"]}
    s = study(text, tmp_path, arms=arms, tune="none", seeds=6, looks=[2, 4], rule=rule)
    assert s.run(Fake(lambda cfg: 2.0)) == 0
    assert seen == [(0, "rms", {"rms": 2, "layer": 2, "none": 2}), (1, "rms", {"rms": 4, "none": 4})]
    assert load_runs(tmp_path).groupby("arm").size().to_dict() == {"rms": 6, "none": 6, "layer": 2}
    assert saved(tmp_path)["looks"]["stopped"] == {"layer": "stopped after 2 of 6 pairs: clear enough"}


def test_the_stored_rule_stops_a_clear_arm_and_runs_an_equal_one_to_the_end(text, tmp_path):
    """The group-sequential rule of stats.sequential: a difference of 30 standard deviations, and none."""
    node = {"question": "?", "claims": [], "scales": {}, "arms": ARMS, "seeds": 8, "looks": [4, 6]}
    for rule in ("obrien_fleming", "pocock", "anytime"):
        settings, _ = read_study({**node, "look_rule": rule}, {"mode": "none"}, {})
        for name, gap, pairs in (("far", 0.3, {4, 6}), ("near", 0.0, {8})):
            rng = random.Random(0)
            s = study(text, tmp_path / rule / name, tune="none", seeds=8, looks=[4, 6], rule=rule_of(settings))
            s.run(Fake(lambda cfg, gap=gap, rng=rng: 2 + gap * (cfg.choices["norm"] == "layer") + rng.gauss(0, 0.01)))
            counts = load_runs(tmp_path / rule / name).groupby("arm").size()
            assert counts["rms"] == counts["layer"]
            assert counts["layer"] in pairs


def test_branches_of_a_trunk_are_arms_of_their_own_and_no_seeds(text, tmp_path):
    words = ["schedule=wsd_branches", "schedule.branches=[0.5,1.0]"]
    s = study(text, tmp_path, arms={"rms": words, "layer": [*words, "norm=layer"]}, tune="none", seeds=2)
    assert s.run(Fake()) == 0
    runs = load_runs(tmp_path)
    assert runs.groupby("arm").size().to_dict() == dict.fromkeys(
        ("rms, 768 tokens", "rms, 1.536k tokens", "layer, 768 tokens", "layer, 1.536k tokens"), 2
    )


MINI = """# @package _global_
# Which norm?
defaults:
  - override /hydra/sweeper: study
  - override /tune: per_arm
sweep:
  question: Which norm?
  claims: [N7]
  arms: {rms: [], layer: [norm=layer]}
  seeds: {values: 2, mode: paired}
  scales: {laptop: [trainer.steps=8], gpu: [], lab: []}
hydra: {mode: MULTIRUN}
"""


@pytest.fixture(scope="module")
def mini(text, tmp_path_factory):
    """A stored study trained once by its command: (folder, words, the plan before it, the finished command)."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "mini.yaml").write_text(MINI)
    words = ["sweeps=mini", "scale=laptop", *(word for word in QUICK if not word.startswith("trainer.steps"))]
    words += [f"data.paths={text}/*.txt", "tune.factors=[1.0,4.0]", "tune.extend=0"]
    plan = here("lmablate.plan", "--rows", *words, cwd=folder)
    assert not list(folder.glob("results/*/config.yaml"))
    return folder, words, plan, command("lmablate.train", *words, "hydra/launcher=gang", cwd=folder)


def test_a_stored_study_is_planned_trained_and_done(mini):
    folder, words, plan, done = mini
    assert plan.returncode == 0, plan.stderr
    assert "8 runs, 0 done already, 8 to train" in plan.stdout
    assert plan.stdout.count("after tuning") == 4
    assert done.returncode == 0, done.stderr
    runs = load_runs(folder / "results")
    assert set(runs["sweep"]) == {"mini"}
    assert set(runs["trainer.steps"]) == {8}
    assert runs.groupby("stage").size()["evaluate"] == 4
    assert load_studies(folder / "results")["mini"]["stage"] == "done"
    again = here("lmablate.plan", *words, cwd=folder)
    assert ", 0 to train" in again.stdout


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("seed=1", "set sweep.seeds"),
        ("norm=layer", "the arm layer sets norm"),
        ("sweep.seeds.values=[1000]", "share 1000"),
        ("tune=maybe", "tune has both, none, per_arm, shared"),
    ],
)
def test_words_that_a_study_cannot_take_are_refused(mini, word, says):
    folder, words, _, _ = mini
    refused = here("lmablate.plan", *words, word, cwd=folder)
    assert refused.returncode == 2
    assert says in refused.stderr


@pytest.mark.slow
def test_every_launcher_gives_the_same_rows_of_a_study(mini):
    folder, words, _, _ = mini
    done = command("lmablate.train", *words, "results_dir=local", cwd=folder)
    assert done.returncode == 0, done.stderr
    same = ["run_id", "arm", "stage", "sweep", "optim.lr", "val_loss"]
    gang, local = (load_runs(folder / name).sort_values("run_id")[same] for name in ("results", "local"))
    assert gang.reset_index(drop=True).equals(local.reset_index(drop=True))


def test_tuning_without_a_study_is_refused():
    with pytest.raises(ConfigError, match="tune=per_arm tunes the arms of a study"):
        compose(["tune=per_arm"])


STUDIES = sorted(path.stem for path in SWEEPS_DIR.glob("*.yaml") if "sweeper: study" in path.read_text())


SCALES = ["laptop", *(pytest.param(scale, marks=pytest.mark.slow) for scale in ("gpu", "lab"))]
SIZES = {"laptop": (80_000, 260_000), "gpu": (10e6, 50e6), "lab": (100e6, 250e6)}
OTHERWISE = {"skills", "length_tasks", "width_depth", "deep_post_norm"}  # what they ask decides their sizes


FEW_ARMS = {"controls", "noise_floor", "norm_position"}  # the others are planned as slow tests


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "name", [name if name in FEW_ARMS else pytest.param(name, marks=pytest.mark.slow) for name in STUDIES]
)
def test_the_arms_of_a_stored_study_have_the_size_and_the_tokens_of_its_scale(name, scale):
    bases = {}

    def study(one, _):
        one.check()
        bases.update({arm: one._base(arm, one._settings(arm)) for arm in one.arms if "unmatched" not in arm})
        return 0

    assert front_door.main("plan", lambda *_: 1, [f"sweeps={name}", f"scale={scale}"], study=study) == 0
    counts = [parameters(cfg) for cfg in bases.values()]
    if name not in OTHERWISE:
        low, high = SIZES[scale]
        first = next(iter(bases.values()))
        assert low < counts[0].non_embedding < high or name == "block_layout"  # its size is that of the deeper arms
        assert first.tokens / counts[0].active_non_embedding == pytest.approx(20, rel=0.02)
        assert all(cfg.tokens / counts[0].active_non_embedding >= 1.9 for cfg in bases.values())
    if name in ("sanity", "block_layout", "learning_rate", "width_depth", "deep_post_norm", "tying"):
        return
    of = {
        "non-embedding parameters": [one.non_embedding for one in counts],
        "parameters": [one.total for one in counts],
        "FLOPs": [flops_per_token(cfg) for cfg in bases.values()],
    }
    equal = [what for what, sizes in of.items() if sizes == pytest.approx([sizes[0]] * len(sizes), rel=0.01)]
    assert equal, of  # each to the baseline's


STARTS = {"rms": [], "longer": ["model.context_length=64"], "longest": ["model.context_length=128"]}


def test_an_arm_starts_from_the_run_of_its_own_seed_and_not_before(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lmablate.runs.prepared.with_data", lambda cfg, data: cfg
    )  # made-up runs have no weights to look at
    made = study(text, tmp_path, arms=STARTS, tune="none", starts={"longest": "longer", "longer": "rms"})
    launch = Fake()
    assert made.run(launch) == 0
    assert [len(batch) for batch in launch.trained] == [3, 3, 3]
    runs = load_runs(tmp_path)
    ids = {(use["arm"], use["init_seed"]): use["run_id"] for use in saved(tmp_path)["runs"]}
    told = {key: dict(word.split("=", 1) for word in words) for key, words in launch.words.items()}
    for arm, parent in (("longer", "rms"), ("longest", "longer")):
        for seed in range(3):
            assert told[ids[arm, seed]]["trainer.init_from"].strip("'") == ids[parent, seed]
    assert len(runs) == 9


def test_a_run_that_others_start_from_is_trained_again_where_only_its_row_is_there(text, tmp_path, monkeypatch):
    monkeypatch.setattr("lmablate.runs.prepared.with_data", lambda cfg, data: cfg)
    whole = {"arms": STARTS, "tune": "none", "starts": {"longer": "rms"}}
    study(text, tmp_path, **whole).run(Fake())
    for use in saved(tmp_path)["runs"]:
        if use["arm"] == "longer":
            shutil.rmtree(tmp_path / use["run_id"])
        else:
            shutil.rmtree(tmp_path / use["run_id"] / "checkpoint", ignore_errors=True)
    made, launch = study(text, tmp_path, **whole), Fake()
    assert made.run(launch) == 0
    assert [len(batch) for batch in launch.trained] == [3, 3]  # the starts, and the arm that starts from them
    assert all("longest" not in label for batch in launch.trained for label in batch)


def test_an_arm_whose_start_diverged_is_missing_in_words(text, tmp_path, monkeypatch):
    monkeypatch.setattr("lmablate.runs.prepared.with_data", lambda cfg, data: cfg)
    made = study(text, tmp_path, arms=STARTS, tune="none", starts={"longer": "rms"})
    made.run(Fake(lambda cfg: None if cfg.init_seed == 1 and cfg.model.context_length != 128 else 2.0))
    assert "longer: 1 run without a result; the runs of rms that it starts from are not all completed" in made.notes()


@pytest.mark.parametrize(
    ("starts", "more", "said"),
    [
        ({"longer": "layer"}, {}, "there is no arm layer; arms: rms, longer, longest"),
        ({"longer": "longest", "longest": "longer"}, {}, "longer waits for longest waits for longer"),
        ({"longer": "rms"}, {"cross": {"model.n_layers": [1, 2]}}, "sweep.starts and sweep.cross do not go together"),
        ({"longer": "rms"}, {"tune": TUNE}, "sweep.starts and tune=per_arm do not go together"),
    ],
)
def test_starts_that_cannot_be_are_refused(text, tmp_path, starts, more, said):
    with pytest.raises(ConfigError, match=said):
        study(text, tmp_path, **{"arms": STARTS, "tune": "none", "starts": starts, **more})
