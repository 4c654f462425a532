"""An installed lmablate carries its configuration, sweeps and analysis, and runs from anywhere."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from corpus import QUICK, write_corpus
from own_package import write_package

from lmablate.core.paths import CONF_DIR, ROOT, SWEEPS_DIR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="only a checkout can be packaged"),
]


def run(*words, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel from the checkout, sdist, wheel from the sdist), built from a clean copy of what git tracks."""
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "tree"
    tree.mkdir()
    names = run("git", "-C", ROOT, "ls-files", "-z").split("\0")
    for name in filter(None, names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", tree)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (again,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "second", again)
    (second,) = (folder / "second").glob("*.whl")
    return wheel, sdist, second


def test_the_package_list_matches_the_tree():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lmablate").rglob("__init__.py")}
    assert listed == found | {"lmablate.conf", "lmablate.sweeps", "lmablate.analysis"}


def test_wheels_carry_every_module_yaml_template_and_analysis(built):
    wheel, _, second = built
    wanted = {f"lmablate/conf/{p.relative_to(CONF_DIR).as_posix()}" for p in CONF_DIR.rglob("*.yaml")}
    wanted |= {f"lmablate/sweeps/{p.name}" for p in SWEEPS_DIR.glob("*.yaml")}
    wanted |= {f"lmablate/analysis/{p.name}" for p in (ROOT / "analysis").glob("*.py")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "lmablate").rglob("*.*") if "__pycache__" not in p.parts}
    for path in (wheel, second):
        names = set(zipfile.ZipFile(path).namelist())
        assert wanted <= names, sorted(wanted - names)
        assert not [name for name in names if name.startswith(("tests/", "conf/", "src/"))]
        assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with the wheel installed into it, and an environment in which Python finds it first."""
    site = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, built[0])
    return site, {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("way", ["module", "console script"])
def test_an_installed_lmablate_trains_from_elsewhere(installed, tmp_path, way):
    site, environment = installed
    where = run(sys.executable, "-c", "import lmablate; print(lmablate.__file__)", env=environment, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    text = write_corpus(tmp_path / "text")
    program = (
        [sys.executable, "-m", "lmablate.train"]
        if way == "module"
        else [sys.executable, site / "bin" / "lmablate", "train"]
    )
    words = ["-m", "norm=rms,layer", *QUICK, f"data.paths={text}/*.txt", "results_dir=results"]
    run(*program, *words, env=environment, cwd=tmp_path)
    assert len(list((tmp_path / "results").glob("*/result.json"))) == 2
    run(sys.executable, "-m", "lmablate.train", "sweeps=norm_and_activation", *QUICK, f"data.paths={text}/*.txt", "results_dir=sweep",
        env=environment, cwd=tmp_path)  # fmt: skip
    run(sys.executable, "-m", "lmablate.report", "sweep", "--out", "page", env=environment, cwd=tmp_path)
    assert (tmp_path / "page" / "figures" / "norm_and_activation.png").is_file()


def test_a_package_of_ones_own_in_an_empty_folder(installed, tmp_path):
    """From a wheel: each of its parts trains, resumes, decodes, and is refused by export by name; edited, it is trained anew."""
    _, environment = installed
    module = write_package(tmp_path)
    text = write_corpus(tmp_path / "text")
    options = ["norm=users_largest", "activation=users_snake", "attention=users_gated", "ffn=users_maxout"]

    def lmablate(name, *words, code=0):
        command = [sys.executable, "-m", f"lmablate.{name}", *map(str, words), "--trust", "mypackage"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def train(option, *more):
        said = lmablate("train", option, *QUICK, f"data.paths={text}/*.txt", "results_dir=results", *more)
        return said, {path.parent for path in (tmp_path / "results").glob("*/result.json")}

    known = set()
    for option in options:
        said, after = train(option)
        assert "not as shipped" in said
        (run_dir,) = after - known
        known = after
        assert "to train" not in train(option)[0] or train(option)[1] == after
        lmablate("sample", run_dir, "--prompt", "in the", "--tokens", 4)
        assert option in lmablate("interop", run_dir, "--out", "export", code=2)
    module.write_text(module.read_text().replace("# my own", "# said otherwise"))
    assert all(train(option)[1] == known for option in options)
    module.write_text(module.read_text().replace("1e-3", "2e-3"))
    for option in options:
        assert len(train(option)[1] - known) == 1
        known = train(option)[1]
