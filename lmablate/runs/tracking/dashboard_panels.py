"""Build the panels of a dashboard with wandb-workspaces; only dashboard.py imports this.

Our configuration is flat, with dotted keys (``optim.lr``), which wandb keeps as one key each:
``config:optim.lr.value``. The library reads a dotted name as a path into a nested configuration
(``config:optim.value.lr``), so its columns and scatter plots are corrected here; its grouping takes the exact name. Ids
are made from titles, so that a specification does not change unless the sweep does.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from lmablate.runs.tracking.dashboard_sweep import CURVES, LOSS, RATE, SEEDS, STAGE, SUMMARY, TUNE, DashboardSweep, X

TITLES = {
    "val_loss": "Validation loss (nats per token)",
    "train_loss": "Training loss (nats per token)",
    "grad_norm": "Gradient norm",
    "val_bpb": "Bits per byte",
}


KINDS: dict[type, str] = {
    wr.LinePlot: "curves", wr.ScatterPlot: "scatter plot", wr.ParallelCoordinatesPlot: "parallel coordinates"
}  # fmt: skip


class FlatColumn(wr.ParallelCoordinatesPlotColumn):
    """A column over a flat configuration key."""

    def _to_model(self) -> Any:
        model = super()._to_model()
        if isinstance(self.metric, wr.Config):
            model.accessor = accessor(self.metric.name)
        return model


class FlatScatter(wr.ScatterPlot):
    """A scatter plot over a flat configuration key."""

    def _to_model(self) -> Any:
        model = super()._to_model()
        if isinstance(self.x, wr.Config):
            model.config.x_axis = accessor(self.x.name)
        return model


def accessor(key: str) -> str:
    """Return wandb's name of a flat configuration key in a column."""
    return f"config:{key}.value"


def workspace(sweep: DashboardSweep, entity: str, project: str) -> ws.Workspace:
    """Return the runs of the sweep in sections: varied keys, loss curves by arm, learning rates. A workspace has one
    set of runs; for a study it shows those that evaluate the arms at their own rates."""
    sections = [ws.Section(name="What it varies", panels=[_coordinates(sweep)], is_open=True)]
    for key in sweep.groups or SEEDS[:1]:
        panels: list[Any] = [_curve(metric, key) for metric in CURVES]
        sections.append(ws.Section(name=f"Curves by {key}, with a band over seeds", panels=panels, is_open=True))
    if not sweep.tuned and (rates := _rates(sweep)):
        sections.append(ws.Section(name="Learning rates", panels=rates, is_open=True))
    shown = [expr.Config(STAGE) == sweep.stages[0]] if sweep.study else []
    runset = ws.RunsetSettings(
        filters=_of_sweep(sweep, *shown),
        pinned_columns=_columns(sweep),
        order=[expr.Ordering(expr.Summary(LOSS), ascending=True)],
    )
    settings = ws.WorkspaceSettings(x_axis=X, max_runs=100)
    return ws.Workspace(
        entity=entity, project=project, name=f"lmablate {sweep.name}", sections=sections, settings=settings,
        runset_settings=runset,
    )  # fmt: skip


def report(sweep: DashboardSweep, entity: str, project: str) -> wr.Report:
    """Return a report of the sweep: curves by arm (of evaluation runs), learning rates (of tuning runs), and every
    run."""
    evaluated = _of_sweep(sweep, *([expr.Config(STAGE) != TUNE] if sweep.tuned else []))
    keys = [*sweep.groups, *([STAGE] if len(sweep.stages) > 1 else [])]
    groups = [f"config.{key}.value" for key in keys]
    curves = [_placed(_curve(metric, None), i) for i, metric in enumerate(CURVES)]
    blocks: list[Any] = [
        wr.P(sweep.question),
        wr.P(
            f"Runs whose group is {sweep.name}. A run that another sweep trained first stands under that sweep's name; verdicts are in "
            "lmablate's own report (lmablate report), since wandb pairs no seeds and corrects for no number of tests."
        ),
        wr.H2("Curves by arm"),
        _grid("Curves", curves, evaluated, sweep, groups),
        wr.H2("What it varies"),
        _grid("Parallel coordinates", [_placed(_coordinates(sweep), 0, wide=True)], evaluated, sweep),
    ]
    if rates := _rates(sweep):
        tuning = _of_sweep(sweep, *([expr.Config(STAGE) == TUNE] if sweep.tuned else []))
        panels = [_placed(panel, 0, wide=True) for panel in rates]
        blocks += [wr.H2("Loss against learning rate"), _grid("Learning rates", panels, tuning, sweep)]
    blocks += [wr.H2("Runs"), _grid("Runs", [], _of_sweep(sweep), sweep)]
    return wr.Report(
        project=project, entity=entity, title=f"{sweep.name}: {sweep.question}"[:128], description="Made by lmablate.dashboard",
        blocks=blocks, width="fluid",
    )  # fmt: skip


