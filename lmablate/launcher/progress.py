"""Show the progress of runs while they train, and their results at the end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from lmablate.core.console import Column, console, duration, explains, folded, plain, table
from lmablate.launcher.time_left import Todo, time_left
from lmablate.results.common_targets import COMMON

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.schema.result import RunResult

LINE_SECONDS = 15.0  # between two lines about a running job without a live display
LOOK_SECONDS = 1.0  # between two checks of runs that others may have finished
BAR = 10  # width of a live bar in cells
STOPPING = (
    "stopping: checkpoints are being written (Ctrl-C again stops at once, and loses the steps since the last one)"
)

COMPILING = "compiling first, up to half a minute for each kind of model (runtime.compile=false does without)"


class Board:
    """A live table on a terminal, plain lines elsewhere (``runtime.progress`` chooses)."""

    def __init__(self, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
        self.jobs, self.todo = list(jobs), list(todo)
        self._job = {job.run_id: job for job in jobs}
        self.failed: list[tuple[Job, str]] = []
        self.status: dict[str, dict[str, Any]] = {}
        self.began = time.monotonic()
        self._printed: dict[str, float] = {}
        self._open = list(self.jobs)  # not known to be done
        self._looked, self._head = -math.inf, ""  # time of their last check, and what it found
        self._done: set[str] = set()  # ids of runs known to be done
        self._lowest: tuple[float, Job] | None = None
        self._compiling = False  # whether COMPILING has been printed
        self._begun: dict[str, int] = {}  # first step of each run's attempt
        self._times = {job.run_id: Todo(job.cfg, float(job.work), {}) for job in self.todo}
        wanted = jobs[0].cfg.runtime.progress if jobs else "off"
        self.console = console()
        self.mode = ("live" if self.console.is_terminal else "lines") if wanted == "auto" else wanted
        self._live: Live | None = None

    def __enter__(self) -> Board:
        merged = sum(job.requests for job in self.jobs) - len(self.jobs)
        self.print_line(
            f"{len(self.jobs)} run{'s' * (len(self.jobs) != 1)}"
            + (f" ({merged} asked for twice)" if merged else "")
            + f": {len(self.jobs) - len(self.todo)} done already, {len(self.todo)} to train; results in {self.jobs[0].cfg.results_dir}"
        )
        if self.mode == "live" and self.todo:
            self.console = console(live=True)  # prints lines above the table
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
            self._live, self.console = None, console()

    def print_line(self, text: str) -> None:
        """Print a line, unless the display is off."""
        if self.mode != "off":
            self.console.print(Text(plain(text)), soft_wrap=True)
            sys.stdout.flush()

    def stopping(self) -> None:
        """Print at once that a signal was received, since a step may take long. Safe in a signal handler."""
        with suppress(RuntimeError):  # the signal interrupted another line
            self.print_line(STOPPING)

    def started(self, job: Job) -> None:
        """Register a started process; its line comes when training begins."""
        self.status[job.run_id] = {"step": 0, "steps": job.cfg.trainer.steps}
        self._begun.pop(job.run_id, None)
        if job.cfg.runtime.compile is True and not self._compiling:
            self._compiling = True
            self.print_line(COMPILING)

    def update(self, job: Job, status: dict[str, Any]) -> None:
        """Store a heartbeat, and print its news."""
        if not status:
            return
        before = self.status.get(job.run_id, {})
        self.status[job.run_id] = {"steps": before.get("steps"), **status}
        if job.run_id in self._times:
            self._times[job.run_id].status = self.status[job.run_id]
        if self.mode != "lines":
            return
        if "from" in status and self._begun.get(job.run_id) != status["from"]:
            self._begun[job.run_id] = status["from"]
            self.print_line(self._begins(job, status))
        if (doing := status.get("doing")) and doing != before.get("doing"):
            self.print_line(f"        {job.run_id}  {doing}")
        now = time.monotonic()
        if status.get("step") and not doing and now - self._printed.get(job.run_id, self.began) >= LINE_SECONDS:
            self._printed[job.run_id] = now
            self.print_line(
                f"        {job.run_id}  step {status['step']}/{status['steps']}  {_losses(status)}{self._left()}"
            )

    def _begins(self, job: Job, status: dict[str, Any]) -> str:
        if not status["from"]:
            return f"start   {job.run_id}  {job.label}"
        return f"continue {job.run_id}  {job.label}  from step {status['from']}/{status['steps']}"

    def finished(self, job: Job, status: dict[str, Any]) -> None:
        """Print how a job has ended."""
        self.status.pop(job.run_id, None)
        if status["state"] == "failed":
            self.failed.append((job, status["error"]))
            self._end(job)
            self.print_line(f"FAILED  {job.run_id}  {job.label}: {status['error']}")
        elif status["state"] == "done":
            name = (
                f"{job.run_id}  {job.label}" if len(self.jobs) > 1 else job.run_id
            )  # a single run's label was just printed
            self.print_line(f"{self._count():>3}/{len(self.jobs)}  {name}: {outcome(job.row)}{self._left()}")

    def summary(self) -> None:
        """Print the table of all runs, best first, and the failures."""
        rows = sorted(
            ((job, job.row) for job in self.jobs if job.done),
            key=lambda pair: (pair[1].val_loss is None, pair[1].val_loss or 0.0),
        )
        if rows and self.mode != "off":
            self.console.print(results_table(rows))
            for line in for_scale(rows[0][1]) if explains() else ():
                self.print_line(folded(line))
        for job, reason in self.failed:
            overrides = " ".join(job.cfg.overrides) or "(defaults)"
            print(f"failed: {job.run_id}  {overrides}\n  {reason}\n  log: {job.directory.log_path}", file=sys.stderr)
        if self.failed:
            print(
                f"{len(self.failed)} of {len(self.jobs)} runs failed; the same command tries them again",
                file=sys.stderr,
            )

    def _count(self) -> int:
        """Return how many runs are done; checking the open ones."""
        still = []
        for job in self._open:
            if not job.done:
                still.append(job)
                continue
            self._done.add(job.run_id)
            self._end(job)
            loss = job.row.val_loss
            if loss is not None and (self._lowest is None or loss < self._lowest[0]):
                self._lowest = loss, job
        self._open = still
        return len(self._done)

    def _end(self, job: Job) -> None:
        if job.run_id in self._times:
            self._times[job.run_id].end()

    def _left(self) -> str:
        """Return the remaining time of the command in brackets; empty if it is unknown or zero."""
        todo = list(self._times.values())
        seconds = None if all(one.ended for one in todo) else time_left(todo)
        if seconds is None:
            return ""
        if len(todo) == 1:
            return f"  ({duration(seconds)} left)"
        whole = "all" if todo[0].cfg.stage is None else "this stage"  # later stages of a study are not known yet
        return f"  ({whole} done in {duration(seconds)})"

    def _best(self) -> str:
        if self._lowest is None:
            return ""
        loss, job = self._lowest
        return f", best so far {loss:.4f} ({job.label})"

    def _render(self) -> Group:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._head = f"{self._count()}/{len(self.jobs)} done{self._best()}{self._left()}"
        head = Text(plain(self._head), style="bold")
        rows = [(self._job[run_id], status) for run_id, status in self.status.items()]
        return Group(head, *([live_table(rows, ascii_only=self.console.options.ascii_only)] if rows else []))


def live_table(rows: Sequence[tuple[Job, dict[str, Any]]], *, ascii_only: bool = False) -> Text:
    """Return the table of running jobs: label and activity, progress, and latest numbers."""
    sign = "#" if ascii_only else "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
    cells = []
    for job, status in rows:
        step, steps = status.get("step") or 0, status.get("steps") or job.cfg.trainer.steps
        doing = f": {status['doing']}" if status.get("doing") else ""
        bar = sign * (BAR * min(step, steps) // max(1, steps))
        cells.append((job.run_id, job.label + doing, f"{step}/{steps}", *_numbers(status), bar.ljust(BAR)))
    columns = (Column("run", keep=True, left=True), Column("what", keep=True, wrap=True), Column("step", keep=True))
    return table([*columns, *map(Column, ("train", "val", "accuracy", "tokens/s", ""))], cells)


def results_table(rows: Sequence[tuple[Job, RunResult]]) -> Text:
    """Return a table with a row a run."""
    tasks = any(row.val_accuracy is not None for _, row in rows)  # tasks have no bytes
    mixed = len({row.choices.get("objective") for _, row in rows}) > 1  # their losses have different targets
    measure = "accuracy" if tasks else "second half" if mixed else "bits/byte"
    whole = all(row.status == "completed" for _, row in rows)
    cells = []
    for job, row in rows:
        loss, number = row.val_loss, row.get(COMMON) if mixed else row.val_bpb
        second = accuracy(row) if tasks else "-" if number is None else f"{number:.4f}"
        status = row.status if row.status != "diverged" else f"diverged at step {row.diverged_at_step}"
        sizes = (f"{row[key]:,}" for key in ("n_params", "flops_per_token", "tokens"))
        speed = f"{row.tokens_per_second:,.0f}"
        cells.append((job.run_id, job.label, "-" if loss is None else f"{loss:.4f}", status, second, *sizes, speed))
    columns = (
        Column("run", keep=True, left=True), Column("what", keep=True, wrap=True), Column("val loss", keep=True),
        Column("status", keep=not whole, left=True), *map(Column, (measure, "params", "FLOPs/token", "tokens", "tokens/s")),
    )  # fmt: skip
    return table(columns, cells)


def outcome(row: RunResult) -> str:
    """Return a short text about a result."""
    if row.status == "diverged":
        return f"diverged at step {row.diverged_at_step}"
    second = "" if row.val_bpb is None else f", {row.val_bpb:.4f} bits/byte"
    return f"val loss {row.val_loss:.4f}{second if row.val_accuracy is None else f', accuracy {accuracy(row)}'}"


def for_scale(row: RunResult) -> list[str]:
    """Return what the losses of a table may be compared with, as sentences."""
    lines = ["val loss is in nats per token, of the fixed validation text."]
    if comparison := unigram_comparison(row):
        lines.append(f"For scale, the first of these and in brackets a unigram model: {comparison}.")
    elif (unigram := row.data.get("unigram_val_loss")) is not None:
        lines.append(f"For scale: a unigram model's validation loss is {unigram:.4f} nats per token.")
    if (chance := row.data.get("chance_accuracy")) is not None:
        lines.append(f"For scale: the best guess that reads nothing is right in {100 * chance:.2f} %.")
    return lines


def accuracy(row: RunResult | dict[str, Any]) -> str:
    """Return the accuracy of a run on a task in per cent, or "-"."""
    value = row.get("val_accuracy")
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f} %"


def unigram_comparison(row: RunResult) -> str:
    """Return the measures of an objective with targets of its own, each with that of a unigram model; empty for other
    runs."""
    pairs = [(key.removesuffix("_unigram"), value) for key, value in row.items() if key.endswith("_unigram")]
    return ", ".join(f"{name} {row[name]:.4f} ({value:.4f})" for name, value in pairs if row.get(name) is not None)


def _numbers(status: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return training loss, validation loss, accuracy and tokens a second of a heartbeat, each empty if unknown. A
    validation loss of another step than the training loss names its step."""
    train, val, speed = (status.get(key) for key in ("train_loss", "val_loss", "tokens_per_second"))
    at = status.get("val_step", status.get("step"))
    when = "" if at == status.get("step") else f" (step {at})"
    return (
        f"{train:.3f}" if isinstance(train, float) else "",
        f"{val:.3f}{when}" if isinstance(val, float) else "",
        accuracy(status) if isinstance(status.get("val_accuracy"), float) else "",
        f"{speed:,.0f}" if speed else "",
    )


def _losses(status: dict[str, Any]) -> str:
    train, val, right, speed = _numbers(status)
    numbers = (("train ", train, ""), ("val ", val, ""), ("accuracy ", right, ""), ("", speed, " tokens/s"))
    return "  ".join(f"{before}{number}{after}" for before, number, after in numbers if number)
