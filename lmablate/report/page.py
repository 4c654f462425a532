"""The report as HTML and as Markdown: the values for their templates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.budget import DEFINITIONS
from lmablate.claims.claim import GRADES
from lmablate.claims.evidence import SHORT
from lmablate.launcher.progress import accuracy
from lmablate.report import summary
from lmablate.report.claim_tables import answers, by_study, headline, length_words, minus, signed
from lmablate.report.controls import sentence
from lmablate.report.page_data import content_hash
from lmablate.report.reproduce import command
from lmablate.report.sections import Missing
from lmablate.report.summary import seed_label
from lmablate.report.tuned_studies import correlation_note
from lmablate.results.arms import is_missing, show

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.report.figures import Drawn
    from lmablate.report.sections import Question

Row = dict[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("report_series.js", "report_curves.js", "report.js")
SEED_COLUMNS = 5  # with more seeds the headline table gives their range instead
SEEDS = ["seed", "init_seed", "data_seed"]
TITLED = 6  # most questions named in the title
STILL_ROWS = 200  # rows of a table that the page shows without its script; tables/ has all


def content(
    questions: Sequence[Question],
    claims: Sequence[Row],
    every: pd.DataFrame,
    controls: Sequence[Row] = (),
    *,
    drawn: Sequence[Sequence[Drawn]],
    unfinished: Sequence[Row],
    notices: Sequence[str],
    results_dir: Sequence[str | Path],
    survey: Sequence[Row],
    ladders: Sequence[Row] = (),
    ladder_figures: Sequence[Drawn] = (),
    calibrated: str = "",
) -> Row:
    """Return the values that page and Markdown show.

    `drawn`: a list of figures for each question. `claims` as from claims.report_verdicts. `every`: finished runs. `controls` as
    from report.controls. `notices`: of the report as a whole. `survey` as from lmablate.survey.judged. `ladders` and
    `ladder_figures` as from report.ladder_sections; `calibrated`: how many forecasts held."""
    sections = [_question(question, list(figures)) for question, figures in zip(questions, drawn, strict=True)]
    alone = sections[0] if len(sections) == 1 else None
    return {
        "title": alone["title"] if alone else _title([one["name"] for one in sections]),
        "alone": alone,
        "questions": sections,
        "n_runs": len({run_id for one in questions for run_id in one.runs["run_id"]}),  # questions may share runs
        "n_arms": sum(one["n_arms"] for one in sections),
        "n_tuned": len({run_id for one in questions for run_id in one.tuned["run_id"]}),
        "notices": notices,
        "controls": controls,
        "controls_said": sentence(controls),
        "judged": headline(claims) if claims else "",
        "short_limit": SHORT,
        "at_length": _at_length(claim["tokens_per_param"] for claim in claims),
        "groups": (groups := by_study(claims)),
        "answers": answers(groups),
        "several": len({claim["study"] for claim in claims if claim["scope"] == "asked"}) > 1,
        "grades": GRADES,
        "survey": survey,
        "ladders": ladders,
        "ladder_figures": ladder_figures,
        "calibrated": calibrated,
        "defined": [DEFINITIONS[key] for key in ("params", "params_non_embedding", "flops")],
        "tasks": any(one["tasks"] for one in sections),
        "failed": [row for row in unfinished if row["state"] == "failed"],
        "unfinished": [row for row in unfinished if row["state"] != "failed"],
        "provenance": summary.provenance(every),
        "again": shlex.join(["lmablate", "report", *map(str, results_dir)]),
        "still_rows": STILL_ROWS,
    }


def render_html(context: Row, figures: Mapping[str, Any], data: Any, links: Mapping[str, str | None]) -> str:
    """Return the page; `context` from content, `figures` as markup by stem, `data` from page_data.as_json, `links` to configs."""
    from markupsafe import Markup

    script = "".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    return templates(html=True).get_template("report.html").render(
        **context, figures=figures, data=data, links=links, script=Markup(script), script_source=Markup(content_hash(script))
    )  # fmt: skip


def render_markdown(context: Row) -> str:
    """Return the Markdown file, with links to figures/ and without interactive parts."""
    text = templates(html=False).get_template("report.md").render(**context)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"  # templates leave blank lines for empty parts


def templates(html: bool) -> Any:
    """Return jinja2's environment of the templates, for HTML or for Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=html, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    filters: dict[str, Callable[..., str]] = {
        "show": show, "loss": _loss, "per_param": length_words, "signed": signed, "minus": minus, "count": _count, "accuracy": accuracy,
        "short": _short, "command": command, "cell": _cell, "code": _code,
    }  # fmt: skip
    environment.filters |= filters
    return environment


