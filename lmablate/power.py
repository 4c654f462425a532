"""Compute how many seeds a difference takes, or what seeds can find.

  lmablate power --effect 0.01 --sd 0.02
  lmablate power results --effect 0.01        with the spread of finished runs

The spread is that of a paired difference (--sd), or of single runs with their correlation (--run-sd, --correlation), or
measured in finished runs (RESULTS_DIR). --simulate DIR sends made-up studies of known truth through the whole pipeline.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lmablate.claims import ladder_simulation as ladders
from lmablate.claims import simulation as s
from lmablate.claims.report_verdicts import evidence
from lmablate.claims.simulation import Rate
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.report.tuned_studies import compared, shown
from lmablate.results.load import load_runs, result_folders
from lmablate.results.studies import studies_in
from lmablate.runs.run_directory import check_writable
from lmablate.stats import planning

PairsNeeded = Callable[[float, float, float], int | None]
LADDERS = 400  # most made-up ladders for a rate, since each fits two laws with their resamples
PAIRS = (3, 4, 5, 6, 8, 10, 12, 16)
TABLE = {1.0: 13, 1.5: 7, 2.0: 5, 2.5: 5, 3.0: 4, 4.0: 3, 5.0: 3}  # effect in sd of a pair -> pairs for 90 % power
TOST_TABLE = {1.0: 13, 1.25: 9, 1.5: 7, 1.75: 6, 2.0: 5, 2.5: 4, 3.0: 4, 4.0: 3}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 for a question without an answer."""
    args = _parser().parse_args(argv)
    if args.simulate is not None:
        print("\n".join(simulate(args.simulate, args.sets)))
    else:
        print("\n".join(answer(args)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("power")
    add = parser.add_argument
    add("results_dir", nargs="*", type=given_path, metavar="RESULTS_DIR", help="finished runs to measure the spread in")
    add("--effect", type=float, help="the difference to find, in the unit of the spread (nats per token)")
    add("--sd", type=float, help="standard deviation of a difference of two runs that share a seed")
    add("--run-sd", type=float, help="standard deviation of single runs, instead of --sd")
    add("--correlation", type=float, help="of two runs that share a seed, with --run-sd")
    add("--margin", type=float, help="largest difference that counts as none: how many seeds show equivalence")
    add(
        "--claims",
        type=int,
        default=1,
        help="tests in one report: what the first step of Holm's correction asks (default: %(default)s)",
    )
    add("--alpha", type=float, default=0.05, help="error rate (default: %(default)s)")
    add("--power", type=float, default=0.9, help="chance of finding what is there (default: %(default)s)")
    add("--simulate", type=given_path, metavar="DIR", help="simulate the whole pipeline; rates and figure go to DIR")
    add("--sets", type=int, default=1000, help="made-up studies for each rate of --simulate (default: %(default)s)")
    return parser


def answer(args: argparse.Namespace) -> list[str]:
    """Return the lines that answer the command line. Raises ConfigError."""
    for key, ok in (("alpha", 0 < args.alpha < 1), ("power", 0 < args.power < 1), ("claims", args.claims >= 1)):
        if not ok:
            allowed = "1 or more" if key == "claims" else "between 0 and 1"
            raise ConfigError(f"--{key} {getattr(args, key)}: must be {allowed}")
    sd, lines = _spread(args)
    for key in ("effect", "margin"):
        value = getattr(args, key)
        if value is not None and (value == 0 or not math.isfinite(value) or (key == "margin" and value < 0)):
            raise ConfigError(f"--{key} {value}: must be a number {'above' if key == 'margin' else 'other than'} 0")
    if args.effect is not None:
        what = f"to find a difference of {abs(args.effect):g}"
        lines += _needed(what, args.effect / sd, planning.pairs_needed, args)
    if args.margin is not None:
        what = f"to show that two equal arms differ by less than {args.margin:g}"
        lines += _needed(what, args.margin / sd, planning.tost_pairs_needed, args)
    return [*lines, "", *_detectable(args, sd)]


def _spread(args: argparse.Namespace) -> tuple[float, list[str]]:
    known = {"--sd": args.sd, "--run-sd": args.run_sd, "RESULTS_DIR": args.results_dir or None}
    given = [name for name, value in known.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ConfigError(f"give one spread: --sd, --run-sd with --correlation, or RESULTS_DIR; got {got}")
    if args.results_dir:
        return measured(args.results_dir)
    if args.sd is not None:
        sd = args.sd
    else:
        if args.correlation is None or not -1 <= args.correlation < 1:
            raise ConfigError(
                "--run-sd needs --correlation, from -1 to below 1: 0 for runs that share nothing, see the report for yours"
            )
        sd = planning.paired_sd(args.run_sd, args.correlation)
    if not 0 < sd < math.inf:
        raise ConfigError(f"{given[0]} {known[given[0]]}: must be above 0")
    return sd, [f"standard deviation of a paired difference: {sd:.4g}"]


def measured(results_dir: Sequence[str | Path]) -> tuple[float, list[str]]:
    """Return the standard deviation of a paired difference in finished runs, pooled over all pairs of arms, and lines about it."""
    runs = load_runs(results_dir)
    studies = studies_in(result_folders(results_dir))
    rows = compared(shown(evidence(runs, studies)), studies) if len(runs) else []
    found = [row for row in rows if row["n_pairs"] > 1]
    if not found:
        raise ConfigError(
            f"no two arms in {', '.join(map(str, results_dir))} share two seeds, so there is no spread to measure: give --sd"
        )
    df = sum(row["n_pairs"] - 1 for row in found)
    sd = math.sqrt(sum((row["n_pairs"] - 1) * row["sd_difference"] ** 2 for row in found) / df)
    if sd == 0:
        raise ConfigError("all paired differences agree to the last bit, so there is no spread to plan with: give --sd")
    most = max(row["n_pairs"] for row in found)
    low, high = planning.sd_factors(most)
    known = [row["correlation"] for row in found if row["correlation"] is not None]
    lines = [
        f"standard deviation of a paired difference: {sd:.4g}, from {len(found)} comparisons of up to {most} pairs"
    ]
    lines.append(f"  one comparison alone would give {sd * low:.2g} to {sd * high:.2g} (95 %)")
    if known:
        lines.append(f"  correlation of two arms over seeds: {sum(known) / len(known):.2f} on average")
    return sd, lines


def _needed(what: str, size: float, pairs_needed: PairsNeeded, args: argparse.Namespace) -> list[str]:
    """Return the lines on how many pairs a difference or margin of `size`, in sd, takes at each level."""
    lines = [f"{what} ({abs(size):.2f} sd) with {args.power:.0%} power:"]
    return lines + [f"  {_pairs(pairs_needed(size, alpha, args.power))} {why}" for alpha, why in _levels(args)]


def _levels(args: argparse.Namespace) -> list[tuple[float, str]]:
    levels = [(args.alpha, f"at alpha {args.alpha:g}")]
    if args.claims > 1:
        levels.append((args.alpha / args.claims, f"as the first of {args.claims} claims (Holm)"))
    return levels


def _pairs(n: int | None) -> str:
    return f"more than {planning.MOST} paired seeds" if n is None else f"{n} paired seeds"


def _detectable(args: argparse.Namespace, sd: float) -> list[str]:
    lines = [
        f"paired seeds   smallest difference found with {args.power:.0%} power (alpha {args.alpha:g}"
        + (f", and {args.alpha:g}/{args.claims})" if args.claims > 1 else ")")
    ]
    for n in PAIRS:
        found = [sd * planning.detectable(n, alpha, args.power) for alpha, _ in _levels(args)]
        lines.append(f"{n:12d}   " + "   ".join(f"{value:.4g}" for value in found))
    return lines


def simulate(folder: Path, sets: int) -> list[str]:
    """Simulate all rates with `sets` synthetic studies each, and write them to `folder`. Returns the rates as text."""
    if sets < 10:
        raise ConfigError(f"--sets {sets}: a rate needs at least 10 made-up studies")
    check_writable(folder, "--simulate")
    return write_rates(folder, simulated(sets))


def write_rates(folder: Path, rates: Sequence[Rate]) -> list[str]:
    """Write ``rates.csv``, and ``simulation`` and, of ladders and laws, ``ladders`` as PNG and SVG. Returns the rates as text."""
    import pandas as pd

    from lmablate.analysis import _style, simulation

    table = pd.DataFrame(rates)
    atomic_write(folder / "rates.csv", table.round(5).to_csv(index=False))
    of_ladders = table["what"].str.startswith(("ladder: ", "law: "))
    for stem, rows in (("simulation", table[~of_ladders]), ("ladders", table[of_ladders])):
        if len(rows):
            _style.save(simulation.figure(rows), folder / stem)
    lines = [f"{r.rate:6.3f}  ({r.low:.3f} to {r.high:.3f})  {r.what}, {r.setting}" for r in rates]
    return [*lines, "", f"wrote {folder / 'rates.csv'} and {folder / 'simulation.png'}"]


def simulated(sets: int) -> list[Rate]:
    """Return every rate: false positives, power, equivalence, families, looks, divergence, ladders, laws."""
    return [rate for part in parts(sets).values() for rate in part()]


def parts(sets: int) -> dict[str, Callable[[], list[Rate]]]:
    """Return the parts of the simulation by name."""
    return {
        "false positives": lambda: s.false_positives(sets),
        "power": lambda: s.powers(sets, TABLE),
        "equivalence": lambda: s.equivalences(sets, TOST_TABLE),
        "pooled variance": lambda: s.pooling(sets),
        "families": lambda: s.families(sets),
        "looks": lambda: s.looks(2 * sets),
        "judged looks": lambda: s.judged_looks(sets),
        "divergence": lambda: s.divergences(sets),
        "ladders": lambda: ladders.multiples(min(sets, LADDERS)),
        "laws": lambda: [r for form in ("compute", "chinchilla") for r in ladders.coverage(min(sets, LADDERS), form)],
    }


if __name__ == "__main__":
    sys.exit(main())
