"""Figures: every state a results directory can be in draws, says what it must, and leaves pyplot alone."""

import os
import subprocess
import sys
from pathlib import Path

import fake_results
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lmablate.analysis import _style, curves, differences, norm_and_activation
from lmablate.core.errors import ConfigError
from lmablate.results import load_history, load_runs
from lmablate.results.arms import with_arms
from lmablate.stats import comparisons

ROOT = Path(__file__).parents[1]
FOUR_ACTIVATIONS = ("relu", "gelu", "silu", "swiglu")


def texts(figure):
    """Every piece of text that a figure shows."""
    figure.canvas.draw()
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        found += [
            axes.get_title(loc="left"),
            axes.get_xlabel(),
            axes.get_ylabel(),
            *(text.get_text() for text in axes.texts),
        ]
        found += [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return [text for text in found if text]


def frames(path):
    return load_runs(path), load_history(path)


def crosses(axes):
    return [line for line in axes.lines if line.get_marker() == "X"]


@pytest.fixture
def grid(tmp_path):
    fake_results.write_fake_results(tmp_path)
    return frames(tmp_path)


def test_norm_and_activation_shows_every_seed_and_says_what_is_equal(grid):
    runs, history = grid
    figure = norm_and_activation.figure(runs, history)
    left, right = figure.axes[:2]
    points = sorted(x for line in right.lines if line.get_marker() not in "|X" for x in line.get_xdata())
    assert points == pytest.approx(sorted(runs["val_loss"]))
    means = sorted(line.get_xdata()[0] for line in right.lines if line.get_marker() == "|")
    assert means == pytest.approx(sorted(runs.groupby(["norm", "activation"])["val_loss"].mean()))
    said = "\n".join(texts(figure))
    for words in (
        "2 seeds per arm",
        "819k training tokens per run",
        "parameters (equal within 0.2 %)",
        "unigram model reaches 5.934",
    ):
        assert words in said
    assert "nats per token" in right.get_xlabel()
    assert "nats per token" in left.get_ylabel()
    assert [text.get_text() for text in right.get_yticklabels()] == [
        "rms · swiglu",
        "layer · swiglu",
        "rms · gelu",
        "layer · gelu",
    ]


def test_loss_axis_leaves_out_the_start_and_keeps_the_end(grid):
    runs, history = grid
    bottom, top = norm_and_activation.figure(runs, history).axes[0].get_ylim()
    assert bottom < runs["val_loss"].min()
    assert runs["val_loss"].max() < top < fake_results.INIT_LOSS - 1


def test_diverged_runs_are_crosses_and_counted_in_the_label(tmp_path):
    lost = {("none", 0), ("none", 1)}
    fake_results.write_fake_results(
        tmp_path,
        {"norm": ("rms", "none")},
        seeds=(0, 1, 2),
        diverged=lambda row: (row["choices"]["norm"], row["seed"]) in lost,
    )
    left, right = norm_and_activation.figure(*frames(tmp_path)).axes[:2]
    labels = [text.get_text() for text in right.get_yticklabels()]
    assert labels == ["rms", "norm none (2 of 3 diverged)"]
    assert len(crosses(left)) == 2
    assert len(crosses(right)) == 1
    assert crosses(left)[0].get_ydata()[0] == left.get_ylim()[1]


def test_arms_keep_their_colour_in_every_figure(grid):
    runs, history = grid
    named = with_arms(runs)
    expected = _style.arm_styles(named["arm"])
    legend = curves.loss_curves(runs, history).legends[0]
    drawn = dict(
        zip(
            [text.get_text() for text in legend.get_texts()],
            [line.get_color() for line in legend.get_lines()],
            strict=True,
        )
    )
    assert drawn == {arm: look.color for arm, look in expected.items()}
    right = norm_and_activation.figure(runs, history).axes[1]
    rows = [text.get_text() for text in right.get_yticklabels()]
    for line in right.lines:
        if line.get_marker() == "|":
            assert line.get_color() == expected[rows[int(line.get_ydata()[0])]].color


def test_24_arms_are_all_drawn_differently():
    styles = _style.arm_styles(f"arm {i}" for i in range(24))
    assert len({(look.color, look.line) for look in styles.values()}) == 24
    assert len({(look.color, look.marker) for look in styles.values()}) == 24


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ({}, {"seeds": (0,)}),
        ({"activation": FOUR_ACTIVATIONS, "norm_position": ("pre", "post", "sandwich", "output")}, {"seeds": (0,)}),
        ({"norm": ("none",)}, {"diverged": lambda row: True}),
        ({"norm": ("rms", "layer")}, {"steps": 40}),
        (
            {"norm": ("rms", "layer")},
            {"change": lambda row: row["data"].update(unigram_val_loss=4.4, entropy_floor=4.2)},
        ),
    ],
    ids=["one run", "16 arms, one seed", "all diverged", "short runs", "references near"],
)
def test_any_results_directory_draws(tmp_path, options, keywords):
    fake_results.write_fake_results(tmp_path, options, **keywords)
    runs, history = frames(tmp_path)
    for figure in (
        curves.comparison(runs, history, "title"),
        curves.comparison(runs),
        curves.loss_curves(runs, history),
        curves.final_losses(runs),
        differences.differences(comparisons(runs)),
    ):
        assert isinstance(figure, Figure)
        assert texts(figure) or figure.texts