def _question(question: Question, drawn: list[Drawn]) -> Row:
    from lmablate.analysis.differences import name as comparison_name

    runs, arms = question.runs, question.arms
    name, varied = question.name or "no_sweep", question.varied
    title = f"Runs of no stored sweep: {varied}" if question.name is None else question.title
    rows = _run_rows(runs)
    return {
        "id": "".join(letter if letter.isalnum() else "-" for letter in name),
        "name": question.name,
        "title": question.title,
        "heading": title,
        "asked": varied if varied != question.title else "",
        "n_runs": len(runs),
        "n_tuned": len(question.tuned),
        "n_arms": len(arms),
        "notices": question.notices,
        "missing": question.missing + [Missing(f"{one.caption}: {one.problem}.") for one in drawn if one.problem],
        "colors": _colors(arms["arm"]),
        "arms": _with_seeds(arms.head(STILL_ROWS), runs),
        "seeds": _seed_names(runs),
        "tasks": "val_accuracy" in arms,
        "numerics": runs["numerics"].nunique() > 1,
        "unigram": _common(runs, "data.unigram_val_loss"),
        "at_length": (at_length := _at_length(arms["tokens_per_param"])),
        "at_length_after": f", {at_length.rstrip('. ')}" if at_length else "",
        "headline": [one for one in drawn if one.kind == "headline"],
        "figures": {one.kind: one for one in drawn},
        "rates": question.rates,
        "comparisons": [{**row, "name": comparison_name(row)} for row in question.comparisons[:STILL_ROWS]],
        "n_comparisons": len(question.comparisons),
        "paired": correlation_note(question.comparisons),
        "varied": summary.varied(runs),
        "followed": summary.followed(runs),
        "equal": summary.held_equal(runs),
        "commands": question.commands,
        "runs": rows[:STILL_ROWS],
        "diverged": [row for row in rows if row["status"] != "completed"][:STILL_ROWS],
        "n_diverged": sum(row["status"] != "completed" for row in rows),
    }


def _at_length(values: Iterable[Any]) -> str:
    """Return the part of a caption that says how long the runs are: ``20 tokens per parameter. ``."""
    known = sorted({float(value) for value in values if not is_missing(value)})
    ends = dict.fromkeys(length_words(value) for value in (known[0], known[-1])) if known else ()
    return f"{' to '.join(ends)} tokens per parameter. " if ends else ""


def _title(names: Sequence[str | None]) -> str:
    """Return the title, with the names of the studies if they are few."""
    known = [name or "runs of no sweep" for name in names]
    return f"{len(known)} questions" + (f": {', '.join(known)}" if len(known) <= TITLED else "")


def _colors(arms: pd.Series) -> dict[str, str]:
    """Return the page's colour of each arm, as in the figures."""
    from lmablate.analysis._style import PALETTE, arm_styles

    return {arm: f"var(--c{PALETTE.index(look.color)})" for arm, look in arm_styles(arms).items()}


def _seed_names(runs: pd.DataFrame) -> list[str]:
    """Return the seeds in order, as columns of the headline table; empty if they are too many."""
    names = sorted({seed_label(row) for row in runs[SEEDS].to_dict("records")}, key=lambda name: (len(name), name))
    return names if len(names) <= SEED_COLUMNS else []


def _with_seeds(arms: pd.DataFrame, runs: pd.DataFrame) -> list[Row]:
    """Return the arms with `by_seed`, each seed's finished or diverged runs, and `above`, the distance to the best mean."""
    rows = []
    own = dict(tuple(runs[["arm", *SEEDS, "status", "val_loss", "diverged_at_step"]].groupby("arm")))
    for arm in arms.to_dict("records"):
        by_seed: dict[str, list[Row]] = {}
        for run in own[arm["arm"]].to_dict("records"):
            by_seed.setdefault(seed_label(run), []).append(run)
        rows.append({**arm, "by_seed": by_seed, "above": arm["mean"] - arms["mean"].min()})
    return rows


def _run_rows(runs: pd.DataFrame) -> list[Row]:
    """Return every run for the last table: arms as in the headline, then seeds."""
    columns = [
        "run_id",
        "arm",
        "seed",
        "init_seed",
        "data_seed",
        "status",
        "val_loss",
        "val_bpb",
        "val_accuracy",
        "train_loss",
        "init_val_loss",
        "tokens",
        "tokens_per_param",
    ]
    columns += [
        "diverged_at_step",
        "tokens_per_second",
        "wall_seconds",
        "peak_memory_bytes",
        "numerics",
        "provenance.overrides",
    ]
    table = runs.reindex(columns=columns).assign(mean=runs.groupby("arm")["val_loss"].transform("mean"))

    rows = table.sort_values(["mean", "arm", "init_seed", "data_seed"], na_position="last").to_dict("records")
    return [{**row, "seed": seed_label(row), "overrides": row["provenance.overrides"]} for row in rows]


def _common(runs: pd.DataFrame, column: str) -> float | None:
    values = runs[column].dropna().unique() if column in runs else []
    return float(values[0]) if len(values) == 1 else None


def _loss(value: Any, digits: int = 4) -> str:
    return "–" if show(value) == "-" else f"{value:.{digits}f}"


def _short(value: Any) -> str:
    """Return four digits of a number, enough to see that two sizes are within a per cent; tables/arms.csv has all digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= 0.99995 * size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):#.4g} {letter}"
    return _count(value)


def _count(value: Any) -> str:
    return "–" if show(value) == "-" else f"{value:,.0f}"


def _code(value: Any) -> str:
    """Return text as one line of Markdown code; nothing in it ends the code."""
    return " ".join(str(value).split()).replace("`", "'")


def _cell(value: Any) -> str:
    """Return text as one cell, line or list item of Markdown; markup in it is escaped."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]<>|#$":
        text = text.replace(sign, "\\" + sign)
    return text
