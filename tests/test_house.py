"""The rules of the house, held by reading the code itself."""

import ast
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from lmablate.config.overrides import explicit
from lmablate.core import axes
from lmablate.core.paths import CONF_DIR, ROOT, SWEEPS_DIR
from lmablate.model import components

PACKAGE = ROOT / "lmablate"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BOUNDARY = {
    "config/composition.py",
    "config/reuse.py",
    "config/quoting.py",
    "config/overrides.py",
    "cli/front_door.py",
    "launcher/hydra_launchers.py",
    "sweeper/plugin.py",
    "sweeper/optuna_plugin.py",
}  # where Hydra and OmegaConf may be met


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """The top-level packages a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_hydra_only_at_the_boundary_and_wandb_only_in_tracking():
    places = {"hydra": BOUNDARY, "omegaconf": BOUNDARY, "wandb": {"runs/tracking/follower.py"}}
    # It builds panels with wandb's library, and never runs beside training.
    places["wandb_workspaces"] = {"runs/tracking/dashboard_panels.py"}
    for path in SOURCES:
        found = imports(path)
        assert [name for name, allowed in places.items() if name in found and name_of(path) not in allowed] == [], path


def test_tables_are_made_in_one_place_which_takes_strings_as_they_are():
    for path in SOURCES:
        made = {node.module for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)}
        if name_of(path) != "core/console.py":
            assert not re.search(r"\.add_(row|column)\(|\bConsole\(", path.read_text()), path
            assert not {"rich.markup", "rich.columns", "rich.tree", "rich.panel", "rich"} & made, path


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").rglob("*.py")), ids=name_of)
def test_parts_take_no_open_keywords_and_have_no_defaults_for_science(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{node.name} takes **{node.args.kwarg.arg}"
            if node.name == "__init__":
                assert not node.args.defaults, f"line {node.lineno}: a part has a default"
                assert not [d for d in node.args.kw_defaults if d is not None], (
                    f"line {node.lineno}: a part has a default"
                )
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
            made = [each for each in fields if "ClassVar" not in ast.unparse(each.annotation)]
            assert not [each for each in made if "default" in ast.unparse(each) or "field(" not in ast.unparse(each)]


def test_settings_default_to_none_and_to_nothing_else():
    kinds = {"Settings", "_Common", "_Text", "_Model", "_Trainer", "ModelRequest"}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            for field in node.body if any(isinstance(b, ast.Name) and b.id in kinds for b in bases) else []:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    assert isinstance(field.value, ast.Constant), f"{path}:{field.lineno}"
                    assert field.value.value is None, f"{path}:{field.lineno}"


@pytest.mark.parametrize("axis", axes.AXES)
def test_an_axis_is_a_group_and_its_files_name_the_modules_of_its_classes(axis):
    """A file that names a package would need an import in its __init__.py: a third edit."""
    home = "lmablate.model.norm" if axis == "stability" else f"lmablate.model.{axis}"
    for path in (CONF_DIR / axis).glob("*.yaml"):
        for target in re.findall(r"_target_: ([\w.]+)", path.read_text()):
            if not target.startswith("torch.nn.functional."):
                assert target.startswith(f"{home}."), f"{path.name} names {target}"
                assert components._import(target, axis).__module__ == target.rpartition(".")[0], path.name


STORED = {  # the class paths of configurations of the past; no option of today or later is added here
    "attention": "GroupedQuery Interleaved LatentAttention MultiHead MultiQuery Patterned SlidingWindow",
    "ffn": "Dense ExpertChoice HashRouting TokenChoice",
    "posemb": "ALiBi DynamicRoPE Learned LinearRoPE Llama3RoPE LongRoPE PosEmb RoPE Sinusoidal T5Bias TransformerXL YaRN",
}


@pytest.mark.parametrize("axis", STORED)
def test_class_paths_of_stored_configurations_resolve(axis):
    for name in STORED[axis].split():
        assert components._import(f"lmablate.model.{axis}.{name}", axis).__name__ == name


def test_every_option_says_what_it_is_and_how_to_call_it():
    for path in sorted(CONF_DIR.rglob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line]
        assert comments, f"{path}: no comment"
        if path.parent != CONF_DIR:
            call = f"{path.parent.relative_to(CONF_DIR).as_posix()}={path.stem}"
            assert call in comments[0], f"{path}: the first comment does not show {call}"


def test_nothing_depends_on_how_a_parameter_is_called_but_out_proj():
    """Decay goes by dimension, and init by the one tested contract."""
    text = (PACKAGE / "training/optim.py").read_text() + (PACKAGE / "training/trainer.py").read_text()
    assert "named_parameters" not in text
    assert set(re.findall(r'"(\w*proj)"', (PACKAGE / "model" / "init.py").read_text())) == {"out_proj"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "model" in p.parts], ids=name_of)
def test_the_model_knows_no_option_by_name(path):
    words = {option for axis in axes.AXES for option in axes.options(axis)} - {
        "none",
        "all",
        "gelu",
        "silu",
        "relu",
        "elu",
        "selu",
        "identity",
    }
    compared = [
        side.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare)
        for side in [node.left, *node.comparators]
        if isinstance(side, ast.Constant)
    ]
    assert not words & set(compared)


def test_starting_the_command_line_imports_nothing_heavy():
    heavy = ("torch", "wandb", "datasets", "pandas", "matplotlib")
    code = f"import lmablate.train, lmablate.cli.front_door, sys; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_training_imports_no_plotting_no_tables_no_datasets():
    code = (
        "import lmablate.training.trainer, lmablate.runs.run, lmablate.model, lmablate.launcher.worker, sys;"
        "print([m for m in ('wandb', 'datasets', 'pandas', 'matplotlib', 'seaborn', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_checking_a_configuration_does_not_load_torchs_compiler():
    """Making numbers on the meta device does, for more than a second."""
    code = (
        "import sys; from lmablate.config import compose;"
        "[compose([f'activation={a}', f'posemb={p}']) for a, p in (('swiglu', 'rope'), ('elu', 'sinusoidal'), ('gelu', 'transformer_xl'))];"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", sorted(SWEEPS_DIR.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_stored_sweep_says_its_question_and_has_its_analysis(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert "?" in lines[1]
    node = yaml.safe_load(path.read_text())
    assert set(node["sweep"].get("scales", ())) <= {path.stem for path in (CONF_DIR / "scale").glob("*.yaml")}
    own = [key for overrides in node["sweep"].get("scales", {}).values() for key in explicit(overrides)]
    of_the_size = {"tokenizer.vocab_size", "runtime.evaluations", "hydra/launcher"}  # conf/scale says these for all
    assert not of_the_size & set(own), "a stored sweep names what differs from its size, and nothing else"
    assert node["sweep"].get("seeds", {}).get("values") != 4, "four paired seeds are what every study has"
    assert (ROOT / "analysis" / path.name).with_suffix(".py").is_file()


def test_the_readme_shows_the_axes_as_they_are():
    """The table may lag behind options that are not committed."""
    done = subprocess.run(["git", "ls-files", "conf"], cwd=ROOT, capture_output=True, text=True)
    committed = set(done.stdout.split())
    readme = (ROOT / "README.md").read_text()
    renew = runpy.run_path(str(ROOT / "tools" / "axes_table.py"))["renew"]
    shown, there = (dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M)) for text in (readme, renew(readme)))
    for axis, words in there.items():
        stems = {word: f"conf/{axis}/{word.strip('*')}.yaml" for word in words.split(" · ")}
        said = shown[axis].split(" · ")
        due = [word for word, path in stems.items() if word in said or not committed or path in committed]
        assert due == said, "renew it with: python tools/axes_table.py README.md"
