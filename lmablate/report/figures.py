"""The figures of a report: each question's own, then the general ones, as files and as elements of the page."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lmablate.core.files import file_stem
from lmablate.results.arms import with_arms
from lmablate.schema.sweeps import stored_sweep

if TYPE_CHECKING:
    from types import ModuleType

    import pandas as pd
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from lmablate.report.sections import Question

STILL_RUNS = 200  # most runs in a still figure of curves; the page's interactive curves have all
LARGEST_SVG = 1_500_000  # characters; a larger figure is embedded as pixels


class Drawn(NamedTuple):
    """A figure of the report.

    `stem`: of its files; `kind`: headline, final_losses, loss_curves, differences or verdicts; `problem`: why it was not drawn.
    """

    stem: str
    kind: str
    caption: str
    figure: Figure
    problem: str = ""


def analyses(names: Iterable[str | None]) -> dict[str, ModuleType]:
    """Return the analysis modules (lmablate.analysis.<sweep> with a figure()) of the stored sweeps among `names`."""
    modules = {}
    for sweep in sorted({name for one in names if isinstance(one, str) and (name := stored_sweep(one)).isidentifier()}):
        if not sweep.startswith("_") and importlib.util.find_spec(f"lmablate.analysis.{sweep}"):
            module = importlib.import_module(f"lmablate.analysis.{sweep}")
            if hasattr(module, "figure"):
                modules[sweep] = module
    return modules


def draw(
    question: Question, every: pd.DataFrame, history: pd.DataFrame, alone: bool, *, headline: bool = True
) -> list[Drawn]:
    """Return the figures of one question, out of `every` finished run.

    If it is not `alone` in its report, the names of the general figures begin with its name. `headline`: with the figure of its
    stored sweep, which is of arms of one size."""
    from lmablate.analysis.curves import final_losses, loss_curves
    from lmablate.analysis.differences import differences

    out = []
    for module in analyses([question.name] if headline else []).values():
        rows = _runs_of(every, str(question.name))
        drawn = _figure_or_problem(lambda module=module, rows=rows: module.figure(rows, history))  # type: ignore[misc]
        out.append(Drawn(file_stem(str(question.name)), "headline", question.title, *drawn))
    few, note = _best_runs(question)
    records = history[history["run_id"].isin(few["run_id"])]
    draws: dict[str, tuple[str, bool, Callable[[], Figure]]] = {  # by kind: the caption, True if there is data, and the function
        "final_losses": ("Final validation loss of every arm and seed", True, lambda: final_losses(question.runs)),
        "loss_curves": (f"Loss against training tokens{note}", len(records) > 0, lambda: loss_curves(few, records)),
        "differences": (
            "Differences between arms, same seed", bool(question.comparisons), lambda: differences(question.comparisons)
        ),
    }  # fmt: skip
    for kind, (caption, something, make) in draws.items():
        if something:
            stem = kind if alone else f"{question.name or 'no_sweep'}_{kind}"
            out.append(Drawn(file_stem(stem), kind, caption, *_figure_or_problem(make)))
    return out


def draw_verdicts(claims: Sequence[dict[str, Any]]) -> list[Drawn]:
    """Return the figure of effects and verdicts of all tested claims, if there are any."""
    from lmablate.analysis.verdicts import is_drawn, verdicts

    tested = any(is_drawn(test) for claim in claims for test in claim["tests"])
    return [Drawn("verdicts", "verdicts", "Verdicts on the claims", verdicts(claims))] if tested else []


def inline(drawn: Drawn) -> Markup:
    """Return the figure as part of the page: vectors in the page's colours, or pixels if those would be too large."""
    from markupsafe import Markup

    from lmablate.analysis import _style

    svg = inline_svg(drawn.figure, drawn.stem)
    if len(svg) <= LARGEST_SVG:
        return svg
    buffer = io.BytesIO()
    with _style.style():
        drawn.figure.savefig(buffer, format="png", dpi=120, metadata={"Software": "lmablate"})
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(drawn.caption, data)


def inline_svg(figure: Figure, name: str) -> Markup:
    """Return the figure as an SVG element of the page.

    It has no external references, its own ids, and the page's colours, so that it turns dark with the page."""
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


def _runs_of(every: pd.DataFrame, sweep: str) -> pd.DataFrame:
    """Return all runs of a sweep for its analysis, with arms and attrs."""
    rows = every[every["sweep"] == sweep]
    rows.attrs.update(every.attrs)
    return with_arms(rows) if "stage" not in rows or rows["stage"].isna().all() else rows


def _best_runs(question: Question) -> tuple[pd.DataFrame, str]:
    """Return the runs that a still figure can show, best arms first, and a note on the others."""
    runs = question.runs
    if len(runs) <= STILL_RUNS:
        return runs, ""
    rank = {arm: i for i, arm in enumerate(question.arms["arm"])}
    few = runs.loc[runs["arm"].map(rank).sort_values(kind="stable").index[:STILL_RUNS]]
    few.attrs.update(runs.attrs)
    return few, f" (the {len(few)} runs of the best arms, of {len(runs):,})"


def _figure_or_problem(make: Callable[[], Figure]) -> tuple[Figure, str]:
    """Return a figure, or one with the error message, so that missing data do not stop the rest of the report."""
    from lmablate.analysis._style import message

    try:
        return make(), ""
    except Exception as error:
        problem = f"could not be drawn from these runs: {type(error).__name__}: {error}"
        return message(f"This figure {problem}"), problem
