"""Searches: what optuna asks for is an ordinary run, a search goes on where it was, and what it chose by is no evidence."""

import json
import math
import sys

import fake_results
import optuna
import pytest
from corpus import QUICK, write_corpus
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmablate.claims.report_verdicts import evidence, verdicts
from lmablate.cli.front_door import main as front_door
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import prepare_jobs
from lmablate.plan import plan, plan_study
from lmablate.report.command import main as report_main
from lmablate.report.summary import arms_table, notices
from lmablate.report.tuned_studies import shown
from lmablate.results import load_history, load_runs
from lmablate.results.studies import load_studies
from lmablate.schema.result import RunResult
from lmablate.sweeper.optuna_plugin import _dimension
from lmablate.sweeper.optuna_search import Search
from lmablate.sweeper.optuna_space import dimensions, read_search
from lmablate.sweeper.optuna_table import conclusion
from lmablate.sweeper.optuna_trials import make_sampler
from lmablate.train import train, train_study

LR = {"low": 1e-4, "high": 1e-1, "log": True}
SPACE = {"optim.lr": LR, "optim.weight_decay": {"low": 0.0, "high": 0.3}}
SETTINGS = {
    "trials": 8,
    "sampler": "tpe",
    "seed": 0,
    "metric": "val_loss",
    "seeds": [1000],
    "batch": 2,
    "halving": None,
}
BEST = 4e-3
INIT = 5.5


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("search") / "text")


@pytest.fixture(scope="module")
def base(text):
    return compose([*QUICK, f"data.paths={text}/*.txt", "trainer.precision=fp32", "runtime.compile=false"])


def swapping(base, folder):
    """What compose gives for words that set a number, without the tenth of a second it takes."""

    def made(words):
        cfg = base.model_copy(update={"results_dir": str(folder), "overrides": list(words)})
        for word in words:
            key, _, value = word.partition("=")
            if "." not in key:
                cfg = cfg.model_copy(update={key: int(value)})
                continue
            group, name = key.split(".")
            if value.startswith("bad"):
                raise ConfigError(f"{key}=bad: no such number")
            part = getattr(cfg, group).model_copy(update={name: type(getattr(getattr(cfg, group), name))(float(value))})
            cfg = cfg.model_copy(update={group: part})
        return cfg

    return made


def search(base, folder, *fixed, space=SPACE, **settings) -> Search:
    read = read_search({**SETTINGS, "space": space, **settings}, {})
    return Search(settings.get("name") or "search", read, fixed, swapping(base, folder))


def made_up(cfg) -> float | None:
    """A final loss with a known best learning rate; a shorter run is worse, and likes a higher rate."""
    shift = math.log(12 / cfg.trainer.steps)
    return 2 + 0.1 * (math.log(cfg.optim.lr / BEST) - 0.3 * shift) ** 2 + 0.2 * shift + 1e-3 * (cfg.init_seed % 7)


class Fake:
    """A launcher that writes results without training, at most `only` of them; `fails` says which runs crash."""

    def __init__(self, loss=made_up, only: int | None = None, fails=lambda cfg: False) -> None:
        self.loss, self.only, self.fails, self.trained = loss, only, fails, []

    def __call__(self, jobs, data) -> int:
        code = 0
        for job in (job for job in jobs if not job.done):
            if self.only is not None and len(self.trained) >= self.only:
                return 143
            if self.fails(job.cfg):
                code = 1
                continue
            self.trained.append(job.run_id)
            cfg, loss = job.cfg, self.loss(job.cfg)
            row = dict.fromkeys(("train_loss", "val_bpb", "tokens_per_second", "wall_seconds", "peak_memory_bytes"))
            row |= dict.fromkeys(
                ("n_params", "n_params_non_embedding", "flops_per_token", "tokens", "science_version"), 1
            )
            row |= {"run_id": job.run_id, "choices": cfg.choices, "seed": cfg.seed, "numerics": {}, "provenance": {}}
            row |= {"status": "diverged" if loss is None else "completed", "val_loss": loss, "init_val_loss": INIT}
            row |= {
                "diverged_at_step": 7 if loss is None else None,
                "init_seed": cfg.init_seed,
                "data_seed": cfg.data_seed,
            }
            row |= {
                "sweep": cfg.sweep,
                "arm": cfg.arm,
                "stage": cfg.stage,
                "config": {"trainer": {"steps": cfg.trainer.steps}},
            }
            job.directory.finish(RunResult.model_validate(row | {"data": {"val_tokens": 400, "val_bytes": 800}}))
        return code