def test_reference_lines_only_where_they_do_not_squash_the_arms(tmp_path):
    fake_results.write_fake_results(tmp_path / "far")
    fake_results.write_fake_results(tmp_path / "near", change=lambda row: row["data"].update(unigram_val_loss=4.38))
    spans = {}
    for name in ("far", "near"):
        axes = curves.final_losses(load_runs(tmp_path / name)).axes[0]
        spans[name] = ("a unigram model" in [text.get_text() for text in axes.texts], axes.get_xlim()[1])
    assert spans["far"][0] is False
    assert spans["far"][1] < 4.5
    assert spans["near"][0] is True


def test_empty_data_says_so(tmp_path):
    runs, history = frames(tmp_path)
    for figure in (
        norm_and_activation.figure(runs, history),
        curves.loss_curves(runs, history),
        curves.final_losses(runs),
    ):
        assert figure.texts[0].get_text() == "No finished runs to draw."
    assert "no paired difference" in differences.differences([]).texts[0].get_text()


def test_differences_draw_each_pair_and_its_interval(grid):
    found = comparisons(grid[0])
    axes = differences.differences(found).axes[0]
    points = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert points == [pytest.approx(row["differences"]) for row in found]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "rms − layer, at gelu", "rms − layer, at swiglu", "swiglu − gelu, at layer", "swiglu − gelu, at rms",
    ]  # fmt: skip


def test_figures_leave_pyplot_alone_and_are_reproducible(grid, tmp_path, monkeypatch):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "no number")
    before = dict(mpl.rcParams)
    written = [_style.save(norm_and_activation.figure(*grid), tmp_path / name)[1].read_bytes() for name in ("a", "b")]
    assert written[0] == written[1]
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    users = {
        "text.usetex": True,
        "lines.markersize": 30,
        "axes.facecolor": "red",
        "svg.fonttype": "path",
        "axes.unicode_minus": False,
    }
    with mpl.rc_context(users):  # as a matplotlibrc would set them
        assert _style.save(norm_and_activation.figure(*grid), tmp_path / "c")[1].read_bytes() == written[0]
        assert mpl.rcParams["text.usetex"]


@pytest.mark.slow
def test_script_writes_png_and_svg(tmp_path):
    fake_results.write_fake_results(tmp_path / "results", seeds=(0,))
    words = [sys.executable, "-m", "lmablate.analysis.norm_and_activation"]
    done = subprocess.run(
        [*words, tmp_path / "results", "--out", tmp_path / "new" / "fig.png"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "fig.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "new" / "fig.svg").read_text()


def test_script_says_what_is_wrong_with_the_folder(tmp_path, capsys):
    assert norm_and_activation.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "fig")]) == 2
    assert "no such folder" in capsys.readouterr().err


