"""Divide the time of a training step, and its FLOPs, by kinds of work.

  lmablate inspect time model.d_model=128 model.n_layers=4 --compiled
  lmablate inspect time block_layout=serial,parallel norm=rms,layer,none --parts

Overrides are those of lmablate train; commas make a grid. Times are of one machine; run nothing beside it.
runtime.device=cuda times a GPU, and runtime.threads sets the threads of a CPU.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.cli.front_door import main as front_door
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.inspect.accounted import COMPILED, PLAIN, WRITTEN_OUT
from lmablate.inspect.measured import differences, measure
from lmablate.inspect.parts_time import measure_parts
from lmablate.runs.run_directory import check_writable
from lmablate.training.compile import missing_compiler

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.schema.run_config import RunConfig

STEPS = 30
NEAR = 0.05  # of a step: the tolerance between its time and the sum of its kinds


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Time the steps of the configurations of a command line. Return the exit code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs to stderr at each start and stop

    args, overrides = _parser().parse_known_args(argv)

    def show(configs: Sequence[RunConfig], launcher: str) -> int:
        if not args.steps.isdigit() or int(args.steps) < 3:
            raise ConfigError(f"--steps {args.steps}: must be a whole number from 3 on, e.g. --steps {STEPS}")
        return inspect(configs, int(args.steps), args.out, compiled=args.compiled, parts=args.parts)

    grid = ["-m"] if any("," in one.partition("=")[2].strip("[") for one in overrides) and "-m" not in overrides else []
    return front_door("inspect", show, [*grid, *overrides])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("inspect time", __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--steps", default=str(STEPS), metavar="N", help="steps timed, plain and profiled (default: %(default)s)")
    add("--parts", action="store_true", help="also time a norm alone, a block and the whole step, in turn over a grid")
    add("--compiled", action="store_true", help="also under torch.compile")
    where = "split.csv, steps.csv, parts.csv and step_time.png (default: %(default)s)"
    add("--out", type=given_path, default=Path("step_time"), metavar="DIR", help=where)
    return parser


def inspect(configs: Sequence[RunConfig], steps: int, out: Path, *, compiled: bool, parts: bool) -> int:
    """Measure `configs`, print the results, and write them to `out`. Return the exit code."""
    import pandas as pd
    import torch

    from lmablate.runs.prepared import load_data, with_data

    check_writable(out, "--out")
    device = configs[0].runtime.device
    if compiled and (why := missing_compiler(device)) is not None:
        raise ConfigError(f"--compiled: {why}; install one, or leave --compiled out")
    torch.set_num_threads(configs[0].runtime.threads)
    torch.set_flush_denormal(True)
    labels = differences(configs)
    data = [load_data(cfg) for cfg in configs]
    final = [with_data(cfg, text) for cfg, text in zip(configs, data, strict=True)]
    splits, lines = [], []
    for label, cfg, text in zip(labels, final, data, strict=True):
        for mode in (PLAIN, WRITTEN_OUT, *([COMPILED] if compiled else [])):
            measured = measure(cfg, text, mode, steps)
            if measured is not None:
                splits.append(measured.split.assign(config=label, mode=mode))
                lines.append(measured.step | {"config": label, "mode": mode})
                print(_step_text(label, mode, measured.split, measured.step), flush=True)
    tables = {"split": pd.concat(splits, ignore_index=True), "steps": pd.DataFrame(lines)}
    if parts:
        tables["parts"] = measure_parts(dict(zip(labels, final, strict=True)), data, steps, compiled=compiled)
        print(_parts_text(tables["parts"]), flush=True)
    _write(out, tables)
    return 0


def _write(out: Path, tables: dict[str, pd.DataFrame]) -> None:
    from lmablate.analysis._style import save
    from lmablate.analysis.step_time import figure

    for name, table in tables.items():
        first = [column for column in ("config", "mode", "part") if column in table]
        ordered = table[[*first, *(column for column in table if column not in first)]]
        atomic_write(out / f"{name}.csv", ordered.to_csv(index=False, float_format="%.6g"))
    paths = save(figure(tables["split"], tables.get("parts")), out / "step_time")
    print("wrote", ", ".join(str(path) for path in (*(out / f"{name}.csv" for name in tables), *paths)))


def _step_text(label: str, mode: str, split: pd.DataFrame, step: dict[str, float | int | str]) -> str:
    """Return one configuration's step as text."""
    lines = [f"{label} · {mode}: {step['milliseconds']:.4g} ms a step ({step['low']:.4g} to {step['high']:.4g})"]
    lines.append(f"{'':<26}{'FLOPs':>9}{'time':>9}{'95 %':>16}{'ms':>9}{'events':>8}")
    for row in split.itertuples():
        flops = "-" if row.flops_share != row.flops_share else f"{100 * row.flops_share:.2f} %"
        band = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        lines.append(
            f"{row.kind:<26}{flops:>9}{100 * row.time_share:>7.1f} %{band:>16}{row.milliseconds:>9.3g}{row.events:>8.0f}"
        )
    lines.append(
        f"The times of a profiled step's events add up to {100 * float(step['adds_up']):.1f} % of its wall time"
        + ("" if abs(float(step["adds_up"]) - 1) <= NEAR else f", which is off by more than {NEAR:.0%}: measure again")
        + f", in which this process had {100 * float(step['core_share']):.0f} % of a core; what others had is taken out. "
        f"The profiler makes a step {100 * float(step['inflation']):.0f} % longer; that is "
        "taken off, the same for each event, so that the times here are the plain step's."
    )
    same = step["products_counted"] == step["products_expected"]
    lines.append(
        f"FLOPs of products: the profiler counts {step['products_counted']:,}, "
        + ("as" if same else f"NOT the {step['products_expected']:,} that")
        + " the accounting gives for the products it can see."
    )
    return "\n".join(lines) + "\n"


def _parts_text(parts: pd.DataFrame) -> str:
    lines = [f"{'':<44}{'ms':>9}{'95 %':>18}{'to the first':>14}{'95 %':>16}"]
    for row in parts.itertuples():
        band, ratio = f"{row.low:.4g} to {row.high:.4g}", f"{row.ratio_low:.3f} to {row.ratio_high:.3f}"
        what = f"{row.part}, {row.mode}: {row.config}"
        lines.append(f"{what:<44}{row.milliseconds:>9.4g}{band:>18}{row.ratio:>14.3f}{ratio:>16}")
    return "\n".join(lines)
