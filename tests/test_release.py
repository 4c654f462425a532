"""A release: one version everywhere, a licence for every pin, issue templates that GitHub reads."""

import importlib.metadata
import importlib.util
import re

import pytest
import yaml

from lmablate import __version__
from lmablate.core.paths import ROOT

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("only a checkout is released", allow_module_level=True)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation["version"] == newest[1] == __version__ == importlib.metadata.version("lmablate")
    assert str(citation["date-released"]) == newest[2]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_every_pin_has_a_licence():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "tools" / "licences.py")
    licences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(licences)
    listed = licences.listed()
    assert list(listed) == licences.pins(), "renew it with: python tools/licences.py"
    assert "UNKNOWN" not in listed.values()


def test_issue_templates_have_what_github_needs():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
            assert len({field["id"] for field in form["body"]}) == len(form["body"])