NOTEBOOKS = sorted(path.stem for path in (ROOT / "analysis").glob("*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_no_outputs_and_its_text_twin_says_the_same(name):
    import jupytext
    import nbformat

    notebook = nbformat.read(ROOT / "analysis" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "clear the notebook's outputs before committing it"
        assert cell.get("execution_count") is None
    twin = jupytext.read(ROOT / "analysis" / f"{name}.md")
    both = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, twin)]
    assert both[0] == both[1], "run make notebooks"


def execute(name, tmp_path, monkeypatch, **environment):
    """The notebook, executed in this interpreter, whatever "python3" is registered for the user."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "analysis" / f"{name}.ipynb", as_version=4)
    manager = AsyncKernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    for key, value in {"LMABLATE_RESULTS": str(tmp_path / "results"), **environment}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def kinds(notebook):
    return [kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", {})]


def test_start_notebook_finds_the_runs_and_shows_every_arm(tmp_path, monkeypatch):
    """Opened in a folder beside the results; one of its arms is a key that is null."""
    fake_results.write_fake_results(tmp_path / "results", {"optim.grad_clip": [None, 0.05]}, steps=80)
    (tmp_path / "analysis").mkdir()
    notebook = execute("start", tmp_path / "analysis", monkeypatch, LMABLATE_RESULTS="")
    assert "text/html" in kinds(notebook)
    assert kinds(notebook).count("image/png") == 3 and "sweeps=norm_and_activation" in str(notebook.cells)
    (table,) = [cell.outputs[0]["data"]["text/plain"] for cell in notebook.cells if "groupby" in cell.source]
    assert "grad_clip 0.05" in table and "grad_clip -" in table


def test_settings_that_keep_matplotlib_from_starting_cost_nothing(monkeypatch, tmp_path):
    import builtins

    import lmablate.analysis as package

    tried = []

    def start(name, *rest):
        if name == "matplotlib":
            tried.append((os.environ.get("MPLBACKEND"), os.environ.get("MATPLOTLIBRC"), Path.cwd()))
            if len(tried) == 1:
                raise ValueError("Key backend: 'nonsense' is not a valid value")
            return None
        return real(name, *rest)

    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(builtins, "__import__", start)
    package._start_matplotlib()
    assert tried == [("nonsense", None, tmp_path), (None, os.devnull, ROOT / "analysis")]
    assert (os.environ["MPLBACKEND"], os.environ.get("MATPLOTLIBRC"), Path.cwd()) == ("nonsense", None, tmp_path)


real = __import__


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_nothing_private(name):
    assert "analysis._" not in (ROOT / "analysis" / f"{name}.md").read_text()


def test_runs_of_a_grid_are_told_apart_where_a_study_would_name_its_arms(tmp_path):
    from lmablate.analysis import _studies, length

    fake_results.write_fake_results(tmp_path, {"activation": ["swiglu", "gelu"]}, seeds=(0, 1), steps=40)
    runs = load_runs(tmp_path)
    assert sorted(_studies.arm_of(runs)) == ["gelu", "gelu", "swiglu", "swiglu"]
    study = _studies.load(str(tmp_path), "norm_and_activation")
    assert set(study["arm"]) == {"gelu", "swiglu"} and set(study["stage"]) == {"evaluate"}
    assert list(_studies.arm_of(runs.assign(arm=["a", None, None, "d"])))[::3] == ["a", "d"]
    rows = [
        {"run_id": run_id, "text": "t", "text_fingerprint": "f", "changes": "", "train_length": 16, "length": 16 * times,
         "times": times, "stride": 16 * times, "sliding": False, "nats_per_token": 3.0 + times, "tokens": 9, "start": 0, "end": 1}
        for run_id in runs["run_id"] for times in (1, 2)
    ]  # fmt: skip
    drawn = length.by_length(runs, pd.DataFrame(rows), pd.DataFrame(rows))
    names = {text.get_text() for text in drawn.axes[3].get_legend().get_texts()}
    assert {"gelu", "swiglu"} <= names and "no arm" not in names
    width = drawn.get_figwidth() * drawn.dpi
    drawn.draw_without_rendering()
    assert all(
        axes.title.get_window_extent().x1 < width and axes._left_title.get_window_extent().x1 < width
        for axes in drawn.axes
    )


def test_results_are_found_in_the_notebooks_folder_or_above_it(tmp_path, monkeypatch):
    from lmablate.analysis.walk import Question, arm_colours, results_folder

    monkeypatch.delenv("LMABLATE_RESULTS", raising=False)
    (tmp_path / "results").mkdir()
    (tmp_path / "analysis").mkdir()
    for here in (tmp_path, tmp_path / "analysis"):
        monkeypatch.chdir(here)
        assert results_folder() == str(tmp_path / "results")
    monkeypatch.setenv("LMABLATE_RESULTS", "elsewhere")
    assert results_folder() == "elsewhere"
    with pytest.raises(ConfigError, match=r"no such stored sweep; write sweeps/mine\.yaml"):
        Question(str(tmp_path / "results"), "mine")
    assert "lmablate train sweeps=norm scale=laptop" in Question(str(tmp_path / "results"), "norm")._repr_html_()
    assert arm_colours(pd.DataFrame({"arm": ["b", "a", "a"]})) == {"a": _style.PALETTE[0], "b": _style.PALETTE[1]}


@pytest.mark.slow
def test_the_lecture_notebook_runs_on_published_results(tmp_path, monkeypatch):
    from lmablate.archive import main as archive
    from lmablate.core.paths import SWEEPS_DIR

    for sweep in ("activation", "head_dim"):
        archive(["restore", str(ROOT / "docs" / "results" / "archive-v1" / sweep), str(tmp_path / "results")])
    notebook = execute("lecture", tmp_path, monkeypatch)
    shown = str([output for cell in notebook.cells for output in cell.get("outputs", ())])
    asked = {path.stem for path in SWEEPS_DIR.glob("*.yaml")} - {"norm_and_activation", "skills"}
    named = {cell.source.split('"')[1] for cell in notebook.cells if cell.source.startswith("question = ")}
    assert named >= asked, "a sweep is missing in the walk"
    assert kinds(notebook).count("image/png") == len(named)
    assert "supported" in shown and "sweeps=kv_heads scale=laptop" in shown


def test_more_arms_than_a_page_holds_are_cut_and_it_is_said(tmp_path):
    fake_results.write_fake_results(tmp_path, {"optim.lr": [i / 1000 for i in range(1, 63)]}, seeds=(0,), steps=40)
    runs, history = frames(tmp_path)
    axes = curves.final_losses(runs).axes[0]
    assert axes.get_title(loc="left") == "Final validation loss, each seed (the best 60 of 62 arms)"
    assert len(axes.get_yticklabels()) == 60
    assert len(curves.loss_curves(runs, history).legends[0].get_texts()) == 60
    assert "36 of 1891 comparisons drawn" in differences.differences(comparisons(runs)).get_supxlabel()


def test_names_of_many_columns_stand_in_lines_and_leave_the_axes_their_room(tmp_path):
    options = {"posemb": ["rope", "learned"], "model.qkv_bias": [True, False], "optim.beta2": [0.95, 0.99]}
    more = {"activation": ["swiglu", "geglu"], "optim.grad_clip": [1.0, 0.5], "optim.weight_decay": [0.1, 0.2]}
    fake_results.write_fake_results(tmp_path, options | more, seeds=(0,), steps=40)
    axes = (figure := curves.final_losses(frames(tmp_path)[0])).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert max(len(line) for name in names for line in name.split("\n")) <= 60
    figure.draw_without_rendering()
    assert axes.get_window_extent().width > 0.4 * figure.get_window_extent().width
