"""A fuzz of the front door: valid command lines of every command, broken in their words, files, environment and streams.

python tests/fuzz --lines 2000 --seed 7        every line of a seed, about a quarter of an hour on one core
python tests/fuzz --seed 7 --line 123 --keep   one of them again; its folder stays, to be looked at

What must hold of each line: exit code 0, 1 or 2; no stack trace; a word about it where it is refused; nothing left that was not
asked for, and nothing at all where it was refused; and an end within a time limit. A line that is not broken exits with 0.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
POWERS = "-dac_override,-dac_read_search,-fowner,-chown"
if __name__ == "__main__":
    if (
        sys.platform == "linux"
        and os.geteuid() == 0
        and not os.environ.get("LMABLATE_FUZZ_PLAIN")
        and shutil.which("setpriv")
    ):
        # Modes of files mean nothing to root.
        os.environ["LMABLATE_FUZZ_PLAIN"] = "1"
        os.execvp("setpriv", ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}", sys.executable, *sys.argv])
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fuzz.breaking import SCRAPS, Line, break_line, concerns_the_folder, do_damage  # noqa: E402
from fuzz.child import Outcome, carry_out, environment, prepare  # noqa: E402
from fuzz.place import build, contents, remove, runs  # noqa: E402
from fuzz.valid import is_right, may_write, valid  # noqa: E402

WHOLE = 0.06  # of the lines stay as they are
TRACES = ("Traceback (most recent call last)", "Exception ignored", "Error in atexit", "Fatal Python error")
FAILS = (
    "lmablate.train",
    "lmablate.status",
    "lmablate.demo",
    "lmablate.check",
)  # commands that end with 1 where a job or a check fails


def line_of(seed: int, number: int, names: list[str], files: list[str]) -> Line:
    """Line `number` of a seed, which needs none of those before it."""
    r = random.Random(f"{seed}-{number}")
    module, words = valid(r, names)
    line = Line(module, words)
    if not is_right(module, words):
        line.broken = 1
    if r.random() >= WHOLE:
        break_line(line, r, files)
    return line


def faults(line: Line, outcome: Outcome, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how a line ended."""
    found = []
    said = outcome.output + outcome.errors
    if outcome.code is None:
        return ["no end within the time limit"]
    if outcome.code not in (0, 1, 2):
        found.append(f"exit code {outcome.code}")
    if outcome.code == 1 and line.module not in FAILS and line.streams != "full":
        found.append("exit code 1 of a command that trains nothing")
    if outcome.code and not line.broken:
        found.append(f"exit code {outcome.code} of a valid line")
    found += [f"a stack trace ({trace})" for trace in TRACES if trace in said]
    if outcome.code and not said.strip() and "closed" not in line.streams:
        found.append("refused without a word")
    new = [name for name in after if after[name] != before.get(name) and after[name] != "unreadable"]
    new += [name for name in before if name not in after and before[name] != "unreadable"]
    cache = f"work/{line.environment.get('XDG_CACHE_HOME') or '.cache'}"  # a relative folder counts from the line's own
    new = [name for name in new if not name.startswith(("home/.cache", "home/.config", cache))]
    if outcome.code == 2 and new:
        found.append(f"refused, and yet written: {', '.join(sorted(new)[:4])}")
        return found
    named = [*line.words, *(value for value in line.environment.values() if value)]
    at_home = [name for name in new if name.startswith("home/") and any(f"~/{Path(name).parts[1]}" in w for w in named)]
    inside = [name for name in new if name.startswith("work") and may_write(line.module, named, name)]
    if alien := set(new) - {*at_home, *inside}:
        found.append(f"not asked for: {', '.join(sorted(alien)[:4])}")
    return found


