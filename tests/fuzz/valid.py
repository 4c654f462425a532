"""Command lines that are right: for every command of the package some that a user would give."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fuzz.breaking import ONLY
from fuzz.place import TEXT, TINY

from lmablate.core.axes import AXES
from lmablate.core.paths import CONF_DIR, ROOT

Random = random.Random
# Processes of commands, and tools of the house.
INNER = ("lmablate.launcher.", "lmablate.runs.tracking.follower", "lmablate.core.source_code")
# What a command writes where nobody says otherwise.
DEFAULTS = {
    "lmablate.train": ("results", "outputs", "wandb"),
    "lmablate.report": ("report",),
    "lmablate.compare": ("compare",),
    "lmablate.evaluate": ("results",),
    "lmablate.inspect": ("step_time", "decode"),
    "lmablate.status": ("results",),
    "lmablate.demo": ("demo",),
}


@cache
def commands() -> tuple[str, ...]:
    """The modules that run as a program, found as the package has them."""
    found = []
    for folder, package in ((ROOT / "lmablate", "lmablate"), (ROOT / "analysis", "lmablate.analysis")):
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            _, program, does = path.read_text().rpartition('if __name__ == "__main__":\n')
            if program and not name.startswith(INNER):
                assert does.strip() == "sys.exit(main())", f"{name}: its exit code is lost"
                found.append(doors().get(name, name))
    return tuple(sorted(found))


@cache
def doors() -> dict[str, str]:
    """The rooms whose command stands in lmablate/cli, by its module."""
    texts = {path.parent.name: path.read_text() for path in (ROOT / "lmablate").glob("*/__main__.py")}
    named = {room: re.search(r'run_module\("([\w.]+)"', text) for room, text in texts.items()}
    return {match[1]: f"lmablate.{room}" for room, match in named.items() if match}


@cache
def _options(axis: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (CONF_DIR / axis).glob("*.yaml")))


def _overrides(r: Random) -> list[str]:
    """A small run, often one that is finished."""
    words = [*TINY, *TEXT]
    extra = [
        [], [], ["norm=layer"], ["seed=1"], ["results_dir=results"], ["results_dir=new"], ["-v"], ["norm=rms", "seed=0"],
        ["data.paths=[text/*.txt,rows.jsonl]"], ["data.paths=rows.jsonl"], ["--trust", "mypackage", "norm=users_largest"],
        ["schedule.warmup_steps=2"], ["optim.lr=1e-3"], ["attention=mqa"], ["runtime.workers=1"],
    ]  # fmt: skip
    return [*words, *r.choice(extra)]


def _grid(r: Random) -> list[str]:
    extra = [
        ["-m", "norm=rms,layer"], ["-m", "seed=0,1"], ["-m", "norm=rms,layer", "seed=0,1"], ["sweeps=mine"],
        ["-m", "norm=choice(rms,layer)", "seed=range(0,2)"], ["-m", "norm=layer", "optim.lr=0.003"],
    ]  # fmt: skip
    return [*TINY, *TEXT, *r.choice(extra)]


def _train(r: Random) -> list[str]:
    done = [
        [],
        ["norm=layer"],
        ["seed=1"],
        ["-m", "norm=rms,layer", "seed=0,1"],
        ["sweeps=mine"],
        ["--cfg", "job"],
        ["--help"],
    ]
    return [*TINY, *TEXT, *r.choice([*done, ["results_dir=new"]])]


def _plan(r: Random) -> list[str]:
    axis = r.choice(list(AXES))
    other = [f"{axis}={r.choice(_options(axis))}"]
    return r.choice(
        [_overrides, _grid, lambda r: [*TINY, *TEXT, *other], lambda r: ["preset=gpt2", "shrink=tiny", *TEXT]]
    )(r)


def _budget(r: Random) -> list[str]:
    axis = r.choice(list(AXES))
    return r.choice(
        [
            _overrides(r),
            _grid(r),
            [*TINY, *TEXT, f"{axis}={r.choice(_options(axis))}"],
            ["preset=gpt2", "shrink=tiny", *TEXT],
            ["--help"],
        ]
    )


def _run(r: Random, runs: list[str]) -> str:
    return f"results/{r.choice(runs)}"


def _status(r: Random, runs: list[str]) -> list[str]:
    return r.choice(
        [
            ["results"],
            [],
            ["results", "--all"],
            ["results", "--json"],
            ["--retry", "failed"],
        ]
    )


def _report(r: Random, runs: list[str]) -> list[str]:
    return r.choice(
        [
            ["results"],
            ["results", "--out", "page"],
            ["results", "--out", "page", "--format", "markdown"],
            ["results", "results"],
        ]
    )


def _sample(r: Random, runs: list[str]) -> list[str]:
    draws = [["--temperature", "0"], ["--top-k", "3"], ["--top-p", "0.9"], []]
    others = [["--prompt", "in the"], ["--seed", "1"], ["--n", "2"]]
    return [_run(r, runs), "--tokens", "5", *r.choice(draws), *r.choice(others)]


def _power(r: Random, runs: list[str]) -> list[str]:
    return r.choice([
        ["--effect", "0.01", "--sd", "0.02"], ["--effect", "0.01", "--run-sd", "0.02", "--correlation", "0.5"], ["results"],
        ["results", "--effect", "0.01", "--margin", "0.02"], ["--simulate", "sim", "--sets", "2"],
        ["--effect", "0.01", "--sd", "0.02", "--alpha", "0.01", "--power", "0.8", "--claims", "3"],
    ])  # fmt: skip


def _archive(r: Random, runs: list[str]) -> list[str]:
    return r.choice(
        [
            ["save", "results", "new.tar"],
            ["restore", "kept.tar", "back"],
            ["restore", "kept.tar", "results"],
            ["save", "--help"],
        ]
    )


def _dashboard(r: Random, runs: list[str]) -> list[str]:
    sweep = r.choice(["norm", "activation", "norm_and_activation", "mine"])
    ways = [["--dry-run", "--out", "board.json"], ["--dry-run", "--out", "board.json", "--entity", "me"]]
    if sweep not in ("norm", "activation"):  # a study is no grid of wandb's
        ways.append(["--wandb-sweep", "wandb.yaml"])
    return [sweep, *r.choice(ways)]


def _compare(r: Random, runs: list[str]) -> list[str]:
    one, two = r.sample(runs, 2)
    return [
        f"results/{one}",
        f"results/{two}",
        *r.choice([[], ["--examples", "2"], ["--out", "pair"], ["--data", "text/*.txt"]]),
    ]


def _evaluate(r: Random, runs: list[str]) -> list[str]:
    more = [[], ["--lengths", "1,2"], ["--json", "e.json"], ["--data", "rows.jsonl", "--text-field", "text"], ["--positions"],
            ["--stride", "4"], ["--lengths", "1,2", "--out", "ev"], ["--set", "posemb=rope_linear", "posemb.factor=2"]]  # fmt: skip
    return [r.choice([_run(r, runs), "results"]), *r.choice(more)]


def _inspect(r: Random, runs: list[str]) -> list[str]:
    return r.choice([
        ["init", *TINY, *TEXT, "--depths", "2,3", "--inits", "2", "--out", "view"],
        ["time", *TINY, *TEXT, "--steps", "3", "--out", "view"],
        ["decode", *TINY, *TEXT, "--lengths", "8", "--batch", "1", "--rounds", "3", "--out", "view"],
        ["--help"], ["init", "--help"], [],
    ])  # fmt: skip


def _plain(choices: list[list[str]]) -> Callable[[Random, list[str]], list[str]]:
    return lambda r, runs: list(r.choice(choices))


GENERATORS: dict[str, Callable[[Random, list[str]], list[str]]] = {
    "lmablate.train": lambda r, runs: _train(r),
    "lmablate.plan": lambda r, runs: _plan(r),
    "lmablate.budget": lambda r, runs: _budget(r),
    "lmablate.status": _status,
    "lmablate.report": _report,
    "lmablate.sample": _sample,
    "lmablate.power": _power,
    "lmablate.archive": _archive,
    "lmablate.dashboard": _dashboard,
    "lmablate.compare": _compare,
    "lmablate.evaluate": _evaluate,
    "lmablate.inspect": _inspect,
    "lmablate.presets": _plain([[], ["--csv"], ["--markdown"]]),
    "lmablate.survey": _plain([[], ["--out", "survey"]]),
    "lmablate.scaling": _plain(
        [["fit", "points.csv", "--form", "compute", "--out", "law"], ["fit", "points.csv", "--form", "kaplan_c"]]
    ),
    "lmablate.interop": lambda r, runs: [_run(r, runs), "--out", "hf"],
    "lmablate.completion": _plain([["bash"], ["zsh"]]),
    "lmablate": _plain([[], ["--help"], ["status", "results"], ["plan", "trainer.steps=2"]]),
    "lmablate.check": _plain(
        [["--list"], ["norm=layer", *ONLY], ["--trust", "mypackage", "norm=users_largest", "--only", "gradients"]]
    ),
    "lmablate.analysis.survey": _plain([["--out", "figure"]]),
    "lmablate.demo": _plain([["--help"], ["norm=nothing"]]),
}
# The demo trains for minutes: of its lines, those that end at once.
SHARES = {
    "lmablate.train": 8,
    "lmablate.plan": 12,
    "lmablate.budget": 8,
    "lmablate.analysis": 0.25,
    "lmablate.demo": 0.5,
}


def valid(r: Random, runs: list[str]) -> tuple[str, list[str]]:
    """A command and its arguments."""
    modules = [name.removesuffix(".__main__") for name in commands()]
    shares = [
        SHARES.get(m, SHARES.get(m.rpartition(".")[0], 2) if m.startswith("lmablate.analysis.") else 2) for m in modules
    ]
    module = r.choices(modules, shares)[0]
    generator = GENERATORS.get(module)
    words = generator(r, runs) if generator else ["results", "--out", "figure"]
    return module, words


def is_right(module: str, words: list[str]) -> bool:
    """Whether a line may be expected to end with 0: not of figures of something else than runs, nor of options that want more."""
    other = module in ("lmablate.analysis.gradient_norm", "lmablate.analysis.step_time")
    small = any(
        word.startswith(("aspect_ratio=r", "attention=pattern", "ffn=expert_choice", "norm=nothing")) for word in words
    )
    return not other and not small


def may_write(module: str, named: list[str], entry: str) -> bool:
    """Whether a file or folder of the working folder is among those `named`, with an ending perhaps, or is a default."""
    top = Path(entry).parts[1:2]
    return (
        not top
        or "." in named
        or top[0] in DEFAULTS.get(module, ())
        or any(Path(top[0]).stem in word for word in named)
    )
