"""Every file of docs/extend.md and of the README, as it stands there, in a user's folder."""

import re

import pytest

from lmablate.check import Subject, builds, counts
from lmablate.check.__main__ import main
from lmablate.check.small import training_record
from lmablate.core.axes import AXES
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR, ROOT
from lmablate.interop import to_hf
from lmablate.model import components

FILE = re.compile(r"`((?:conf|mypackage)/[\w/]+\.(?:yaml|py))`:\n\n```\w+\n(.*?)```", re.S)
PAGES = {"README.md": 2, "docs/extend.md": 18}


def free(path: str) -> str:
    """Another name for an option that somebody who followed the page has put into this checkout."""
    taken = path.startswith("conf/") and (CONF_DIR.parent / path).is_file()
    return path.replace(".yaml", "_of_the_page.yaml") if taken else path


OPTIONS = [
    tuple(free(path).removesuffix(".yaml").split("/")[1:])
    for path, _ in FILE.findall((ROOT / "docs/extend.md").read_text())
    if path.startswith("conf/")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("user")
    for page in PAGES:
        for path, text in FILE.findall((ROOT / page).read_text()):
            path = free(path)
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
    (place / "mypackage" / "__init__.py").touch()
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(components, "_trusted", {"mypackage"})


def test_every_axis_has_an_example_and_the_readmes_is_that_of_the_page():
    assert {axis for axis, _ in OPTIONS} == set(AXES)
    files = {page: dict(FILE.findall((ROOT / page).read_text())) for page in PAGES}
    assert {page: len(found) for page, found in files.items()} == PAGES
    assert files["README.md"].items() <= files["docs/extend.md"].items()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("axis", "option"), OPTIONS, ids=lambda word: word)
def test_it_composes_builds_and_trains(axis, option):
    subject = Subject(axis, option, ["trainer.steps=2"])
    assert builds(subject).status == counts(subject).status == "holds"
    assert len(training_record(subject.cfg).numbers) == 7
    if axis != "aspect_ratio":
        with pytest.raises(ConfigError, match=rf"{axis}={option} \(mypackage.*a part of your own"):
            to_hf(subject.model())


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("axis", "option"), OPTIONS, ids=lambda word: word)
def test_all_checks_hold(axis, option, capsys):
    code = main([f"{axis}={option}"])
    assert code == 0, capsys.readouterr().out
