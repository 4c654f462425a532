"""The README and the site: short, whole, and true. Every command of theirs is parsed here, and run at a tiny size in test_docs_runs.py."""

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.valid import doors
from hydra.core.override_parser.overrides_parser import OverridesParser
from pages import DOCS, FENCE, README, blocks, guides, links, mean_words, name, pages, read

from lmablate.cli.flags import parse_flags
from lmablate.config.hints import known_keys, options_of
from lmablate.config.overrides import rewrite
from lmablate.core.paths import ROOT

TOOLS = ROOT / "tools"
FRONT_DOOR = ("train", "plan", "budget")
COMMANDS = [
    pytest.param(command, id=f"{block.page}: {command[:60]}")
    for page in guides()
    for block in blocks(page)
    for command in block.commands
]


def test_the_readme_fits_on_a_screen_or_three():
    assert len(read(README).splitlines()) <= 160


@pytest.mark.parametrize("page", guides(), ids=name)
def test_sentences_are_short(page):
    if len(re.findall(r"\w+", read(page))) > 100:  # index.md is the README's first screen
        assert mean_words(read(page)) <= 17


@pytest.mark.parametrize("page", [README, *pages()], ids=name)
def test_every_relative_link_leads_to_a_file(page):
    targets = [link.partition("#")[0] for link in links(read(page)) if not re.match(r"\w+:|#", link)]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_every_page_stands_in_one_table_of_contents():
    listed: list[str] = []
    for page in pages():
        for _, kind, body in FENCE.findall(read(page)):
            if kind.strip() == "{toctree}":
                names = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith(":")]
                found = [path for one in names for path in page.parent.glob(f"{one}.md")]
                assert all(any(page.parent.glob(f"{one}.md")) for one in names), (name(page), names)
                listed += [name(path.resolve()) for path in found]
    assert sorted(listed) == sorted({name(page) for page in pages()} - {"docs/index.md"})


def test_every_stored_sweep_is_in_the_table_of_questions():
    """Those that are committed: a sweep of the user's own is not the page's."""
    table = read(DOCS / "guides" / "studies.md")
    done = subprocess.run(["git", "ls-files", "sweeps"], cwd=ROOT, capture_output=True, text=True)
    stems = [path.stem for path in map(Path, done.stdout.split()) if path.suffix == ".yaml"]
    assert [stem for stem in stems if f"`{stem}`" not in table] == [
        stem for stem in stems if stem == "norm_and_activation"
    ]


# The configuration reference


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(TOOLS))
    yield runpy.run_path(str(TOOLS / "configuration.py"))
    sys.path.remove(str(TOOLS))


def test_the_configuration_reference_is_that_of_today(reference):
    """It may lag behind options that are not committed."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "conf", "lmablate"], cwd=ROOT, capture_output=True, text=True
    )
    if changed.stdout:
        pytest.skip("conf/ or lmablate/ has changes that are not committed")
    stored = read(DOCS / "reference" / "configuration.md")
    assert stored == reference["page"](), "renew it with: python tools/configuration.py docs/reference/configuration.md"


def test_every_key_of_the_schema_has_a_row_with_type_and_meaning(reference):
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \|", read(DOCS / "reference" / "configuration.md"), re.M
    )
    table = {key: (kind, meaning) for key, kind, _, meaning in rows}
    groups = set(re.findall(r"^### (\w+)$", read(DOCS / "reference" / "configuration.md"), re.M))
    due = {key for key in reference["_types"]() if key not in groups and "texts." not in key}
    assert due - set(reference["SET_BY_US"]) - set(table) == set()
    assert [key for key, (kind, meaning) in table.items() if not kind.strip() or not meaning.strip()] == []


def test_the_table_of_relative_positions_is_what_its_code_prints(capsys):
    text = read(DOCS / "results/relative_positions/README.md")
    exec(next(body for _, kind, body in FENCE.findall(text) if kind == "python"), {})  # noqa: S102
    printed = dict(re.findall(r"^(\w+ torch\.\w+) (.+)$", capsys.readouterr().out, re.M))
    for row, key in {
        "RoPE": "rope",
        "ALiBi": "alibi",
        "T5's bias": "t5",
        "sinusoidal": "sinusoidal",
        "learned": "learned",
    }.items():
        stored = [float(cell) for cell in re.search(rf"^\| {row} \|(.+)\|$", text, re.M)[1].split("|")]
        now = [float(number) for dtype in ("float32", "bfloat16") for number in printed[f"{key} torch.{dtype}"].split()]
        near = {"abs": 1e-5, "rel": 0.3}  # rounding differs between processors
        assert [*now[:4], now[-1]] == pytest.approx(stored, **near), row


# Commands


class _Parsed(BaseException):
    """Stops a command whose arguments are read."""


def test_every_block_of_commands_is_called_bash():
    """So that none escapes the tests below."""
    for page in guides():
        for _, kind, body in FENCE.findall(read(page)):
            assert (
                kind.strip() in ("bash", "{toctree}", "{include} ../README.md") or "python -m lmablate" not in body
            ), name(page)
        assert not re.search(r"^    .*python -m lmablate", read(page), re.M), name(page)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_read_by_its_program(command, monkeypatch):
    words = shlex.split(command.replace("$W", "model.n_layers=2").replace("<run_id>", "0123456789ab"), comments=True)
    if "lmablate." not in command or "--help" in words:
        return
    module = next(word for word in words if word.startswith("lmablate."))
    args = words[words.index(module) + 1 :]
    if module.partition(".")[2] in FRONT_DOOR:
        _check_overrides(args)
        return
    rooms = {room: door for door, room in doors().items()}
    place = rooms.get(module, module)
    if importlib.util.find_spec(
        f"{place}.__main__" if importlib.util.find_spec(place).submodule_search_locations else place
    ):
        place = f"{place}.__main__" if importlib.util.find_spec(place).submodule_search_locations else place
    kept, depth = argparse.ArgumentParser.parse_known_args, []

    def read_them(parser, *given, **named):
        depth.append(parser)
        found, rest = kept(parser, *given, **named)
        depth.pop()
        if not depth:
            assert not [word for word in rest if "=" not in word], rest
            raise _Parsed
        return found, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", read_them)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", read_them)
    with pytest.raises(_Parsed):
        importlib.import_module(place).main(args)


def _check_overrides(args):
    """The keys and options of a command line of Hydra's are there."""
    parsed = parse_flags(args)
    for override in OverridesParser.create().parse_overrides(rewrite(parsed.overrides)):
        key, options = override.key_or_group, options_of(override.key_or_group)
        assert key in known_keys() or options or key.startswith(("hydra.", "sweep.", "budget.reference")), key
        if options and isinstance(override.value(), str):
            assert override.value() in options or override.value() in ("max", "my_positions"), override.input_line