def outline(view: ws.Workspace) -> list[str]:
    """Return the sections of a workspace with the panels of each, one a line."""
    lines = []
    for section in view.sections:
        lines.append(section.name)
        for panel in section.panels:
            kind = next(word for kind, word in KINDS.items() if isinstance(panel, kind))
            lines.append(f"  {kind}: {getattr(panel, 'title', '')}")
    return lines


def publish(sweep: DashboardSweep, entity: str | None, project: str) -> list[str]:
    """Save workspace and report, and return a line with the URL of each. `entity` None is the account's own."""
    owner = entity or wr.Report(project=project).entity  # type: ignore[call-arg]  # asks wandb who the user is
    page = report(sweep, owner, project).save(draft=True)
    view = workspace(sweep, owner, project).save_as_new_view()
    return [f"workspace: {view.url}", f"report (a draft): {page.url}"]


def as_json(thing: ws.Workspace | wr.Report) -> dict[str, Any]:
    """Return the JSON content that the library would send, without its creation times."""
    model = thing._to_model()
    content: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return {key: value for key, value in content.items() if key not in ("createdAt", "updatedAt")}


def _of_sweep(sweep: DashboardSweep, *more: Any) -> Any:
    """Return a filter on the runs of the sweep: their group is its name (run.py)."""
    return expr.And(expr.Metric("Group") == sweep.name, *more)


def _columns(sweep: DashboardSweep) -> list[str]:
    keys = dict.fromkeys([*sweep.groups, *([STAGE] if sweep.study else []), *sweep.varied, RATE, *SEEDS[:1]])
    return ["run:displayName", *(f"summary:{name}" for name in SUMMARY), *(accessor(key) for key in keys)]


def _curve(metric: str, group: str | None) -> wr.LinePlot:
    """Return a plot of a metric over tokens: mean and one standard deviation over the runs of a group (None: of the run set)."""
    title = TITLES[metric] + (f", by {group}" if group else "")
    plot = wr.LinePlot(
        title=title, x=X, y=[metric], title_x="training tokens", groupby=f"{group}.value" if group else None,
        aggregate=True, groupby_aggfunc="mean", groupby_rangefunc="stddev", max_runs_to_show=100,
    )  # fmt: skip
    return _named(plot, title)


def _coordinates(sweep: DashboardSweep) -> wr.ParallelCoordinatesPlot:
    keys = dict.fromkeys([*sweep.groups, *sweep.varied])
    columns: list[Any] = [FlatColumn(wr.Config(key), display_name=key) for key in keys]
    columns.append(FlatColumn(wr.Config(RATE), display_name="learning rate", log=True))
    columns.append(FlatColumn(wr.SummaryMetric(LOSS), display_name=TITLES[LOSS]))
    return _named(wr.ParallelCoordinatesPlot(title="What it varies", columns=columns), "coordinates")


def _rates(sweep: DashboardSweep) -> list[Any]:
    """Return plots of loss against learning rate if the sweep varies it."""
    if not sweep.tuned and RATE not in sweep.varied:
        return []
    plot = FlatScatter(
        title="Final validation loss against learning rate", x=wr.Config(RATE), y=wr.SummaryMetric(LOSS), log_x=True
    )
    return [_named(plot, "rates")]


def _grid(
    name: str, panels: list[Any], filters: Any, sweep: DashboardSweep, groups: list[str] | None = None
) -> wr.PanelGrid:
    """Return a block of panels over runs of the report's own project, so that no server is asked for its name."""
    runset = wr.Runset(
        name=name, filters=filters, groupby=groups or [], order=[wr.OrderBy(wr.SummaryMetric(LOSS), ascending=True)],
        pinned_columns=_columns(sweep),
    )  # fmt: skip
    runset._id = _id(f"runset {name}")
    return wr.PanelGrid(runsets=[runset], panels=panels)


def _placed(panel: Any, index: int, *, wide: bool = False) -> Any:
    """Place two panels a row, or one as wide as the page (24 columns)."""
    panel.layout = (
        wr.Layout(x=0, y=0, w=24, h=10) if wide else wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8)
    )
    return panel


def _named(panel: Any, name: str) -> Any:
    panel._id = _id(name)
    return panel


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:11]