def stored(folder, name="search") -> dict:
    return load_studies(folder)[name]


def asked(folder) -> list[tuple[str, ...]]:
    return [tuple(trial["words"]) for trial in stored(folder)["search"]["trials"]]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_asks_what_optuna_by_itself_would(base, tmp_path, capsys, sampler):
    """Against optuna's own loop over the same function, and every trial is an ordinary run."""
    one, launch = search(base, tmp_path, trials=16, batch=1, sampler=sampler), Fake()
    assert one.run(launch) == 0

    def objective(trial):
        point = {dimension.key: trial._suggest(dimension.key, dimension.distribution()) for dimension in one.space}
        return made_up(
            swapping(base, tmp_path)(
                [dimension.override(point[dimension.key]) for dimension in one.space] + ["init_seed=1000"]
            )
        )

    theirs = optuna.create_study(sampler=make_sampler(sampler, SETTINGS["seed"]))
    theirs.optimize(objective, n_trials=16)
    assert [trial.params for trial in one.trials] == [trial.params for trial in theirs.trials]
    assert one.best is not None and (one.best.number, one.best.value) == (theirs.best_trial.number, theirs.best_value)
    runs, content = load_runs(tmp_path), stored(tmp_path)
    assert len(runs) == len(set(launch.trained)) == 16
    assert (set(runs["stage"]), set(runs["sweep"]), set(runs["init_seed"])) == ({"search"}, {"search"}, {1000})
    assert {use["run_id"] for use in content["runs"]} == set(runs["run_id"])
    assert content["stage"] == "done"
    assert content["search"]["best"]["value"] == runs["val_loss"].min()
    printed = capsys.readouterr().out
    assert f"best of 16: trial {one.best.number}, {one.best.value:.4f}, {one.best.label}" in printed
    assert "evidence for no claim" in printed


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "grid"])
def test_a_stopped_search_goes_on_as_if_it_had_not_been(base, tmp_path, sampler):
    space = {"optim.lr": {"choices": [1e-3, 3e-3, 1e-2]}, "optim.weight_decay": {"low": 0.0, "high": 0.2, "step": 0.1}}
    space = space if sampler == "grid" else SPACE
    words = {"sampler": sampler, "space": space, "trials": 14, "batch": 3}
    assert search(base, tmp_path / "whole", **words).run(Fake()) == 0
    first, rest = Fake(only=7), Fake()
    assert search(base, tmp_path / "broken", **words).run(first) == 143
    assert stored(tmp_path / "broken")["stage"] == "search"
    assert search(base, tmp_path / "broken", **words).run(rest) == 0
    assert asked(tmp_path / "broken") == asked(tmp_path / "whole")
    assert len(asked(tmp_path / "whole")) == (9 if sampler == "grid" else 14)
    assert not set(first.trained) & set(rest.trained)
    again = Fake()
    assert search(base, tmp_path / "broken", **{**words, "batch": 5}).run(again) == 0  # batches are those on record
    assert again.trained == []


def test_more_trials_continue_a_search(base, tmp_path):
    assert search(base, tmp_path / "a", trials=6).run(Fake()) == 0
    assert search(base, tmp_path / "b", trials=10).run(Fake()) == 0
    more = Fake()
    assert search(base, tmp_path / "a", trials=10).run(more) == 0
    assert len(more.trained) == 4
    assert asked(tmp_path / "a") == asked(tmp_path / "b")


