"""The report's page: what the template is given, and figures as part of the page."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.arms import show
from lmablate.display import accuracy

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

Row = dict[str, Any]
SEED_COLUMNS = 5  # with more seeds than this the headline table gives their range instead


def render(
    runs: pd.DataFrame,
    comparisons: list[Row],
    claims: list[Row],
    rates: list[Row],
    figures: list[tuple[str, str, Figure]],
    headline: Collection[str],
    *,
    unfinished: list[Row],
    skipped: list[str],
    results_dir: Sequence[str | Path],
    survey: Sequence[Row] = (),
) -> str:
    """The page as HTML.

    `runs` and `rates` as from study_report, `comparisons` as from stats, `claims` as from claims.reading, `figures` as
    (name, caption, figure), `survey` as from lmablate.survey.judged.
    """
    import jinja2

    from lmablate import summary
    from lmablate.analysis.differences import name as comparison_name
    from lmablate.budget import DEFINITIONS
    from lmablate.claims.data import GRADES
    from lmablate.study_report import spread_words

    arms = summary.arms_table(runs)
    sweeps = sorted({name for name in runs["sweep"] if isinstance(name, str)})
    asked = summary.question(runs)
    titled = summary.sweep_question(sweeps[0]) if len(sweeps) == 1 else None
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "show": show,
        "loss": _loss,
        "signed": _signed,
        "count": _count,
        "accuracy": accuracy,
        "short": _short,
        "command": summary.command,
    }
    return environment.get_template("report.html").render(
        title=titled or asked,
        asked=asked,
        sweeps=sweeps,
        colors=_colors(arms["arm"]),
        arms=_with_seeds(arms, runs),
        seeds=_seed_names(runs),
        runs=_run_rows(runs),
        notices=summary.notices(runs, arms),
        skipped=skipped,
        claims=[{**claim, "tests": [_test_words(claim, test) for test in claim["tests"]]} for claim in claims],
        grades=GRADES,
        survey=survey,
        rates=rates,
        paired=spread_words(comparisons),
        defined=[DEFINITIONS[key] for key in ("params", "params_non_embedding", "flops")],
        comparisons=[{**row, "name": comparison_name(row)} for row in comparisons],
        headline=[(name, caption, inline_svg(figure, name)) for name, caption, figure in figures if name in headline],
        figures={name: inline_svg(figure, name) for name, _, figure in figures if name not in headline},
        varied=summary.varied(runs),
        followed=summary.followed(runs),
        equal=summary.held_equal(runs),
        unigram=_common(runs, "data.unigram_val_loss"),
        failed=[row for row in unfinished if row["state"] == "failed"],
        unfinished=[row for row in unfinished if row["state"] != "failed"],
        commands=summary.commands(runs),
        provenance=summary.provenance(runs),
        again=shlex.join(["python", "-m", "lmablate.report", *map(str, results_dir)]),
    )


def _test_words(claim: Row, test: Row) -> Row:
    """A test of a claim with what its table cells say; published effects are of a claim's first test."""
    unit = "%" if test["unit"] == "per cent" else "points"
    first = test["says"] == claim["tests"][0]["says"]
    published = [one for one in claim["published"] if one["effect"] is not None] if first else []
    interval = [_signed(end, 2) for end in test["interval_95"] or ()]
    return {
        **test,
        "effect_words": "–" if test["effect"] is None else f"{_signed(test['effect'], 2)} {unit}",
        "published_words": "; ".join(f"{_signed(one['effect'], 2)} {unit} ({one['grade']})" for one in published)
        or "–",
        "margin_words": f"{show(test['margin'])} {unit}",
        "interval_words": " to ".join(interval) or "–",
        "where_words": ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in test["where"].items()),
        "arms_words": f"{', '.join(test['plus'])} − {', '.join(test['minus'])}",
    }


def inline_svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element of the page: no outside references, ids of its own, and the page's colours, so that
    it turns dark with the page."""
    from markupsafe import Markup

    from lmablate.analysis import _style

    figure.suptitle("")  # the page has a heading of its own
    buffer = io.StringIO()
    with _style.style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    tokens = {_style.INK: "ink", _style.MUTED: "muted", _style.GRID: "line", _style.PAPER: "paper"}
    tokens |= {color: f"c{i}" for i, color in enumerate(_style.PALETTE)}
    for color, token in tokens.items():
        svg = re.sub(rf"{color}\b", f"var(--{token})", svg, flags=re.IGNORECASE)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1))


def _colors(arms: pd.Series) -> dict[str, str]:
    """The page's colour of each arm, the same as in the figures."""
    from lmablate.analysis._style import PALETTE, arm_styles

    return {arm: f"var(--c{PALETTE.index(look.color)})" for arm, look in arm_styles(arms).items()}


def _seed_names(runs: pd.DataFrame) -> list[str]:
    """The seeds in order, as columns of the headline table; none where they are too many."""
    from lmablate.summary import seed_word

    names = sorted({seed_word(row) for row in runs.to_dict("records")}, key=lambda name: (len(name), name))
    return names if len(names) <= SEED_COLUMNS else []


def _with_seeds(arms: pd.DataFrame, runs: pd.DataFrame) -> list[Row]:
    """The arms with `by_seed`, each seed's finished or diverged runs, and `above`, the distance to the best mean."""
    from lmablate.summary import seed_word

    rows = []
    for arm in arms.to_dict("records"):
        by_seed: dict[str, list[Row]] = {}
        for run in runs[runs["arm"] == arm["arm"]].to_dict("records"):
            by_seed.setdefault(seed_word(run), []).append(run)
        rows.append({**arm, "by_seed": by_seed, "above": arm["mean"] - arms["mean"].min()})
    return rows


def _run_rows(runs: pd.DataFrame) -> list[Row]:
    """Every run for the page's last table: arms as in the headline, then seeds."""
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
    from lmablate.summary import seed_word

    rows = table.sort_values(["mean", "arm", "init_seed", "data_seed"], na_position="last").to_dict("records")
    return [{**row, "seed": seed_word(row), "overrides": row["provenance.overrides"]} for row in rows]


def _common(runs: pd.DataFrame, column: str) -> float | None:
    values = runs[column].dropna().unique() if column in runs else []
    return float(values[0]) if len(values) == 1 else None


def _loss(value: Any, digits: int = 4) -> str:
    return "–" if show(value) == "-" else f"{value:.{digits}f}"


def _signed(value: Any, digits: int = 4) -> str:
    return "–" if show(value) == "-" else f"{value:+.{digits}f}".replace("-", "−")


def _short(value: Any) -> str:
    """Four digits, enough to see that two sizes are within a per cent; tables/arms.csv has all of them."""
    """Four digits, enough to see that two sizes are within a per cent; tables/arms.csv has all of them."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= 0.99995 * size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):#.4g} {letter}"
    return _count(value)


def _count(value: Any) -> str:
    return "–" if show(value) == "-" else f"{value:,.0f}"
