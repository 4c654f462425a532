"""The floors of the house, and the page that shows them (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lmablate.core.paths import ROOT

PACKAGE = ROOT / "lmablate"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
COMMANDS = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
ANSWERS = re.findall(r"^\| ([^|]+\?) \| `([^`]+)` \| `(\w+)` \|$", PAGE, re.M)


def test_every_import_points_down():
    """The contracts of pyproject.toml, in which nothing is left out."""
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2]
    assert "ignore_imports" not in settings and "exclude_type_checking_imports = false" in settings
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


def test_the_page_names_every_room_and_command():
    floors = PAGE.partition("```")[2].partition("```")[0]
    assert [room for room in ROOMS if f"{room}/" not in floors] == []
    assert [command for command in COMMANDS if not re.search(rf"\b{command}\b", floors)] == []
    assert set(re.findall(r"(\w+)/(?:\s|$)", floors)) == set(ROOMS)


@pytest.mark.parametrize(("question", "file", "name"), ANSWERS, ids=[name for _, _, name in ANSWERS])
def test_a_reader_of_the_page_finds_what_it_is_asked_for(question, file, name):
    defined = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
    assert name in defined, question


def test_the_page_answers_ten_questions_and_the_walk_names_files_that_are_there():
    assert len(ANSWERS) >= 10
    walk = PAGE.partition("## The walk of a run")[2].partition("## Where is it?")[0]
    named = re.findall(r"`([\w/]+\.py)`", walk)
    assert len(named) >= 10
    assert [path for path in named if not (PACKAGE / path).is_file()] == []


def test_the_root_holds_commands_and_nothing_else():
    assert len(COMMANDS) <= 12
    for command in COMMANDS:
        text = (PACKAGE / f"{command}.py").read_text()
        assert 'if __name__ == "__main__":\n    sys.exit(main())' in text, command


def test_a_base_name_stands_twice_at_most():
    names = Counter(path.stem for path in PACKAGE.rglob("*.py"))
    assert {name: n for name, n in names.items() if n > 2 and name not in ("__init__", "__main__", "base")} == {}


def test_imports_stand_at_the_top_where_no_start_up_time_hangs_on_it():
    inside = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                ours = [
                    n
                    for n in ast.walk(node)
                    if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("lmablate")
                ]
                inside += len(ours)
    assert inside <= 200
