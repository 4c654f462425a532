"""Write a report on finished runs: the page, figures, tables and verdicts.json (``lmablate report``)."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.claims.report_verdicts import evidence, noise
from lmablate.claims.table import verdict_table
from lmablate.core.commands import command_parser
from lmablate.core.console import Column, folded, pasted, plain, progress, table
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.core.secrets import redacted
from lmablate.launcher.progress import accuracy
from lmablate.report.claim_tables import length_words, lines
from lmablate.report.controls import lines as control_lines
from lmablate.report.figures import draw, draw_verdicts, inline
from lmablate.report.judgement import VERDICTS_SCHEMA, judgement
from lmablate.report.ladder_sections import draw_ladders, ladder_rows, ladder_table
from lmablate.report.page import content, render_html, render_markdown
from lmablate.report.page_data import as_json, config_links, page_data
from lmablate.report.reproduce import command
from lmablate.report.sections import questions, without_runs
from lmablate.report.summary import arms_table
from lmablate.report.tuned_studies import shown
from lmablate.results.arms import show
from lmablate.results.common_targets import on_common_targets
from lmablate.results.folders import SkippedFile
from lmablate.results.load import load_history, load_runs, load_unfinished, result_folders
from lmablate.results.studies import studies_in
from lmablate.runs.run_directory import below, check_writable
from lmablate.scaling.ladder_summary import calibration_of
from lmablate.survey import judged as surveyed

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.report.sections import Question

MOST_NOTES = 3  # in the terminal; the page has all
PAGES = {"html": "index.html", "markdown": "report.md"}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write a report. Return 0, or 2 if there is nothing to report on."""
    parser = command_parser("report")
    parser.add_argument(
        "results_dir",
        nargs="+",
        type=given_path,
        metavar="RESULTS_DIR",
        help="a folder that training wrote to, or several",
    )
    parser.add_argument(
        "--out", default="report", type=given_path, metavar="DIR", help="where the report goes (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=PAGES, default="html", help="a page for a browser, or report.md for a README or paper"
    )
    parser.add_argument("-v", "--explain", action="store_true", help="print every verdict and note that the page has")
    args = parser.parse_args(argv)
    print(plain("\n".join(write_report(args.results_dir, args.out, args.format, explain=args.explain))))
    return 0


