"""Ways to break a line that is right: its words, the files it reads, the environment, and where its output goes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Random = random.Random
NUMBERS = ["0", "-1", "1.5", "nan", "inf", "-inf", "1e3", "", "six", "0x10", "１２", "1_0", "None", "true", "null", "1,2", "[1]", "'5'",
           "1e-400", "${seed}", "${nothing}", "-0.0", "1e400", "{a:1}", "3-", "2**3"]  # fmt: skip
ODD = [
    "'", '"', "[", "]", "{", "}", "(", ")", ",", "，", "=", "==", " ", "\t", "\n", "\\", "$", "${", "~", "@", "#", "%", "%s", "é",
    "\u202e", "\x1b[31m", "\udce9", "日本", "🦙", ":", "../", "/", ";", "*", "?", "|", "&", "--", "-", "+", "++", "[/x]", "[bold]",
]  # fmt: skip
WORDS = ["", "norm=rms, layer", *"""
    - -- = --nothing -x norm norm= =rms norm=null norm=[rms] norm=1 ~norm ~model +norm=rms ++seed=1 +a.b=1
    hydra.run.dir=x hydra/launcher=gang hydra/launcher=nothing hydra/sweeper=study hydra/sweeper=optuna --multirun
    -m --cfg --cfg=job --info --config-name=x --config-dir=nothing --config-dir -cn -c --resolve --version --trust
    --trust=nothing --trust=os sweeps=nothing sweeps=norm sweeps=mine,norm preset=gpt2 preset=nothing scale=laptop
    scale=x results_dir= results_dir=/proc/none results_dir=text/doc00.txt results_dir=~/r data.paths=nothing/*.txt
    data.paths=[] data.paths=results tokenizer=pretrained tokenizer.path=rows.jsonl lr=1 n_layers=2 model=
    model.d_model seed=0,1 seed=1,,2 norm=rms, norm.eps=1,2 trainer={steps:3} model=null optim.lr=rule @file -v
    --out --out= --out=text --out=text/doc00.txt --out=/proc/x --json --help -h text rows.jsonl nothing
    results/nothing / . .. /dev/null ~/x --seed=-1 --top-k=0 --tokens=-3 --device=cuda --device=x --threads=0
    sweep.skip=norm=rms sweep.zip=norm,seed runtime.parallel=ddp runtime.wandb=online runtime.device=cuda
    runtime.threads=0 trainer.init_from=x diagnostics=standard tune=both
""".split()]  # fmt: skip
# Words that make a small command line train for long, and commands of which any other word does.
LONG = {"sweeps=norm", "preset=gpt2", "scale=laptop", "tune=both", "hydra/sweeper=optuna", "hydra/sweeper=study"}
ONLY = ("--only", "builds")  # of all checks of an option, which take a minute
FIXED = ("lmablate.demo",)
ENVIRONMENT: dict[str, list[str | None]] = {
    "HOME": [None, "", "/nonexistent", "relative", "text/doc00.txt", "/proc"],
    "COLUMNS": ["", "0", "1", "20", "80", "-5", "abc", "99999999999999999999", "１２"],
    "LINES": ["0", "abc"],
    "TERM": [None, "", "dumb", "xterm-256color", "nonsense"],
    "NO_COLOR": ["", "1"],
    "FORCE_COLOR": ["1", "0"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "ascii:strict", "utf-16", "cp1252:strict"],
    "LMABLATE_CACHE": ["", "/nonexistent/x", "text/doc00.txt", "~/x", "relative", "/proc/x"],
    "XDG_CACHE_HOME": ["", "/nonexistent/x", "relative"],
    "MPLBACKEND": ["nonsense", "TkAgg", ""],
    "MPLCONFIGDIR": ["text/doc00.txt", "/nonexistent/x", ""],
    "MATPLOTLIBRC": ["matplotlibrc", "nothing", "text"],
    "TMPDIR": ["/nonexistent", "text/doc00.txt"],
    "LC_ALL": ["C", "tr_TR.UTF-8", "nonsense"],
    "LANG": ["C", "nonsense"],
    "TZ": ["nonsense", ""],
    "OMP_NUM_THREADS": ["abc", "0", ""],
    "WANDB_MODE": ["nonsense", "offline", "online"],
    "WANDB_DIR": ["/nonexistent/x", "text/doc00.txt"],
    "WANDB_PROJECT": ["a/b", ""],
    "CUDA_VISIBLE_DEVICES": ["abc", "-1", "99"],
    "RANK": ["0", "abc"],
    "WORLD_SIZE": ["2", "abc", "0"],
    "LOCAL_RANK": ["0", "abc"],
    "SLURM_JOB_ID": ["5", "abc"],
    "USER": [None, "", "é"],
    "PATH": [None, ""],
    "LMABLATE_START": ["spawn", "nonsense"],
    "LMABLATE_VERBOSE": ["1", "abc"],
    "LMABLATE_RESULTS": ["nothing"],
    "HF_HOME": ["text/doc00.txt"],
    "SOURCE_DATE_EPOCH": ["abc", "0", "-1"],
}  # fmt: skip
STREAMS = ["file", "pty", "full", "closed", "left", "stderr closed", "both closed", "no input"]
RC = "text.usetex: True\nfont.size: enormous\naxes.grid maybe\nbackend: nonsense\nsavefig.directory: [\n\xff"
SCRAPS = [
    b"",
    b"\x00\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"a: [1\n\tb: 2\n",
    b'{"status": "completed"}\n',
    b"- 1\n",
    b"\xef\xbb\xbf{}",
    b"key: !!python/none x\n",
    b"1e999",
]


@dataclass
class Line:
    """A command line with everything about it that a user may get wrong."""

    module: str
    words: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    damages: list[tuple[str, ...]] = field(default_factory=list)
    streams: str = "file"
    columns: int = 80
    broken: int = 0


def break_line(line: Line, r: Random, files: list[str]) -> None:
    """Break a line once to three times; `files` are those of its working folder."""
    ways: list[Callable[[Line, Random, list[str]], None]] = [_words, _environment, _files, _streams]
    for _ in range(r.choice([1, 1, 1, 2, 2, 3])):
        r.choices(ways, [6, 2, 4, 1])[0](line, r, files)
        line.broken += 1
    if line.module == "lmablate.check" and not {"--only", "--list"} & set(line.words):
        line.words += ONLY
    if line.module == "lmablate.power" and "--simulate" in line.words and "--sets" not in line.words:
        line.words += ["--sets", "2"]  # a thousand studies, the default, are twenty minutes


def _words(line: Line, r: Random, files: list[str]) -> None:
    words = line.words
    if line.module in FIXED:
        return
    if not words or r.random() < 0.2:
        allowed = [word for word in WORDS if line.module != "lmablate.train" or word not in LONG]
        words.insert(r.randint(0, len(words)), r.choice(allowed))
        return
    i = r.randrange(len(words))
    way = r.choice([_typo, _typo, _odd, _odd, _value, _value, _value, _other_file, _quoted])
    if r.random() < 0.1:
        del words[i]
    elif r.random() < 0.1:
        j = r.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    elif r.random() < 0.1:
        words.insert(r.randint(0, len(words)), words[i])
    else:
        words[i] = way(words[i], r, files)


def _typo(word: str, r: Random, files: list[str]) -> str:
    i = r.randint(0, max(0, len(word) - 1))
    return r.choice([
        word[:i] + word[i + 1 :],
        word[:i] + word[i : i + 1] + word[i:] if not word[i : i + 1].isdigit() else word[:i],
        word[:i] + word[i + 1 : i + 2] + word[i : i + 1] + word[i + 2 :],
        word[:i] + r.choice("abcdefgxyz_.-") + word[i + 1 :],
        word.upper(), word.replace("=", " ", 1), word.replace("=", ":", 1), word.replace(".", "/"), f"--{word}", word.replace("_", "-"),
    ])  # fmt: skip


def _odd(word: str, r: Random, files: list[str]) -> str:
    i = r.randint(0, len(word))
    return word[:i] + r.choice(ODD) + word[i:]


def _value(word: str, r: Random, files: list[str]) -> str:
    key, equals, _ = word.partition("=")
    return f"{key}={r.choice([*NUMBERS, *ODD])}" if equals else r.choice(NUMBERS)


def _other_file(word: str, r: Random, files: list[str]) -> str:
    key, equals, _ = word.partition("=")
    return f"{key}={r.choice(files)}" if equals else r.choice(files)


def _quoted(word: str, r: Random, files: list[str]) -> str:
    key, equals, value = word.partition("=")
    left, right = r.choice(
        [
            ("'", "'"),
            ('"', '"'),
            ("'", ""),
            ("", '"'),
            ("[", "]"),
            ("[", ""),
            ("{", "}"),
            ("“", "”"),
            ("\\'", "\\'"),
            ("(", ")"),
        ]
    )
    return f"{key}={left}{value}{right}" if equals else f"{left}{word}{right}"


def _environment(line: Line, r: Random, files: list[str]) -> None:
    name = r.choice(list(ENVIRONMENT))
    line.environment[name] = r.choice(ENVIRONMENT[name])
    if name == "MATPLOTLIBRC":
        line.damages.append(("write", "matplotlibrc", RC))


def _files(line: Line, r: Random, files: list[str]) -> None:
    name = r.choice(files)
    if r.random() < 0.4:  # what is read first
        names = [
            each for each in files if each.endswith((".json", ".yaml", ".txt", "results", "text", ".tar", ".jsonl"))
        ]
        name = r.choice(names)
    line.damages.append(
        r.choice([
            ("remove", name), ("chmod", name, r.choice(["000", "000", "400", "500", "200", "300"])),
            ("scrap", name, str(r.randrange(len(SCRAPS)))),
            ("truncate", name), ("folder", name), ("loop", name), ("write", "matplotlibrc", RC),
            ("gone",) if r.random() < 0.3 else ("chmod", ".", r.choice(["500", "000", "300"])),
        ])
    )  # fmt: skip


def _streams(line: Line, r: Random, files: list[str]) -> None:
    line.streams = r.choice(STREAMS)
    line.columns = r.choice([1, 2, 10, 20, 40, 79, 80, 81, 120, 300])


def concerns_the_folder(damage: tuple[str, ...]) -> bool:
    """Whether a damage is to the working folder itself, which comes once the command stands in it."""
    return damage == ("gone",) or damage[:2] == ("chmod", ".")


def do_damage(damage: tuple[str, ...], work: Path) -> None:
    """Carry out one damage to the files."""
    kind, *rest = damage
    if kind == "gone":
        if not work.is_dir():  # it has gone already
            return
        os.chmod(work, 0o700)  # an earlier damage may have closed it
        for folder, _, _ in os.walk(work):
            os.chmod(folder, 0o700)
        os.rename(work, f"{work}.gone")
        shutil.rmtree(f"{work}.gone")
        return
    path = work / rest[0]
    if kind == "chmod":
        if os.path.lexists(path) and not path.is_symlink():
            os.chmod(path, int(rest[1], 8))
        return
    if kind == "write":
        path.write_text(rest[1], encoding="latin-1")
        return
    if not os.path.lexists(path):
        return
    readable = path.is_file() and os.access(path, os.R_OK)  # an earlier damage may have taken the right away
    held = path.read_bytes() if readable else b""
    _take_away(path)
    if kind == "scrap":
        path.write_bytes(SCRAPS[int(rest[1])])
    elif kind == "truncate":
        path.write_bytes(held[: len(held) // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)


def _take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
