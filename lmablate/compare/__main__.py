"""Compare two finished runs on the same tokens, one by one.

  lmablate compare results/0123456789ab results/ba9876543210
  lmablate compare results/0123456789ab results/ba9876543210 --data 'texts/*.txt'

The runs must share a tokenizer. The mean difference has an interval that knows that tokens of a text belong together.
It is split by how often a token occurs and by its place, and the page shows the tokens on which the runs differ most.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmablate.cli.arguments import add_device, add_text, add_trust, device_of
from lmablate.cli.front_door import trust_packages
from lmablate.compare.difference import Mean, by_bin, clustered_mean, clusters, documents, positions
from lmablate.compare.examples import examples, visible
from lmablate.compare.scores import Pair, score_pair
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.report.figures import inline_svg
from lmablate.runs.run_directory import check_writable, run_path

BY = {
    "frequency": "By how often the token occurs in the training text of A",
    "document": "By its place in the document, from 0",
    "window": "By how many tokens were read before it",
}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Compare two runs. Return the exit code."""
    args = _parser().parse_args(argv)
    trust_packages(args.trust)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    print("\n".join(compare(args)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("compare")
    add = parser.add_argument
    add("run_a", type=run_path, metavar="RUN_A", help="RESULTS_DIR/<run_id> of a finished run")
    add("run_b", type=run_path, metavar="RUN_B", help="another; differences are B less A, so that above 0 A is better")
    add_text(parser)
    add("--examples", type=int, default=12, metavar="N", help="tokens shown for each run (default: %(default)s)")
    add(
        "--out",
        type=given_path,
        default=Path("compare"),
        metavar="DIR",
        help="where page and tables go (default: %(default)s)",
    )
    add_device(parser)
    add_trust(parser)
    return parser


def compare(args: argparse.Namespace) -> list[str]:
    """Compare the runs of a command line. Return the lines to print. Raises ConfigError."""
    import numpy as np

    if args.examples < 0:
        raise ConfigError(f"--examples {args.examples}: must be 0 or more")
    check_writable(args.out, "--out")
    pair = score_pair(args.run_a, args.run_b, args.data, args.text_field, device_of(args.device))
    tokens = pair.text.tokens
    document = documents(tokens, pair.data.eot_id)
    cluster, what = clusters(tokens, pair.data.eot_id, pair.window)
    mean = clustered_mean(pair.b.nats - pair.a.nats, cluster)
    counts = np.bincount(np.asarray(pair.data.train), minlength=pair.data.vocab_size)
    values = {"frequency": counts[tokens], "document": positions(document), "window": pair.a.position}
    groups = {by: by_bin(pair.a.nats, pair.b.nats, value, cluster) for by, value in values.items()}
    shown = examples(pair, document, args.examples)
    return _write(args.out, pair, mean, what, groups, shown)


def _write(
    out: Path,
    pair: Pair,
    mean: Mean,
    what: str,
    groups: dict[str, list[dict[str, Any]]],
    shown: tuple[list[Any], list[Any]],
) -> list[str]:
    """Write the page, the tables and the numbers. Return the lines to print."""
    import pandas as pd

    from lmablate.analysis.token_differences import figure

    answer, method = _answer(pair, mean), _method(pair, mean, what)
    table = pd.DataFrame([{"by": by} | row for by, rows in groups.items() for row in rows])
    summary = {
        "run_a": pair.names[0], "run_b": pair.names[1], "text": pair.text.name, "fingerprint": pair.text.fingerprint,
        "window": pair.window, "nats_a": float(pair.a.nats.mean(dtype="f8")), "nats_b": float(pair.b.nats.mean(dtype="f8")),
        "clusters_are": what, **{f"difference_{key}": value for key, value in mean._asdict().items()},
    }  # fmt: skip
    atomic_write(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    atomic_write(out / "groups.csv", table.to_csv(index=False, float_format="%.6g"))
    columns = ("better", *(shown[0] or shown[1] or [_Empty])[0]._fields)
    rows = [(name, *example) for name, own in zip(("A", "B"), shown, strict=True) for example in own]
    atomic_write(out / "examples.csv", pd.DataFrame(rows, columns=list(columns)).to_csv(index=False))
    atomic_write(out / "index.html", _page(pair, answer, method, groups, shown, figure(table, pair.names)))
    return [answer, method, f"wrote {out / 'index.html'}, groups.csv, examples.csv, summary.json"]


_MINUS = re.compile(r"(?<=[ (])-(?=\d)")  # of a number in a sentence; a page shows a minus sign


class _Empty:
    _fields: tuple[str, ...] = ()


def _page(pair: Pair, answer: str, method: str, groups: Any, shown: tuple[list[Any], list[Any]], drawn: Any) -> str:
    from lmablate.analysis._style import signed
    from lmablate.report.page import templates

    environment = templates(html=True)
    environment.filters["visible"] = visible
    environment.filters["signed"] = signed
    return environment.get_template("compare.html").render(
        names=pair.names,
        words=pair.differences,
        answer=_MINUS.sub("\N{MINUS SIGN}", answer),
        method=method,
        figure=inline_svg(drawn, "differences"),
        examples=[("Where A predicts better", shown[0]), ("Where B predicts better", shown[1])],
        tables=[(title, groups[by]) for by, title in BY.items()],
    )


def _answer(pair: Pair, mean: Mean) -> str:
    a, b = (float(own.nats.mean(dtype="f8")) for own in (pair.a, pair.b))
    band = "" if mean.low is None else f" (95 % interval {mean.low:+.4f} to {mean.high:+.4f})"
    if mean.low is None or mean.high is None or mean.low <= 0 <= mean.high:
        verdict = "these tokens do not tell them apart"
    else:
        verdict = f"{'A' if mean.mean > 0 else 'B'} predicts this text better"
    where = f"{mean.tokens:,} tokens of {pair.text.name}"
    return f"A {a:.4f}, B {b:.4f} nats a token on {where}: B less A is {mean.mean:+.4f}{band}; {verdict}."


def _method(pair: Pair, mean: Mean, what: str) -> str:
    wider = ""
    if mean.se and mean.naive_se:
        wider = f" It is {mean.se / mean.naive_se:.1f} times as wide as if tokens were independent."
    return (
        f"Both read windows of {pair.window:,} tokens that do not overlap. The interval's standard error is clustered by {what} "
        f"(arXiv 2411.00640, section 2.2).{wider} It is about this text, for these two trained models; what other seeds would give, "
        "only other seeds tell."
    )


if __name__ == "__main__":
    sys.exit(main())