def write_report(
    results_dir: Sequence[str | Path], out: Path, page: str = "html", *, explain: bool = False
) -> list[str]:
    """Write the whole report into `out`, with the `page` format of PAGES. Return the lines to print, the verdicts first;
    `explain`: also those that no study asked for, and every note.

    Raises ConfigError if there are no finished runs, or `out` cannot be written."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedFile)
        runs = load_runs(results_dir)
        history = load_history(results_dir, run_ids=runs["run_id"])
    skipped = list(dict.fromkeys(str(warning.message) for warning in caught if warning.category is SkippedFile))
    unfinished = load_unfinished(results_dir)
    if runs.empty:
        raise ConfigError(_nothing(results_dir, unfinished, skipped))
    for folder in (out, out / "figures", out / "tables"):
        check_writable(folder, "--out")

    folders = result_folders(results_dir)
    studies = studies_in(folders)
    every = evidence(runs, studies)
    judged = judgement(every, history, studies)
    claims, control_rows, ladders = judged
    runs = on_common_targets(shown(every))
    sections = questions(every, studies, unfinished, history, claims, folders)
    notices = [*without_runs(studies, sections), *skipped]
    _write_tables(runs, every, claims, out / "tables", ladder_table(ladder_rows(ladders)))
    verdicts = {
        "schema": VERDICTS_SCHEMA,
        "controls": control_rows,
        "claims": claims,
        "comparisons": _comparisons(sections),
        "learning_rates": [row for question in sections for row in question.rates],
        "noise": noise(runs),
        "ladders": ladders,
        "forecasts": judged.forecasts,
        "survey": (survey := surveyed()),
    }
    atomic_write(out / "verdicts.json", json.dumps(verdicts, indent=1, allow_nan=False) + "\n")
    write_page(
        sections, claims, every, history, control_rows,
        unfinished=unfinished, notices=notices, results_dir=results_dir, survey=survey, out=out, page=page,
        ladders=ladders,
    )  # fmt: skip
    notes = [*_question_notices(sections), *notices]
    shown_notes = notes if explain else notes[:MOST_NOTES]
    more = [f"{len(notes) - len(shown_notes)} more notes are on the page (--explain)"] if notes != shown_notes else []
    return [
        *lines(claims, everything=explain),
        *control_lines(control_rows),
        *_tables(sections),
        *(["(nats per token; means over the runs that finished)"] if explain else []),
        "",
        *(folded(f"{row['study']}: {row['arm']} {row['words']}") for row in ladder_rows(ladders)),
        *(folded(f"note: {line}") for line in [*shown_notes, *more]),
        f"{_count(runs, every, unfinished)}; figures, tables and verdicts.json are in {out}",
        f"the page: {(out / PAGES[page]).absolute().as_uri()}",
        *_mending_commands(sections),
    ]


def write_page(
    sections: Sequence[Question],
    claims: list[dict[str, Any]],
    every: pd.DataFrame,
    history: pd.DataFrame,
    control_rows: list[dict[str, Any]],
    *,
    unfinished: list[dict[str, Any]],
    notices: list[str],
    results_dir: Sequence[str | Path],
    survey: list[dict[str, Any]],
    out: Path,
    page: str,
    ladders: Sequence[dict[str, Any]] = (),
) -> None:
    """Draw and save all figures, and write the page or the Markdown file next to them."""
    from lmablate.analysis._style import save

    sized = {one["study"] for one in ladders}
    alone = len(sections) == 1
    drawn = [
        draw(one, every, history, alone, headline=one.name not in sized)
        for one in progress(sections, "questions drawn")
    ]
    large = draw_ladders(ladders, claims)
    figures = [*draw_verdicts(claims), *large, *(one for own in drawn for one in own)]
    for one in progress(figures, "figures written"):
        save(one.figure, out / "figures" / one.stem)
    context = content(
        sections, claims, every, control_rows, drawn=drawn, unfinished=unfinished, notices=notices, results_dir=results_dir, survey=survey,
        ladders=ladder_rows(ladders), ladder_figures=large, calibrated=calibration_of(ladders)["words"],
    )  # fmt: skip
    if page == "markdown":
        text = render_markdown(context)
    else:
        links = config_links(sorted(set(every["run_id"])), results_dir, out)
        data = as_json(page_data(sections, history, links))
        text = render_html(context, {one.stem: inline(one) for one in figures}, data, links)
    atomic_write(out / PAGES[page], redacted(text))


def _question_notices(sections: Sequence[Question]) -> list[str]:
    """Return the notices of every question, with its name in front if there are several."""
    several = len(sections) > 1
    return [
        f"{question.name or 'no sweep'}: {line.removeprefix(f'{question.name}: ')}" if several else line
        for question in sections
        for line in question.notices
    ]


def _comparisons(sections: Sequence[Question]) -> list[dict[str, Any]]:
    """Return the comparisons of all questions. If there are several, arms have the study's name in front, as in tables/."""
    rows = []
    for question in sections:
        before = f"{question.name}: " if len(sections) > 1 and question.name else ""
        for row in question.comparisons:
            named = {side: f"{before}{row[side]}" for side in ("a", "b")} if row["axis"] == "arm" else {}
            rows.append(row | named)
    return rows


def _tables(sections: Sequence[Question]) -> list[str]:
    """Return the arms of each question as lines, best first, under its name if there are several."""
    out: list[str] = []
    for question in sections:
        if len(sections) > 1:
            out += [*([""] if out else []), f"{question.name or 'no sweep'}: {question.title}"]
        out += _table(question)
    return out


