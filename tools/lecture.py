"""The published result: verdicts, figure and page of the lecture, and the dataset of all runs, from the stored rows.

``python tools/lecture.py docs/results --out docs/lecture.md`` judges every study in docs/results and writes all of them.
``--check`` writes nothing and says what does not fit the rows. ``--stored`` takes the verdicts as they are stored.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset_card import card
from lecture_claims import Found, figure_rows, found_claims
from lecture_page import line, page, renewed, results_table
from PIL import Image
from published import SENTENCES, VERDICTS, Study, digest, is_whole, source_of, studies, verdicts_of, verdicts_together

from lmablate.analysis._style import save
from lmablate.analysis.overview import overview
from lmablate.claims.claim import load_claims
from lmablate.core.console import prose
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import read_json, write_together
from lmablate.core.paths import given_path
from lmablate.results.dataset import Dataset, dataset_of, to_csv, to_parquet
from lmablate.results.dataset_reading import read_dataset

DATASET = "runs.parquet"
FIGURE = "lecture"
CLOSE = 1e-6  # between numbers of two processors
COMMAND = "python tools/lecture.py docs/results --out docs/lecture.md"
Row = dict[str, Any]


def judge(found: Sequence[Study], results: Path) -> None:
    """Write the verdicts of every study, and those of all studies together."""
    files = {one.folder / VERDICTS: _json(verdicts_of(one)) for one in found}
    write_together({**files, results / VERDICTS: _json(verdicts_together(found))})


def findings(results: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the results measured without training, by claim: folder and sentence of each ``findings.json``."""
    out: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(results.glob("*/findings.json")):
        for claim, words in read_json(path).items():
            out.setdefault(claim, []).append((path.parent.name, words))
    return out


class Published(NamedTuple):
    """What is published now: the studies, every claim with what their stored verdicts say of it, the verdicts corrected together, and the
    dataset (None without studies)."""

    studies: list[Study]
    claims: list[Found]
    joint: list[Row]
    dataset: Dataset | None


def published(results: Path) -> Published:
    """Return what the folder of published results holds, and print which studies do not count."""
    found, notes = studies(results)
    for note in notes:
        print(note)
    together = read_json(results / VERDICTS) if (results / VERDICTS).exists() else {"claims": [], "joint": []}
    claims = found_claims(found, together["claims"], findings(results))
    return Published(found, claims, together["joint"], dataset_of([one.archive for one in found]) if found else None)


def texts(now: Published, results: Path, out: Path) -> dict[Path, str]:
    """Return every text that is made of rows and stored verdicts: the page, its sentence elsewhere, the dataset as CSV and its card."""
    files = {out: page(now.claims, now.studies, now.joint)}
    for path, content, inline in (
        (out.parents[1] / "README.md", line(now.claims), True),
        (out.parent / "results.md", results_table(now.studies), False),
    ):
        if path.exists():
            files[path] = renewed(path.read_text(encoding="utf-8"), content, inline=inline)
    if now.dataset is not None:
        files[results / "runs.csv"] = to_csv(now.dataset.table)
        files[results / "runs.md"] = card(now.dataset.table, now.dataset.equal, [one.name for one in now.studies])
    return files


def write(results: Path, out: Path) -> list[Path]:
    """Write everything that is made of rows and stored verdicts; returns the paths."""
    now = published(results)
    files: dict[Path, bytes | str] = {**texts(now, results, out)}
    if now.dataset is not None:
        files[results / DATASET] = to_parquet(now.dataset.table)
    (out.parent / "figures").mkdir(exist_ok=True)
    write_together(files)
    rows = figure_rows(now.claims)
    return [*files, *save(overview(rows), out.parent / "figures" / FIGURE, source(rows))]


def source(rows: Sequence[Row]) -> str:
    """Return a hash of what the figure shows, which its file carries."""
    return digest(json.dumps(rows).encode())


