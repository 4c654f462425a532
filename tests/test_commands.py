"""One command: the list, the help of each, what is said to a mistyped one, and what Tab completes."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from fuzz.valid import commands as programs

from lmablate.__main__ import main
from lmablate.core import commands
from lmablate.core.paths import ROOT

VERBS = ("inspect", "scaling", "archive")  # whose options are those of their verbs
HEAVY = ("torch", "hydra", "pydantic", "pandas", "numpy", "rich", "matplotlib")

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of commands that other tests have imported


def test_the_list_has_every_command_fits_a_terminal_and_imports_nothing_heavy():
    script = f"import sys\nfrom lmablate.__main__ import main\nmain([])\nprint({set(HEAVY)} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *listed, loaded = done.stdout.splitlines()
    assert loaded == "set()"
    assert max(map(len, listed)) <= 80
    modules = {
        name.removesuffix(".__main__").removeprefix("lmablate.") for name in programs() if "analysis" not in name
    }
    named = {words[0] for line in listed if line.startswith("  ") and (words := line.split())}
    assert named == set(commands.COMMANDS) == modules - {"lmablate", "interop"} | {"export"}


def helped(command, capsys):
    module = ".".join(commands.source(command).relative_to(ROOT).with_suffix("").parts)
    door = importlib.import_module(module).main
    with suppress(SystemExit):  # of argparse
        assert door(["--help"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_the_first_screen_of_help_says_what_it_does_with_examples_and_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = helped(command, capsys)
    screen = lines[:24]
    assert screen[0] == commands.summary(command) + "."
    examples = [line for line in screen if line.startswith((f"  lmablate {command}", '  eval "$(lmablate'))]
    assert len(examples) >= 2 or command == "demo"
    assert [line for line in screen if line.startswith(f"usage: lmablate {command}")] and "options:" in screen
    assert [line for line in lines if len(line) > 80 and line not in examples] == []
    flags = {flag for line in examples for flag in re.findall(r"(?<= )--[a-z-]+", line)}
    assert (
        flags <= set(re.findall(r"--[a-z-]+", "\n".join(line for line in lines if line not in examples)))
        or command in VERBS
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "trian: no such command, did you mean train? lmablate lists them"),
        (["qqq"], 2, "qqq: no such command; lmablate lists them"),
        (["norm=rms"], 2, "overrides follow a command: lmablate train norm=rms"),
        (["--help"], 0, "Read the results:"),
        (["--version"], 0, "lmablate 0.2.0"),
        (["power", "--effect", "0.01", "--sd", "0.02"], 0, "seeds"),
        (["power", "--effect", "0.01"], 2, "give one spread"),
        (["archive"], 2, "usage: lmablate archive"),
    ],
)
def test_a_command_is_run_and_an_unknown_one_gets_the_nearest(words, code, says, capsys):
    assert main(words) == code
    told = capsys.readouterr()
    assert says in told.out + told.err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lmablate ", [f"{name} " for name in commands.COMMANDS]),
        ("lmablate st", ["status "]),
        ("lmablate archive ", ["save ", "restore "]),
        ("lmablate archive save --s", ["--sweep "]),
        ("lmablate status --retry st", ["stale ", "stopped "]),
        ("lmablate inspect t", ["time "]),
        ("lmablate inspect time --pa", ["--parts "]),
        ("lmablate sample 'a b", []),
        ("lmablate plan --r", ["--rows "]),
        ("lmablate train --cfg j", ["job "]),
        ("lmablate train optim.w", ["optim.weight_decay="]),
        ("lmablate train -m attention=sliding_window attention.w", ["attention.window="]),
        ("lmablate inspect time -m norm=rms,l", ["norm=rms,layer "]),
        ("lmablate train such=thing optim.", []),
    ],
)
def test_tab_completes_commands_options_and_overrides(line, found, capsys, monkeypatch):
    monkeypatch.setenv(commands.COMPLETE, line)
    monkeypatch.setattr(sys, "argv", ["lmablate"])
    main()
    assert [word for word in capsys.readouterr().out.split("\n") if word] == found


TYPED = {
    "lmablate trai": "train ",
    "lmablate train norm=la": "{}layer ",
    "lmablate train sweeps=norm_po": "{}norm_position ",
    "lmablate report --for": "--format ",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_completes(shell):
    """bash replaces what stands after the equals sign, zsh the whole word."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    ask = {
        "bash": 'COMP_LINE="$LINE" COMP_POINT=${#LINE}; word="${LINE##*[[:space:]]}"; '
        '_lmablate lmablate "${word##*=}"; echo "${COMPREPLY[@]}"',
        "zsh": 'compadd() { shift 4; print -l -- "$@"; }; words=(${=LINE}); CURRENT=$#words; PREFIX=$words[-1]; _lmablate',
    }[shell]
    script = 'complete() { :; }; compdef() { :; }; eval "$(lmablate completion $SHELL_NAME)"; ' + ask
    where = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    for line, completed in TYPED.items():
        environment = {**os.environ, "PATH": where, "LINE": line, "SHELL_NAME": shell}
        done = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True)
        key = re.search(r"\w+=", line)
        head = key[0] if key and shell == "zsh" else ""
        assert done.stdout.rstrip("\n") == completed.format(head), done.stderr
