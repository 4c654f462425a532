"""Dashboards: their specification names what runs really send, and an exported wandb sweep issues commands that run."""

import json
import socket
import sys
from itertools import product

import pytest
import yaml
from corpus import QUICK, write_corpus
from tracked import home_without_wandb, read_offline
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb_workspaces.reports.v2 import internal as report_model
from wandb_workspaces.workspaces import internal as workspace_model

from lmablate import dashboard
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.core.settings import BOOKKEEPING
from lmablate.dashboard import DashboardSweep, main
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.scheduler import run_jobs
from lmablate.runs.tracking import dashboard_panels

GRID = """\
# @package _global_
# Which rate?
sweep: {question: "Which rate?", claims: [], scales: {laptop: [trainer.steps=9]}}
hydra: {mode: MULTIRUN, sweeper: {params: {optim.lr: "1e-3,3e-3", model.qkv_bias: "null,true"}}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    return home_without_wandb(tmp_path, monkeypatch)


def run(*words):
    return main([*words, f"results_dir={socket.gethostname()}-results"])


@pytest.fixture
def built(tmp_path, monkeypatch, capsys):
    """A dry run of a sweep, once for all tests; it asks no server."""

    def refuse(*_):
        raise AssertionError("a dry run asks no server")

    def dry(*words):
        if words not in SPECS:
            out = tmp_path / "spec.json"
            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "connect", refuse)
                assert run(*words, "--dry-run", "--out", str(out)) == 0
            outline = capsys.readouterr().out
            assert "What it varies\n  parallel coordinates: What it varies\nCurves by " in outline
            assert "  curves: Validation loss (nats per token), by " in outline
            SPECS[words] = json.loads(out.read_text())
        return SPECS[words]

    return dry


SPECS = {}


def walk(node):
    """Every mapping in a specification."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def named(spec):
    """The names that a specification uses: of the history, of the configuration and of the summary."""
    history, config, summary = set(), set(), set()
    for node in walk(spec):
        if "metrics" in node and "xAxis" in node:
            history |= {*node["metrics"], node["xAxis"]}
            if "groupBy" in node:
                config.add(node["groupBy"].removesuffix(".value"))
        accessors = [node[key] for key in ("accessor", "yAxis") if isinstance(node.get(key), str)]
        accessors += [node["xAxis"]] if str(node.get("xAxis", "")).startswith("config:") else []
        for accessor in [*accessors, *node.get("columnOrder", ())]:
            section, _, name = accessor.partition(":")
            if section == "config":
                assert name.endswith(".value")
                config.add(name.removesuffix(".value"))
            elif section == "summary":
                summary.add(name)
        key = node.get("key", node if "section" in node else None)
        if isinstance(key, dict) and key.get("section") == "config":
            config.add(key["name"].removesuffix(".value"))
        if isinstance(key, dict) and key.get("section") == "summary":
            summary.add(key["name"])
    return history, config, summary


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What wandb's own files hold of a run."""
    folder = tmp_path_factory.mktemp("run")
    text = write_corpus(folder / "texts")
    words = [
        *QUICK,
        f"data.paths={text}/*.txt",
        f"results_dir={folder}/results",
        "runtime.device=cpu",
        "trainer.precision=fp32",
    ]
    cfg = compose([*words, "runtime.wandb=offline", "runtime.compile=false"])
    jobs, _ = prepare_jobs([cfg])
    assert run_jobs(jobs) == 0
    return read_offline(jobs[0].directory.path)


@pytest.mark.parametrize(
    "sweep", ["norm_position", "norm_and_activation", pytest.param("ff_ratio", marks=pytest.mark.slow)]
)
def test_names_are_those_that_runs_send(sweep, recorded, built):
    spec = built(sweep, *(["scale=laptop"] if sweep == "ff_ratio" else []))  # whose default size meets no budget
    history, config, summary = named(spec)
    assert {"tokens", "val_loss", "train_loss", "grad_norm", "val_bpb"} == history
    assert history <= {key for record in recorded["history"] for key in record}
    assert "optim.lr" in config and len(config) > 3
    assert config <= set(recorded["config"])
    assert "val_loss" in summary and summary <= set(recorded["summary"])
    assert recorded["group"] is None  # of no sweep; a sweep's runs carry its name, which is what is filtered by
    filters = [node for node in walk(spec) if node.get("key", {}).get("name") == "group"]
    assert filters and all(node["value"] == sweep for node in filters)


STUDY = DashboardSweep("tuned", "Which norm?", ("norm", "model.d_ff"), ("evaluate", "evaluate_shared"), True, "p")


def test_a_specification_is_the_librarys_own_and_does_not_change():
    first = dashboard.specification(STUDY, "", "p")
    assert dashboard.specification(STUDY, "", "p") == first
    assert dashboard.specification(STUDY, "us", "p")["report"]["project"] == {"entityName": "us", "name": "p"}
    view = workspace_model.View.model_validate(first["workspace"])
    again = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    assert again["spec"] == first["workspace"]["spec"]
    page = report_model.Spec.model_validate(first["report"]["spec"])
    blocks = json.loads(page.model_dump_json(by_alias=True, exclude_none=True))["blocks"]
    grids = [
        [one for one in made if one["type"] == "panel-grid"] for made in (blocks, first["report"]["spec"]["blocks"])
    ]
    assert len(grids[0]) == 4 and grids[0] == grids[1]


def panels(spec, kind):
    return [node for node in walk(spec) if node.get("viewType") == kind]


def stages(spec):
    return {
        (n["op"], n["value"])
        for n in walk(spec)
        if isinstance(n.get("key"), dict) and n["key"]["name"] == "stage" and "op" in n
    }


