"""Evaluate finished runs on any text and at any length.

  lmablate evaluate results/0123456789ab --data 'texts/*.txt'
  lmablate evaluate results --lengths 1,2,4,8,16 --stride 64 --out length
  lmablate evaluate results/0123456789ab --lengths 1,2,4 --set posemb=rope_yarn posemb.factor=4

Bits per byte, nats per token, accuracy and calibration, on their validation text or on any files, read through windows
of one or more lengths, and the loss by position in the window. What comes out is printed and kept in RUN/evaluations/
(``lmablate.results.load_evaluations``).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lmablate.cli.arguments import add_device, add_text, add_threads, add_trust, device_of
from lmablate.cli.front_door import trust_packages
from lmablate.core import access
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, DataError, exit_on_config_error
from lmablate.core.files import atomic_write, finite
from lmablate.core.paths import given_path
from lmablate.results.evaluations import frames
from lmablate.results.load import load_runs
from lmablate.runs.evaluation_files import write_evaluation
from lmablate.runs.run_directory import RunDirectory, below, check_writable, run_path, unwritable
from lmablate.schema.evaluation import EvaluationFile


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate runs. Return the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    _evaluate(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate")
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=run_path,
        metavar="RUN",
        help="RESULTS_DIR/<run_id>, or RESULTS_DIR for all that completed",
    )
    add_text(parser)
    add("--lengths", default="1", metavar="N,N", help="multiples of the training length (default: %(default)s)")
    add("--stride", type=int, metavar="TOKENS", help="sliding windows that move on by so many, beside the others")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other positions or windows of attention than trained with",
    )
    add("--positions", action="store_true", help="print the loss by position too")
    add("--json", type=given_path, metavar="FILE", help="write everything to one file too")
    add(
        "--out", type=given_path, metavar="DIR", help="write tables (CSV) and the figure of the loss against length too"
    )
    add_device(parser)
    add_threads(parser)
    add_trust(parser)
    return parser


def _evaluate(args: argparse.Namespace) -> None:
    import torch

    from lmablate.runs.evaluate_run import evaluate_run

    trust_packages(args.trust)
    times = _times(args.lengths)
    if args.threads < 1:
        raise ConfigError(f"--threads {args.threads}: give 1 or more")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    folders, searched = _run_folders(args.runs)
    for target, key in ((args.json and args.json.absolute().parent, "--json"), (args.out, "--out")):
        if target:
            check_writable(target, key)
    device, done = device_of(args.device), []
    for folder in folders:
        try:
            if folder.is_dir() and (why := unwritable(folder)):  # writing to a missing folder would create it
                raise ConfigError(f"{folder}: an evaluation is kept beside its run ({why})")
            content = evaluate_run(
                folder,
                times=times,
                stride=args.stride,
                overrides=args.set,
                paths=args.data,
                text_field=args.text_field,
                device=device,
            )
        except DataError:
            raise
        except ConfigError as error:
            if not searched:
                raise
            print(f"{folder.name}: left out ({error})")
            continue
        path = write_evaluation(folder, content)
        done.append(content)
        print("\n".join(_lines(content, path, positions=args.positions)), flush=True)
    if not done:
        raise ConfigError("no run could be evaluated so; the reasons stand above")
    if args.json:
        atomic_write(
            args.json, json.dumps(finite([one.model_dump() for one in done]), indent=1, allow_nan=False) + "\n"
        )
    if args.out:
        _write_tables(folders, done, args.out)


def _times(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--lengths {text}: give multiples of the training length, e.g. 1,2,4,8,16") from None


def _run_folders(given: Sequence[Path]) -> tuple[list[Path], bool]:
    """Return the run directories, and True if a results directory was searched, whose runs may be left out.

    A results directory stands for its completed runs. Raises ConfigError for a directory that does not exist or has none."""
    from lmablate.runs.load import existing_run

    folders: list[Path] = []
    searched = False
    for folder in given:
        if access.there(folder / "config.yaml") is not False or not folder.is_dir():
            existing_run(folder)
            folders.append(folder)
            continue
        completed = []
        for path, why in access.folders(folder):
            if why:
                print(f"{path}: left out ({why})", file=sys.stderr)
            elif (row := RunDirectory(folder, path.name).read_result()) is not None and row.status == "completed":
                completed.append(path)
        if not completed:
            lower = "".join(f"; there are runs one level down, in {one}" for one in below(folder))
            raise ConfigError(
                f"{folder}: no run is there that completed; give RESULTS_DIR/<run_id>, or RESULTS_DIR{lower}"
            )
        folders += completed
        searched = True
    return list(dict.fromkeys(folders)), searched


def _lines(content: EvaluationFile, path: Path, *, positions: bool) -> list[str]:
    """Return the printed lines of one evaluation."""
    text, entries = content.text, content.results
    changes = f", with {' '.join(content.changes)}" if content.changes else ""
    lines = [
        f"{content.run_id} on {text.name} ({text.tokens:,} tokens, {text.bytes:,} bytes){changes}",
        "  times   length   stride   nats/token   change   bits/byte   accuracy     ECE",
    ]
    base = next((entry.nats_per_token for entry in entries if entry.length == content.train_length), None)
    for entry in entries:
        loss = entry.nats_per_token
        change = "" if base is None or loss is None else f"{loss - base:+.4f}"
        ece = "-" if entry.ece is None else f"{entry.ece:.4f}"
        sliding = "-" if entry.stride == entry.length else str(entry.stride)
        shown = "-" if loss is None else f"{loss:.4f}"
        lines.append(
            f"  {entry.length / content.train_length:5g}   {entry.length:6d}   {sliding:>6}   {shown:>10}  {change:>7}   "
            f"{entry.bits_per_byte:9.4f}   {entry.accuracy:8.4f}   {ece:>5}"
        )
    if positions:
        for entry in entries:
            lines.append(f"  loss by position, windows of {entry.length} that move on by {entry.stride}:")
            for window in entry.positions:
                lines.append(f"    {window.start:6d} to {window.end - 1:6d}   {window.nats_per_token:8.4f}")
    return [*lines, f"  {path}"]


def _write_tables(folders: Sequence[Path], done: Sequence[EvaluationFile], out: Path) -> None:
    """Write the evaluations of this command as CSV tables and a figure."""
    from lmablate.analysis._style import save
    from lmablate.analysis.length import by_length

    lengths, positions = frames((None, content) for content in done)
    atomic_write(out / "lengths.csv", lengths.to_csv(index=False))
    atomic_write(out / "positions.csv", positions.to_csv(index=False))
    runs = load_runs({str(folder.absolute().parent) for folder in folders})
    own = runs[runs["run_id"].isin([content.run_id for content in done])]
    own.attrs.update(runs.attrs)
    paths = save(by_length(own, lengths, positions), out / "length")
    print("\n".join(map(str, [out / "lengths.csv", out / "positions.csv", *paths])))


if __name__ == "__main__":
    sys.exit(main())