def test_another_sampler_and_a_narrower_space_start_from_the_runs_there_are(base, tmp_path, caplog):
    assert search(base, tmp_path, sampler="random", trials=8).run(Fake()) == 0
    before = stored(tmp_path)
    narrow = {**SPACE, "optim.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    inside = [words for words in asked(tmp_path) if 1e-3 <= float(words[0].partition("=")[2]) <= 1e-2]
    launch = Fake()
    with caplog.at_level("INFO", logger="lmablate"):
        assert search(base, tmp_path, space=narrow, trials=8).run(launch) == 0
    assert 0 < len(inside) < 8
    assert asked(tmp_path)[: len(inside)] == inside
    assert len(launch.trained) == 8 - len(inside)
    assert len(set(asked(tmp_path))) == 8
    assert f"{8 - len(inside)} earlier trials lie outside the space" in caplog.text
    known = {use["run_id"] for use in stored(tmp_path)["runs"]}
    assert {use["run_id"] for use in before["runs"]} < known  # what was searched by once stays no evidence


def test_a_diverged_run_counts_with_its_loss_before_training(base, tmp_path, capsys):
    def loss(cfg):
        return None if cfg.optim.lr > 1e-2 else made_up(cfg)

    assert search(base, tmp_path, trials=12, seeds=[1000, 1001]).run(Fake(loss)) == 0
    trials = stored(tmp_path)["search"]["trials"]
    lost = [trial for trial in trials if trial["state"] == "diverged"]
    assert lost
    assert all(trial["value"] == INIT and trial["by_seed"] == [INIT, INIT] for trial in lost)
    assert stored(tmp_path)["search"]["best"]["value"] < 3
    printed = capsys.readouterr().out
    assert "diverged 2 of 2 runs, at step 7, 7" in printed
    assert "nan" not in printed.lower()
    nothing = search(base, tmp_path / "none", trials=2)
    assert nothing.run(Fake(lambda cfg: None)) == 0
    assert nothing.best is None
    assert "no trial finished, so there is no best" in capsys.readouterr().out
    halves = search(base, tmp_path / "half", trials=1, seeds=[1000, 1001], metric="val_bpb")
    halves.run(Fake(lambda cfg: None))
    assert halves.trials[0].value == pytest.approx(INIT / math.log(2) / 2)  # 400 tokens are 800 bytes


def test_a_run_that_crashed_says_nothing_and_is_made_again(base, tmp_path, capsys):
    crash = Fake(fails=lambda cfg: cfg.optim.lr > 2e-3)
    assert search(base, tmp_path).run(crash) == 1
    lost = [trial for trial in stored(tmp_path)["search"]["trials"] if trial["state"] == "failed"]
    assert lost
    assert all(trial["value"] is None and trial["note"] == "1 of 1 runs without a result" for trial in lost)
    assert f"{len(lost)} of 8 trials crashed" in capsys.readouterr().out
    before = asked(tmp_path)
    mended = Fake()
    assert search(base, tmp_path).run(mended) == 0
    assert asked(tmp_path) == before
    assert len(mended.trained) == len(lost)


def test_settings_that_make_no_model_are_said_and_skipped(base, tmp_path, capsys):
    space = {"optim.lr": {"choices": [1e-3, 2e-3]}, "optim.weight_decay": {"choices": ["bad", "0.1", "0.2"]}}
    assert search(base, tmp_path, space=space, sampler="grid", batch=6).run(Fake()) == 0
    states = [trial["state"] for trial in stored(tmp_path)["search"]["trials"]]
    assert sorted(states) == ["completed"] * 4 + ["refused"] * 2
    assert "2 of 6 trials were refused: optim.weight_decay=bad: no such number" in capsys.readouterr().out
    longer = {"optim.lr": LR, "trainer.batch_size": {"choices": [4, 8]}}
    some = search(base, tmp_path / "b", space=longer, trials=6)
    some.run(Fake())
    assert {trial.state for trial in some.trials if trial.params["trainer.batch_size"] == 8} == {"refused"}
    assert any("give trainer.tokens=1536, so that all read equally much" in line for line in conclusion(some))
    bad = {"optim.lr": LR, "optim.weight_decay": {"choices": ["bad", "bad again"]}}
    with pytest.raises(ConfigError, match=r"optim\.weight_decay=bad"):
        search(base, tmp_path / "c", space=bad).run(Fake(fails=lambda cfg: pytest.fail("trained")))


def test_halving_drops_rates_after_shorter_whole_runs(base, tmp_path, capsys):
    rate = {"optim.lr": LR}
    halving = {"rungs": [0.25, 0.5, 1.0], "keep": 0.5}
    launch = Fake(lambda cfg: None if cfg.optim.lr > 5e-2 else made_up(cfg))
    one = search(base, tmp_path, space=rate, trials=8, halving=halving)
    assert one.run(launch) == 0
    runs = load_runs(tmp_path)
    assert len(runs) == 8 + 4 + 2
    reached = {rung: [t for t in one.trials if t.rung >= rung and t.state != "diverged"] for rung in range(3)}
    assert [len(reached[rung]) for rung in (1, 2)] == [4, 2]
    stopped = [t for t in one.trials if t.state == "stopped"]
    for rung in (0, 1):  # who went on was better at that rung than who was stopped there
        there = [t for t in stopped if t.rung == rung]
        assert all("of the steps" in t.note for t in there)
        on = [t.params["optim.lr"] for t in reached[rung + 1]]
        at = base.model_copy(update={"trainer": base.trainer.model_copy(update={"steps": 3 * 2**rung})})
        losses = [made_up(at.model_copy(update={"optim": base.optim.model_copy(update={"lr": lr})})) for lr in on]
        assert max(losses) < min((t.value for t in there), default=math.inf)
    assert one.best is not None and one.best.rung == 2
    assert runs["trainer.steps"].value_counts().to_dict() == {3: 8, 6: 4, 12: 2}
    assert "stopped after 25% of the steps" in capsys.readouterr().out
    again = Fake()
    assert search(base, tmp_path, space=rate, trials=8, halving=halving).run(again) == 0
    assert again.trained == []


HALF = {"rungs": [0.5, 1.0], "keep": 0.5}
REFUSED = {
    "halving of norms": ({"space": {"optim.lr": LR, "norm": {"choices": [0, 1]}}, "halving": HALF},
        "for optim.lr alone, and this space has norm"),
    "rungs": ({"space": {"optim.lr": LR}, "halving": {**HALF, "rungs": [0.5, 0.25]}}, "shares of the steps that rise"),
    "nothing": ({"space": {}}, "has nothing to search"),
    "seed": ({"space": {"seed": {"choices": [0, 1]}}}, "seed is not searched over"),
    "length": ({"space": {"trainer.steps": {"low": 1, "high": 9}}}, "the longest run would win"),
    "upside down": ({"space": {"optim.lr": {"low": 1e-2, "high": 1e-4}}}, "low must be below high"),
    "log of 0": ({"space": {"optim.lr": {"low": 0.0, "high": 1e-4, "log": True}}}, "use a low above 0"),
    "steps in log": ({"space": {"optim.lr": {"low": 1.0, "high": 2.0, "log": True, "step": 0.1}}}, "goes without log"),
    "one choice": ({"space": {"norm": {"choices": ["rms"]}}}, "needs two choices or more"),
    "grid of a range": ({"sampler": "grid"}, "sampler=grid needs the values of optim.lr"),
    "sampler": ({"sampler": "best"}, r"in the search, hydra.sweeper.sampler=best: .*'tpe', 'random', 'cmaes' or 'grid'"),
    "a wrong key": ({"space": {"optim.lr": {"low": 1e-4, "hihg": 1.0}}}, r"hydra.sweeper.space.optim.lr.hihg: unknown key"),
    "tokens": ({"space": {"tokenizer.vocab_size": {"choices": [256, 512]}}}, "use hydra.sweeper.metric=val_bpb"),
    "seeds": ({"seeds": [3, 3]}, "a seed stands there twice"),
    "name": ({"name": "a/b"}, "as it names a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_searches_that_make_no_sense_are_refused_in_words(case):
    changed, says = REFUSED[case]
    with pytest.raises(ConfigError, match=says):
        read_search({**SETTINGS, "space": SPACE, **changed}, {})


WORDS = {
    "k=interval(1,4)": "1 to 4",
    "k=tag(log,interval(1e-4,1e-2))": "0.0001 to 0.01, log",
    "k=tag(int,log,interval(8,64))": "8 to 64, log, whole numbers",
    "k=1,2,true,x": "1, 2, True, x",
    "k=range(1,8,3)": "1, 4, 7",
}


@pytest.mark.parametrize("word", WORDS)
def test_the_command_line_has_hydras_own_grammar(word):
    typed = {"k": _dimension(OverridesParser.create().parse_override(word))}
    (one,) = dimensions(read_search({**SETTINGS, "space": None}, typed))
    assert str(one) == WORDS[word]


def test_drawn_numbers_are_short_and_stay_in_their_range():
    (lr, steps) = dimensions(
        read_search({**SETTINGS, "space": {"a": LR, "b": {"low": 0.0, "high": 0.3, "step": 0.1}}}, {})
    )
    assert lr.override(0.00312456789) == "a=0.003125"
    assert lr.override(0.1) == "a=0.1"
    assert [steps.override(value) for value in steps.lattice()] == ["b=0", "b=0.1", "b=0.2", "b=0.3"]
    (odd,) = dimensions(read_search({**SETTINGS, "space": {"a": {"low": 0.123456, "high": 1.0}}}, {}))
    assert odd.override(0.123457) == "a=0.1235"
    assert odd.override(0.12341) == "a=0.123456"
    assert (lr.edge(1.1e-4), lr.edge(9e-2), lr.edge(1e-3)) == ("low", "high", None)


def test_the_file_of_another_search_is_not_overwritten(base, tmp_path):
    assert search(base, tmp_path, trials=2).run(Fake()) == 0
    other = search(base, tmp_path, "model.dropout=0.1", trials=2)
    with pytest.raises(
        ConfigError, match=r"search.json holds another search \(of the defaults\).*hydra.sweeper.name=NAME"
    ):
        other.run(Fake())
    assert search(base, tmp_path, "model.dropout=0.1", trials=2, name="dropped").run(Fake()) == 0


def test_without_the_library_the_words_say_how_to_get_it(base, tmp_path, monkeypatch):
    for package, sampler, says in (
        ("optuna", "tpe", "the optuna library"),
        ("cmaes", "cmaes", "cmaes for sampler=cmaes"),
    ):
        with monkeypatch.context() as absent:
            absent.setitem(sys.modules, package, None)
            with pytest.raises(ConfigError, match=says + r".*pip install 'lmablate\[optuna\]'"):
                search(base, tmp_path, sampler=sampler).run(Fake())


def test_a_trial_is_the_run_that_its_words_typed_are_and_a_plan_shows_what_is_left(text, tmp_path, capsys, monkeypatch):
    """Trained for once, in this process."""
    quick = [word for word in QUICK if not word.startswith("trainer.steps")]
    words = [*quick, "trainer.steps=3", f"data.paths={text}/*.txt", f"results_dir={tmp_path}", "trainer.precision=fp32"]
    asked_for = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.batch=1", "hydra.sweeper.trials=2", *words]
    asked_for += ["optim.lr=tag(log,interval(1e-4,1e-2))", "norm=rms,layer"]
    assert front_door("train", train, asked_for, study=train_study) == 0
    trial = stored(tmp_path)["search"]["trials"][1]
    (job,), _ = prepare_jobs([compose([*words, *trial["words"], "seed=1000"])])
    assert trial["runs"] == [job.run_id]
    assert json.loads((tmp_path / job.run_id / "result.json").read_text())["stage"] == "search"
    before = stored(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr("lmablate.launcher.pricing.CALIBRATION_SECONDS", 0.02)
    assert front_door("plan", plan, [*asked_for, "hydra.sweeper.trials=4"], study=plan_study) == 0
    printed = capsys.readouterr().out
    assert "search: 4 trials of sampler=tpe over" in printed
    assert "optim.lr  0.0001 to 0.01, log" in printed
    assert "4 runs, 2 done already, 2 to train" in printed
    assert "a trial still to be asked for" in printed
    assert "best so far: trial" in printed
    assert stored(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "hydra/sweeper=optuna", "norm=rms,layer", "seed=3"], "set that"),
        (["-m", "hydra/sweeper=optuna", "norm=rms,layer", "trainer.steps=4,8"], "the longest run would win"),
        (["-m", "hydra/sweeper=optuna", "norm=rms", "hydra.sweeper.space={norm: [rms,layer]}"], "say it once"),
        (["-m", "hydra/sweeper=optuna", "norm=rms,layer", "hydra.sweeper.trails=4"], "trails"),
        (["hydra/sweeper=optuna", "hydra.sweeper.space={norm: [rms,layer]}"], "add -m"),
    ],
    ids=["seed", "length", "twice", "unknown", "no -m"],
)
def test_words_that_a_search_cannot_take_are_refused(words, says, tmp_path, capsys):
    assert front_door("train", train, [*words, f"results_dir={tmp_path}"], study=train_study) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("*/result.json"))


