"""The published studies: their archives, the verdicts on them, and what their pages say in three sentences."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmablate import archive
from lmablate.claims.report_verdicts import evidence
from lmablate.core.files import read_json
from lmablate.report.judgement import VERDICTS_SCHEMA, Judgement, judgement
from lmablate.results.archives import ROWS, STUDY, Archive, read_folder
from lmablate.results.dataset import joined
from lmablate.results.evaluations import ARCHIVE as EVALUATIONS
from lmablate.results.load import load_history, load_runs
from lmablate.results.studies import studies_in
from lmablate.schema.identity import SCIENCE_VERSION
from lmablate.schema.result import CHECKSUM, checksum

VERDICTS = "verdicts.json"
SENTENCES = ("Found", "How sure", "Not said")
DIGITS = 9  # of numbers in verdicts.json: the last ones differ between processors
EVALUATED = (None, "evaluate", "evaluate_shared")
Row = dict[str, Any]


class Study(NamedTuple):
    """A published study: its `folder`, and the runs in it."""

    folder: Path
    archive: Archive

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return self.folder.name

    @property
    def texts(self) -> list[str]:
        """Return the texts of its evaluated runs."""
        return sorted({row["choices"]["data"] for row in self.archive.rows if row.get("stage") in EVALUATED})

    @property
    def source(self) -> str:
        """Return a hash of its files, from which its verdicts were made."""
        found = [self.folder / name for name in (ROWS, STUDY, EVALUATIONS) if (self.folder / name).exists()]
        return digest(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in found))

    def stored(self) -> Row:
        """Return its verdicts.json; without claims while there is none."""
        path = self.folder / VERDICTS
        return read_json(path) if path.exists() else {"claims": [], "controls": [], "ladders": [], "forecasts": []}

    def sentences(self) -> dict[str, str]:
        """Return the three sentences of its page, by their names; those that are there."""
        path = self.folder / "README.md"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found = {
            name: re.search(rf"^- \*\*{name}\.\*\* (.+?)(?=\n- |\n\n|\Z)", text, re.M | re.S) for name in SENTENCES
        }
        return {name: " ".join(match[1].split()) for name, match in found.items() if match}


def digest(content: bytes) -> str:
    """Return sixteen hexadecimal digits of a hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def studies(results: Path) -> tuple[list[Study], list[str]]:
    """Return the published studies of the present science version in `results`, by name, and a note on each other one."""
    found, notes = [], []
    for path in sorted(results.glob(f"*/{ROWS}")):
        one = Study(path.parent, read_folder(path.parent))
        versions = {row.get("science_version") for row in one.archive.rows}
        if versions == {SCIENCE_VERSION}:
            found.append(one)
        else:
            said = ", ".join(map(str, sorted(versions - {SCIENCE_VERSION}, key=str))) or "none"
            notes.append(
                f"{one.name} does not count: its rows have science version {said}, today's is {SCIENCE_VERSION}"
            )
    return found, notes


def judged(content: Archive) -> Judgement:
    """Return what `lmablate report` says of the runs of an archive, restored into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive.unpack(content, Path(content.name), Path(folder))
        runs, used = load_runs(folder), studies_in([folder])
        found = judgement(evidence(runs, used), load_history(folder), used)
    return Judgement(*(_rounded(part) for part in found))


def verdicts_of(study: Study) -> Row:
    """Return the content of a study's verdicts.json: what a report on its folder alone says."""
    found = judged(study.archive)
    return sealed({
        "schema": VERDICTS_SCHEMA,
        "source": study.source,
        "texts": study.texts,
        "controls": found.controls,
        "claims": found.claims,
        "ladders": found.ladders,
        "forecasts": found.forecasts,
    })  # fmt: skip


def verdicts_together(found: Sequence[Study]) -> Row:
    """Return what only a report on all studies says: claims across them, and each verdict with all of them corrected together."""
    claims = judged(joined([one.archive for one in found])).claims if found else []
    return sealed({
        "schema": VERDICTS_SCHEMA,
        "source": source_of(found),
        "claims": [row for row in claims if row["scope"] == "across studies"],
        "joint": [
            {"id": row["id"], "study": row["study"], "verdict": row["verdict"], "joint": row["joint"]["verdict"]}
            for row in claims
            if row["joint"]
        ],
    })  # fmt: skip


def sealed(content: Row) -> Row:
    """Return the content of a verdicts.json with a checksum of it, as result.json has one."""
    return {**content, CHECKSUM: checksum(content)}


def is_whole(content: Row) -> bool:
    """Return whether the checksum of a verdicts.json fits."""
    return content.get(CHECKSUM) == checksum({key: value for key, value in content.items() if key != CHECKSUM})


def source_of(found: Iterable[Study]) -> str:
    """Return a hash of the files of several studies."""
    return digest(json.dumps({one.name: one.source for one in found}).encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
