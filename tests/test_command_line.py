"""The command line as a user meets it: grids, reruns, exit codes, and errors in words."""

import json

import pytest
from corpus import QUICK, command, here, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.results import load_history, load_runs


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A 2 x 2 grid trained once: (folder, overrides, the finished command)."""
    folder = tmp_path_factory.mktemp("grid")
    text = write_corpus(folder / "text")
    words = (
        "-m",
        "norm=rms,layer",
        "activation=swiglu,gelu",
        *QUICK,
        f"data.paths={text}/*.txt",
        f"results_dir={folder}/results",
    )
    return folder, words, command("lmablate.train", *words)


def test_a_grid_trains_every_combination(grid):
    folder, _, done = grid
    assert done.returncode == 0, done.stderr
    runs = load_runs(folder / "results")
    assert sorted(zip(runs["norm"], runs["activation"], strict=True)) == [
        ("layer", "gelu"),
        ("layer", "swiglu"),
        ("rms", "gelu"),
        ("rms", "swiglu"),
    ]
    assert (runs["status"] == "completed").all()
    assert (runs["val_loss"] < runs["init_val_loss"]).all()
    assert "val loss" in done.stdout


def test_every_run_has_its_files(grid):
    folder, _, _ = grid
    for path in (folder / "results").glob("*/result.json"):
        row = json.loads(path.read_text())
        assert path.parent.name == row["run_id"]
        names = {p.name for p in path.parent.iterdir()}
        assert names >= {"config.yaml", "history.jsonl", "result.json", "checkpoint", "status.json"}
        assert len(list((path.parent / "checkpoint").iterdir())) == 1
        assert row["provenance"]["threads"] == 1
        assert row["numerics"]["device"] == "cpu"


def test_history_is_on_a_tokens_axis_and_ends_with_the_result(grid):
    folder, _, _ = grid
    runs, history = load_runs(folder / "results"), load_history(folder / "results")
    last = history.sort_values("step").groupby("run_id").last()
    for row in runs.itertuples():
        assert last.loc[row.run_id, "tokens"] == row.tokens == 12 * 4 * 32
        assert last.loc[row.run_id, "val_loss"] == row.val_loss
        mine = history[history["run_id"] == row.run_id]
        assert mine.loc[mine["step"] == 0, "val_loss"].item() == row.init_val_loss


def test_running_again_trains_nothing(grid):
    folder, words, _ = grid
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").glob("*/result.json")}
    again = here("lmablate.train", *words, env={"LMABLATE_START": "spawn"})  # no process waits for work
    assert again.returncode == 0
    assert "4 done already, 0 to train" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "results").glob("*/result.json")}


@pytest.mark.slow
def test_a_larger_grid_trains_only_what_is_missing(grid):
    folder, words, _ = grid
    plan = here("lmablate.plan", "-m", "norm=rms,layer,none", *words[2:])
    assert plan.returncode == 0, plan.stderr
    assert "6 runs, 4 done already, 2 to train" in plan.stdout
    assert len(list((folder / "results").glob("*/result.json"))) == 4


@pytest.mark.slow
def test_duplicates_are_merged(grid):
    _, words, _ = grid
    plan = here("lmablate.plan", *words, "seed=0", "norm_position=sandwich,double")
    assert plan.returncode == 0, plan.stderr
    assert "4 runs" in plan.stdout
    assert "asked 2 times" in plan.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("norm=batch", "norm=batch: no such option; norm has "),
        ("nrom=rms", "did you mean norm"),
        ("model.d_modle=64", "did you mean model.d_model"),
        ("model.n_layers=minus", "model.n_layers=minus"),
        ("optim.lr=-1", "no learning rate: give a positive number"),
        ("+no_such.key=1", "no_such: unknown key"),
        ("+norm.epz=1", "RMSNorm takes eps"),
        ("norm.eps=0", "norm.eps=0"),
        ("data=files", "data.paths="),
        ("model.n_heads=3", "use model.d_model=126 or 129"),
        ("posemb=rope model.head_dim=7", "even model.head_dim"),
        ("attention=mha model.n_kv_heads=2", "attention=gqa"),
        ("attention=gqa model.n_kv_heads=3", "does not divide"),
        ("attention=mqa model.n_kv_heads=2", "attention=gqa"),
        ("norm_position=post block_layout=parallel2", "block_layout=parallel,"),
        ("activation=gelu model.gated_scale=1.0", "activation=gelu does not gate"),
        ("model.d_ff=64 model.ff_ratio=2", "not both"),
        ("trainer.steps=2 trainer.tokens=100", "not both"),
        ("aspect_ratio=r32 model.d_model=64", "drop one of them"),
        ("schedule=constant +schedule.final_fraction=0.5", "no final_fraction"),
        ("norm._target_=os.system", "a class is chosen by an option"),
        ("runtime.device=mps", "use runtime.device=cpu"),
        ("sweeps=a,b", "one stored sweep at a time"),
        ("sweeps=unknown", "unknown"),
        ("sweeps=norm_and_activation scale=huge", "scale=huge: no such option; scale has gpu, lab, laptop"),
        ("sweeps=norm_and_activation scale=laptop,gpu", "one size at a time"),
    ],
)
def test_bad_input_is_refused_in_words(words, says):
    with pytest.raises(ConfigError, match=r"(?s).*") as caught:
        compose(words.split())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("run", "words"),
    [(command, "-m norm=rms,batch"), (here, "data=files data.paths=/nowhere/*.txt")],  # the exit code of a real process
    ids=["grid", "one run"],
)
def test_bad_input_exits_2_without_a_trace_and_without_training(run, words, tmp_path):
    done = run("lmablate.train", *words.split(), f"results_dir={tmp_path}/results")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.glob("results/*/config.yaml"))


def test_a_trace_is_shown_when_asked_for(tmp_path):
    done = command("lmablate.train", "norm=batch", env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("grid_words", [(), ("-m", "seed=0,1")], ids=["one run", "grid"])
def test_an_unwritable_results_directory_is_refused(tmp_path, grid_words):
    (tmp_path / "file").write_text("not a folder")
    done = here(
        "lmablate.train",
        *grid_words,
        *QUICK,
        f"data.paths={write_corpus(tmp_path / 'text')}/*.txt",
        f"results_dir={tmp_path}/file/results",
        env={"LMABLATE_START": "spawn"},
    )
    assert done.returncode == 2
    assert "results_dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_failing_job_does_not_stop_the_others(grid, tmp_path):
    """A part of the user's own that breaks at the first step: the other job ends well, and the exit code is 1."""
    _, words, _ = grid
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from torch import nn\n"
        "class Broken(nn.Module):\n"
        "    def __init__(self, d_model):\n        super().__init__()\n"
        "    def forward(self, x):\n        raise RuntimeError('deliberately broken')\n"
    )
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    (tmp_path / "conf" / "norm" / "broken.yaml").write_text("# Breaks. norm=broken\n_target_: mine.Broken\n")
    rest = [word for word in words[3:] if not word.startswith("results_dir")]
    done = command(
        "lmablate.train",
        "-m",
        "norm=broken,rms",
        *rest,
        f"results_dir={tmp_path}/results",
        "--trust",
        "mine",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert len(list((tmp_path / "results").glob("*/result.json"))) == 1
    assert "deliberately broken" in done.stderr
    assert "norm=broken" in done.stderr
    assert "log.txt" in done.stderr


def test_a_variant_of_the_users_own_needs_one_yaml_and_one_class(grid, tmp_path):
    _, words, _ = grid
    (tmp_path / "scaled_norms.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class MaxNorm(nn.Module):\n"
        "    def __init__(self, d_model, *, eps: float):\n        super().__init__()\n        self.eps = eps\n"
        "    def forward(self, x):\n        return x / (x.abs().amax(-1, keepdim=True) + self.eps)\n"
    )
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    (tmp_path / "conf" / "norm" / "users_own.yaml").write_text(
        "# Largest entry. norm=users_own\n_target_: scaled_norms.MaxNorm\neps: 1.0e-6\n"
    )
    rest = [word for word in words[3:] if not word.startswith(("results_dir", "activation"))]
    arguments = ("norm=users_own", *rest, f"results_dir={tmp_path}/results")
    refused = here("lmablate.train", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--trust scaled_norms" in refused.stderr
    done = command("lmablate.train", *arguments, "--trust", "scaled_norms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_runs(tmp_path / "results")["norm"].tolist() == ["users_own"]