def test_no_verdict_takes_a_searched_run_for_an_evaluation(tmp_path):
    """A study that evaluates what a search was guided by: its runs of those seeds are left out, and said."""
    arms = {"rope": {"posemb": "rope"}, "none": {"posemb": "none"}}
    folder = tmp_path / "results"
    study = fake_results.write_fake_study(folder, "sanity", arms, effects={"none": 0.1}, claims=["R2"], seeds=range(6))

    def counted():
        studies = list(load_studies(folder).values())
        every = evidence(load_runs(folder), studies)
        (test,) = next(c for c in verdicts(every, load_history(folder), studies) if c["id"] == "R2")["tests"]
        return every, test["n"], test["runs"]["plus"] + test["runs"]["minus"]

    _, n, _ = counted()
    assert n == 6
    uses = [{**use, "stage": "search"} for use in study["runs"] if use["stage"] == "evaluate"][:2]
    found = {"schema_version": 1, "sweep": "found", "arms": {}, "search": {"trials": []}, "runs": uses}
    (folder / "studies" / "found.json").write_text(json.dumps(found))
    every, n, runs = counted()
    assert n == 4
    assert not {use["run_id"] for use in uses} & set(runs)
    arms = shown(every)
    assert len(arms) == 10
    said = notices(arms, arms_table(arms))
    assert any("2 runs of evaluation seeds are left out: a search was guided by them" in line for line in said)


def test_a_report_on_nothing_but_a_search_compares_nothing(tmp_path, capsys):
    fake_results.write_fake_results(
        tmp_path / "results", {"norm": ("rms", "layer"), "optim.lr": (1e-3, 2e-3)}, seeds=(1000,), sweep="search",
        change=lambda row: row.update(stage="search", arm="x"),
    )  # fmt: skip
    assert report_main([str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "trials of a search, each chosen by what others lost" in printed
    assert json.loads((tmp_path / "out" / "verdicts.json").read_text())["comparisons"] == []
    runs = load_runs(tmp_path / "results")
    plain = runs.copy()
    plain.loc[plain["norm"] == "rms", "stage"] = None
    plain.attrs.update(runs.attrs)
    assert set(shown(plain)["norm"]) == {"rms"}  # beside other runs they are left aside