def as_shell(line: Line, root: Path) -> str:
    """The line as it can be given again, in the folder that --keep leaves."""
    changed = {name: value for name, value in environment(root, line).items() if line.environment.get(name) is not None}
    unset = [word for name, value in line.environment.items() if value is None for word in ("-u", name)]
    words = ["env", *unset, *(f"{name}={value}" for name, value in changed.items())] if changed or unset else []
    command = shlex.join([*words, "python", "-m", line.module, *line.words])
    damages = "".join(
        f"  file: {' '.join(map(repr, d))}{' ' + repr(SCRAPS[int(d[2])]) if d[0] == 'scrap' else ''}\n"
        for d in line.damages
    )
    return f"{damages}  streams: {line.streams}, {line.columns} columns\n  {ascii(command)[1:-1]}"


class Fuzz:
    """The lines of a seed, each in a new copy of one folder."""

    def __init__(self, root: Path, limit: float) -> None:
        self.root, self.limit = root, limit
        self.template = root / "template"
        build(self.template, self._valid)
        self.names = runs(self.template)
        self.files = sorted(name.removeprefix("work/") for name in contents(self.template) if name.startswith("work/"))

    def _valid(self, module: str, words: Sequence[str], place: Path) -> None:
        outcome = carry_out(Line(module, list(words)), place, 300)
        if outcome.code != 0:
            raise RuntimeError(f"{module} {words}: {outcome}")

    def run(self, seed: int, number: int, *, keep: bool = False) -> tuple[Line, Outcome, list[str]]:
        line = line_of(seed, number, self.names, self.files)
        place = self.root / "place"
        shutil.copytree(self.template, place)
        for damage in line.damages:
            if not concerns_the_folder(damage):
                do_damage(damage, place / "work")
        before = contents(place)
        if ("gone",) in line.damages:
            before = {name: mark for name, mark in before.items() if not name.startswith("work/")}
        outcome = carry_out(line, place, self.limit)
        os.chmod(place / "work", 0o700) if (place / "work").is_dir() else None
        found = faults(line, outcome, before, contents(place))
        if not keep:
            remove(place)
        return line, outcome, found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time; it is printed")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="begin at this one (default: %(default)s)")
    parser.add_argument("--line", type=int, metavar="I", help="only this one")
    parser.add_argument(
        "--limit",
        type=float,
        default=1000.0,
        metavar="SECONDS",
        help="of processor time of one line, which hangs beyond it (default: %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="also show lines that end as they should, shortly")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the last line")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}, {args.lines} lines", flush=True)
    prepare()
    root = Path(tempfile.mkdtemp(prefix="lmablate-fuzz-"))
    fuzz = Fuzz(root, args.limit)
    began, codes, bad = time.monotonic(), Counter(), 0
    spent: Counter[str] = Counter()
    for number in range(args.first, args.lines) if args.line is None else [args.line]:
        line, outcome, found = fuzz.run(seed, number, keep=args.keep)
        codes[outcome.code] += 1
        spent[line.module] += outcome.seconds
        if args.all and not found:
            last = (outcome.errors.strip() or outcome.output.strip() or "-").splitlines()[-1]
            print(
                f"{number} {outcome.seconds:.1f} s\n{as_shell(line, fuzz.root / 'place')}\n  {outcome.code}: {ascii(last)[1:-1]}"
            )
        if not args.all and number % 100 == 99:
            print(f"{number + 1} lines, {time.monotonic() - began:.0f} s", flush=True)
        if found or args.line is not None:
            bad += bool(found)
            print(
                f"line {number} of seed {seed}, exit code {outcome.code} after {outcome.seconds:.1f} s: "
                + ("; ".join(found) or "as it should be")
            )
            print(as_shell(line, fuzz.root / "place"))
            for name, text in (("stdout", outcome.output), ("stderr", outcome.errors)):
                if text:
                    print(f"  {name}:\n" + "\n".join(f"    {ascii(row)[1:-1]}" for row in text.splitlines()[-40:]))
            print(flush=True)
    print(
        f"{bad} of {sum(codes.values())} lines not as they should be; exit codes {dict(codes)}; {time.monotonic() - began:.0f} s"
    )
    print(
        "seconds: "
        + ", ".join(f"{name.removeprefix('lmablate.')} {value:.0f}" for name, value in spent.most_common(12))
    )
    if args.keep:
        print(f"kept: {root}")
    else:
        remove(root)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
