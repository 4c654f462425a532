"""What commands print: tables that fit and show what they are given, streams that cannot end a run, progress."""

import io
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmablate.core import console, streams
from lmablate.core.console import Column, duration, table

COLUMNS = (
    Column("run", keep=True, left=True), Column("what", keep=True, wrap=True), Column("loss", keep=True),
    Column("status", left=True), Column("params"), Column("tokens/s"),
)  # fmt: skip


def printed(made, columns=console.UNLIMITED):
    out = io.StringIO()
    Console(file=out, width=columns).print(made)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def rows(*names):
    return [(f"{i:012x}", name, "3.8697", "completed", "1,053,824", "5,186") for i, name in enumerate(names)]


def test_a_table_drops_columns_from_the_right_and_says_which():
    wide = printed(table(COLUMNS, rows("rms swiglu", "layer gelu"), room=200))
    assert wide[0].split() == ["run", "what", "loss", "status", "params", "tokens/s"]
    narrow = printed(table(COLUMNS, rows("rms swiglu", "layer gelu"), room=50))
    assert narrow == [
        "run           what          loss  status",
        "000000000000  rms swiglu  3.8697  completed",
        "000000000001  layer gelu  3.8697  completed",
        "no room for: params, tokens/s",
    ]


@pytest.mark.parametrize("room", [1, 30, 46, 60, 80, 120])
def test_a_table_shortens_no_id_name_or_number(room):
    name = "data.paths=[tryout/a/*.txt,tryout/text/4.txt] norm=layer activation=gelu"
    lines = printed(table(COLUMNS, rows(name), room=room))
    text = " ".join(lines)
    assert "000000000000" in text and "3.8697" in text and "…" not in text
    pieces = "".join(line[14:].split("  3.8697")[0].strip() for line in lines[1:] if not line.startswith("no room"))
    assert pieces.replace(" ", "").startswith(name.replace(" ", ""))
    if room >= 46:  # there is room for an id, some of a name and a number
        assert max(map(len, lines)) <= room


def test_a_name_takes_several_lines_only_where_nothing_else_helps():
    name = "rms swiglu seed=1 optim.lr=0.003"
    assert len(printed(table(COLUMNS, rows(name), room=56))) == 3  # head, row, what was dropped
    assert len(printed(table(COLUMNS, rows(name), room=48))) == 4


@pytest.mark.parametrize("name", ["[/a/*.txt]", "[a/*.txt,b]", "[red]x[/]", ":smile:", "\\[x]", "\x1b[31mred"])
def test_strings_reach_the_terminal_as_they_are(name):
    shown = printed(table([Column(name), Column("what", wrap=True)], [(name, name)]))
    assert [line.count(console.plain(name)) for line in shown] == [1, 2]


def test_a_column_without_a_value_is_left_out():
    made = table([Column("run"), Column("why"), Column("step")], [("a", "", "1"), ("b", "", "")])
    assert printed(made)[0].split() == ["run", "step"]


def test_a_pipe_has_a_hundred_columns_and_columns_says_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console.width() == console.PIPE == 100
    monkeypatch.setenv("COLUMNS", "72")
    assert console.width() == 72


def test_prose_is_broken_between_words_and_a_command_so_that_a_shell_takes_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    words = [
        "lmablate",
        "train",
        "-m",
        "data.paths=a b/*.txt",
        *(f"model.n_layers={n}" for n in range(9)),
        "seed=" + "1" * 80,
    ]
    lines = console.next_command(*words).splitlines()
    assert all(len(line) <= 60 for line in lines[:-1]) and lines[1].startswith("next: lmablate train")
    assert shlex.split("\n".join(lines).replace("\\\n", " "))[1:] == words
    text = f"    {'word ' * 30}"
    folded = console.folded(text, 6).splitlines()
    assert max(map(len, folded)) <= 60 and folded[0].startswith("    word") and folded[1].startswith("      word")
    assert console.folded("short") == "short"


def test_nothing_is_coloured_where_that_is_unwanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    made = table([Column("state")], [("failed",)], styles=["red"])
    out = io.StringIO()
    Console(file=out, force_terminal=True).print(made)
    assert "failed" in out.getvalue() and "\x1b[31" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (3597, "1 h 00 min"), (7500, "2 h 05 min"),
     (3540, "59 min")],
)  # fmt: skip
def test_durations_are_words(seconds, words):
    assert duration(seconds) == words


def test_slow_work_says_how_far_it_is_and_quick_work_says_nothing(monkeypatch, capsys):
    now = SimpleNamespace(t=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now.t))
    for _ in console.progress(range(10), "quick"):
        now.t += 0.1
    assert capsys.readouterr().err == ""
    for _ in console.progress((i for i in range(10)), "models measured", 10):
        now.t += 5.0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "models measured: 1 of 10, 45 s left"
    assert 3 <= len(said) <= 6  # not one for each


def test_details_are_said_with_v_alone(monkeypatch):
    monkeypatch.setenv(console.VERBOSE, "0")
    assert console.detail() == logging.DEBUG
    assert console.own_flags(["-m", "norm=rms", "--rows", "-v"], "--rows") == (["-m", "norm=rms"], {"--rows", "-v"})
    assert console.detail() == logging.INFO


def test_a_current_folder_that_was_removed_is_said_in_words(monkeypatch, capsys):
    from lmablate import presets, train
    from lmablate.cli.front_door import main

    monkeypatch.setattr(os, "getcwd", lambda: os.readlink("/no such folder"))
    assert presets.main([]) == main("train", train.train, []) == 2
    assert capsys.readouterr().err.count("error: the current folder was removed: change to one that is there") == 2


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


class Ascii(io.StringIO):
    def write(self, text):
        return super().write(text.encode("ascii").decode())


def test_a_stream_that_fails_costs_what_is_shown_and_nothing_else():
    print("lost", file=streams.Guarded(Broken()), flush=True)
    shown = Ascii()
    print("rms · swiglu, caf\udce9", file=streams.Guarded(shown))
    assert shown.getvalue() == "rms \\xb7 swiglu, caf\\udce9\n"


SCRIPT = """
import sys
from lmablate.core.streams import guard_streams
guard_streams()
for i in range(3000):
    print(i, "\\u00b7", "caf\\udce9")
open(sys.argv[1], "w").write("trained")
"""


@pytest.mark.parametrize("out", ["closed pipe", "full disk", "nowhere"])
def test_whatever_becomes_of_stdout_the_work_is_done(out, tmp_path):
    done = tmp_path / "done"
    command = [sys.executable, "-S", "-c", SCRIPT, str(done)]  # without the packages, which it does not need
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(console.__file__).parents[1])}
    if out == "nowhere":
        words = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        run = subprocess.run(words, stderr=subprocess.PIPE, text=True, env=environment)
    elif out == "full disk":
        with open("/dev/full", "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    else:
        read, write = os.pipe()
        os.close(read)
        run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(write)
    assert run.returncode == 0 and done.read_text() == "trained"
    told = "stdout: No space left on device; the rest is not shown\n"
    assert run.stderr == (told if out == "full disk" else "")