def problems(results: Path, out: Path, *, rejudge: bool = True) -> list[str]:
    """Return what does not fit the rows of the published studies; `rejudge`: also judges every study again."""
    now = published(results)
    said = [one for study in now.studies for one in _of_study(study, rejudge=rejudge)]
    said += _of_all(results, now.studies, rejudge=rejudge)
    for path, text in texts(now, results, out).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            said.append(f"{path} is not that of the rows and verdicts")
    said += _of_dataset(results / DATASET, now.dataset)
    drawn = out.parent / "figures" / f"{FIGURE}.png"
    if not drawn.exists() or Image.open(drawn).info.get("Source") != source(figure_rows(now.claims)):
        said.append(f"{drawn} shows other numbers than the verdicts")
    return said


def _of_study(study: Study, *, rejudge: bool) -> list[str]:
    said = [
        f"{study.folder / 'README.md'} lacks the sentence {name}: add a line - **{name}.** ..."
        for name in SENTENCES
        if name not in study.sentences()
    ]
    path = study.folder / VERDICTS
    if not path.exists():
        return [*said, f"{path} is missing"]
    stored, known = study.stored(), load_claims()
    if not is_whole(stored):
        said.append(f"{path} was changed by hand, or is damaged")
    if stored["source"] != study.source:
        said.append(f"{path} was made of other rows than {study.folder} holds")
    for row in stored["claims"]:
        claim = known.get(row["id"])
        now = claim and [entry.model_dump() for entry in claim.published]
        if claim is None or row["statement"] != claim.statement or row["published"] != now:
            said.append(f"{path} has the claim {row['id']} as it no longer is")
    if rejudge:
        said += [f"{path}: {one}" for one in different(stored, verdicts_of(study))]
    return said


def _of_all(results: Path, found: Sequence[Study], *, rejudge: bool) -> list[str]:
    path = results / VERDICTS
    if not path.exists():
        return [f"{path} is missing"]
    stored = read_json(path)
    said = [f"{path} was made of other studies"] if stored["source"] != source_of(found) else []
    said += [] if is_whole(stored) else [f"{path} was changed by hand, or is damaged"]
    return said + ([f"{path}: {one}" for one in different(stored, verdicts_together(found))] if rejudge else [])


def _of_dataset(path: Path, own: Dataset | None) -> list[str]:
    if own is None:
        return [f"{path} is there, and no study is published"] if path.exists() else []
    try:
        there = read_dataset(path)
    except ConfigError as error:
        return [str(error)]
    return [] if there[1:] == own.whole[1:] else [f"{path} holds other runs, studies or evaluations than the folders"]


def different(a: Any, b: Any, place: str = "") -> list[str]:
    """Return where two contents of a verdicts.json differ: words exactly, and numbers by more than rounding."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [one for key in a for one in different(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [one for i, pair in enumerate(zip(a, b, strict=True)) for one in different(*pair, f"{place}[{i}]")]
    if isinstance(a, float) and isinstance(b, float):
        return [] if math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE) else [f"{place[1:]} is {a}, and {b} by the rows"]
    return [] if a == b and type(a) is type(b) else [f"{place[1:]} is {a!r}, and {b!r} by the rows"]


def _json(content: Row) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the published result, or check it. Return the exit code: 1 if something does not fit."""
    parser = argparse.ArgumentParser(description=prose(__doc__))
    parser.add_argument("results", type=given_path, help="the folder of published results")
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help="the page of the lecture")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="write nothing, and say what does not fit the rows")
    how.add_argument("--stored", action="store_true", help="judge nothing again")
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        raise ConfigError(f"{args.results}: there is no such folder")
    if args.check:
        said = problems(args.results, args.out)
        print("\n".join([*said, f"renew with: {COMMAND}"] if said else ["all of it fits the rows"]))
        return int(bool(said))
    if not args.stored:
        judge(studies(args.results)[0], args.results)
    print("\n".join(map(str, write(args.results, args.out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