def test_a_study_shows_arms_with_bands_and_what_its_tuning_cost(built):
    spec = built("norm_position")
    curves = panels(spec["workspace"], "Run History Line Plot")
    assert {curve["config"]["groupBy"] for curve in curves} == {"arm.value"}
    for curve in [*curves, *panels(spec["report"], "Run History Line Plot")]:
        assert (curve["config"]["groupAgg"], curve["config"]["groupArea"]) == ("mean", "stddev")
    assert stages(spec["workspace"]) == {("=", "evaluate")}
    assert stages(spec["report"]) == {("!=", "tune"), ("=", "tune")}
    (rates,) = panels(spec, "Scatter Plot")
    assert (rates["config"]["xAxis"], rates["config"]["yAxis"]) == ("config:optim.lr.value", "summary:val_loss")
    assert rates["config"]["xAxisLogScale"] is True
    grouped = [node["grouping"] for node in walk(spec["report"]) if node.get("grouping")]
    assert [[key["name"] for key in one] for one in grouped] == [["arm.value"]]


def test_a_grid_is_grouped_by_what_it_varies(built):
    spec = built("norm_and_activation")
    assert {c["config"]["groupBy"] for c in panels(spec["workspace"], "Run History Line Plot")} == {
        "norm.value",
        "activation.value",
    }
    grouped = [node["grouping"] for node in walk(spec["report"]) if node.get("grouping")]
    assert [[key["name"] for key in one] for one in grouped] == [["norm.value", "activation.value"]]
    assert not panels(spec, "Scatter Plot")  # it has one learning rate
    assert not stages(spec)
    (axes, *_) = panels(spec["workspace"], "Parallel Coordinates Plot")
    accessors = [column["accessor"] for column in axes["config"]["columns"]]
    assert accessors == ["config:norm.value", "config:activation.value", "config:optim.lr.value", "summary:val_loss"]


def commands(node):
    """The words of every command that wandb's agent would issue for a sweep configuration, as its own code fills them in."""
    grid = node["parameters"]
    for values in product(*(one["values"] for one in grid.values())):
        filled = create_sweep_command_args({"args": {key: {"value": v} for key, v in zip(grid, values, strict=True)}})
        words = []
        for word in node["command"]:
            name = word.removeprefix("${").removesuffix("}")
            words += (
                filled[name]
                if name in filled
                else [{"program": node["program"], "interpreter": "python"}.get(name, word)]
            )
        yield words


def jobs(argv):
    """The configurations of a command, by the words that Hydra gave each."""
    from lmablate.cli.front_door import main as front_door

    found = []
    assert front_door("x", lambda configs, _: found.extend(configs) or 0, argv) == 0
    return found


def science(cfg):
    return cfg.model_dump(exclude=set(BOOKKEEPING - {"sweep", "choices"}))


@pytest.mark.parametrize(
    ("sweep", "scale"), [("rates", "laptop"), pytest.param("norm_and_activation", "gpu", marks=pytest.mark.slow)]
)
def test_an_exported_sweep_issues_the_commands_of_the_grid(sweep, scale, tmp_path, home):
    (home / "work" / "sweeps").mkdir()
    (home / "work" / "sweeps" / "rates.yaml").write_text(GRID)
    expected = jobs([f"sweeps={sweep}", f"scale={scale}", f"results_dir={tmp_path}"])
    node = yaml.safe_load(dashboard.wandb_sweep_text(dashboard._of_grid(sweep, expected), None, "p"))
    assert (node["method"], node["project"], node["metric"]) == ("grid", "p", {"name": "val_loss", "goal": "minimize"})
    issued = list(commands(node))
    assert len(issued) == len(expected)
    picked = range(0, len(issued), max(1, len(issued) // 2))
    wanted = [science(cfg) for cfg in expected]
    for i in picked:
        assert issued[i][:4] == ["${env}", "python", "-m", "lmablate.train"]
        assert science(compose(issued[i][4:])) in wanted
    assert len({tuple(words) for words in issued}) == len(issued)


def test_a_study_is_no_wandb_grid():
    with pytest.raises(ConfigError, match="sweeps=tuned is a study"):
        dashboard.wandb_sweep_text(STUDY)


@pytest.mark.slow
def test_the_command_writes_a_wandb_sweep(tmp_path):
    assert run("norm_and_activation", "--wandb-sweep", str(tmp_path / "sweep.yaml"), "--entity", "us") == 0
    node = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert node["entity"] == "us" and set(node["parameters"]) == {"norm", "activation", "seed"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["norm_and_activation", "--dry-run"], "--out FILE"),
        (["norm_and_activation", "--out", "x.json"], "--out needs --dry-run"),
        (["norm_and_activation"], "no wandb key is configured"),
        (["nothing", "--dry-run", "--out", "x.json"], "sweeps=nothing"),
        (["norm_and_activation", "--nope"], "--nope"),
    ],
)
def test_errors_in_words(words, said, capsys):
    assert run(*words) == 2
    assert said in capsys.readouterr().err


def test_the_missing_library_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.expr", None)
    monkeypatch.delitem(sys.modules, "lmablate.runs.tracking.dashboard_panels")
    monkeypatch.delattr("lmablate.runs.tracking.dashboard_panels")
    assert run("norm_and_activation", "--dry-run", "--out", str(tmp_path / "x.json")) == 2
    assert dashboard.INSTALL in capsys.readouterr().err


def test_trouble_with_the_server_is_one_paragraph(monkeypatch):
    def lost(*_):
        raise OSError("no route\nto host")

    monkeypatch.setattr(dashboard_panels, "publish", lost)
    with pytest.raises(ConfigError, match=r"wandb took no dashboard for us/p \(OSError: no route to host\)"):
        dashboard._publish(STUDY, "us", "p")