def _table(question: Question) -> list[str]:
    """Return the arms as lines, best first, and the loss of a unigram model."""
    runs, arms = question.runs, question.arms
    rows: list[tuple[str, ...]] = []
    tasks = "val_accuracy" in arms  # tasks have no bytes
    for arm in arms.to_dict("records"):
        loss, sd, bpb = (f"{arm[key]:.4f}" if show(arm[key]) != "-" else "-" for key in ("mean", "sd", "val_bpb"))
        sizes = (f"{arm[key]:,}" for key in ("n_params", "flops_per_token"))
        second = accuracy(arm) if tasks else bpb
        name = arm["arm"].removeprefix(f"{question.name}: ")
        length = length_words(arm["tokens_per_param"])
        rows.append((name, loss, sd, str(arm["n"]), str(arm["diverged"]), second, length, *sizes))
    known = runs["data.unigram_val_loss"].dropna().unique() if "data.unigram_val_loss" in runs else []
    rows += [("a unigram model", f"{value:.4f}", *[""] * 7) for value in known]
    kept = [Column("arm", keep=True, wrap=True), *(Column(name, keep=True) for name in ("mean val_loss", "sd", "runs"))]
    more = ("diverged", "accuracy" if tasks else "bits/byte", "tokens/param", "params", "FLOPs/token")
    return table([*kept, *map(Column, more)], rows).plain.splitlines()


def _mending_commands(sections: Sequence[Question]) -> list[str]:
    """Return the commands that would train the missing runs, each once, with their purpose. They are what to type next."""
    commands: dict[str, dict[str, None]] = {}
    for one in (one for question in sections for one in question.missing if one.command):
        commands.setdefault(one.command, {})[one.for_] = None
    heads = {
        line: f"next, for {', '.join(filter(None, names)) or 'missing runs'}: " for line, names in commands.items()
    }
    return [f"\n{head}{pasted(shlex.split(line), len(head))}" for line, head in heads.items()]


def _nothing(results_dir: Sequence[str | Path], unfinished: list[dict[str, Any]], skipped: list[str]) -> str:
    states = [row["state"] for row in unfinished]
    seen = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs at all"
    lines = [f"no finished runs in {', '.join(map(str, results_dir))} ({seen}): train some first, e.g. lmablate train"]
    for folder in [one for given in results_dir for one in below(Path(given))]:
        lines.append(f"there are runs one level down: lmablate report {folder}")
    return "\n".join([*lines, *skipped])


def _count(runs: pd.DataFrame, every: pd.DataFrame, unfinished: list[dict[str, Any]]) -> str:
    n, arms = runs["run_id"].nunique(), runs["arm"].nunique()
    text = f"{n} run{'s' * (n != 1)} of {arms} arm{'s' * (arms != 1)}"
    did = {"tune": "tuned them", "search": "were searched by"}
    counts = {stage: every.loc[every["stage"] == stage, "run_id"].nunique() if "stage" in every else 0 for stage in did}
    if len(every) > len(runs):
        text += "".join(f", and {counts[stage]} that {did[stage]}" for stage in did if counts[stage])
    return text + (f" ({len(unfinished)} more not finished)" if unfinished else "")


def _write_tables(
    runs: pd.DataFrame, every: pd.DataFrame, claims: list[dict[str, Any]], folder: Path, ladders: pd.DataFrame
) -> None:
    import pandas as pd

    tuned = every[every["stage"].isin(["tune", "search"])] if "stage" in every and len(every) > len(runs) else every[:0]
    every_run = pd.concat([runs, tuned], ignore_index=True) if len(tuned) else runs.copy()
    if "provenance.overrides" in every_run:
        every_run["provenance.overrides"] = [command(overrides) for overrides in every_run["provenance.overrides"]]
        every_run = every_run.rename(columns={"provenance.overrides": "command"})
    first = ["run_id", "arm"]
    ordered = every_run[[*first, *(column for column in every_run.columns if column not in first)]]
    frames = {
        "runs": ordered.sort_values(["arm", "init_seed"]),
        "arms": arms_table(runs),
        "verdicts": verdict_table(claims),
        **({"ladders": ladders} if len(ladders) else {}),
    }
    for name, frame in frames.items():
        atomic_write(folder / f"{name}.csv", frame.to_csv(index=False))
