"""What a person sees while runs train, and at the end."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lmablate.common_targets import COMMON

if TYPE_CHECKING:
    from lmablate.jobs import Job

LINE_SECONDS = 15.0  # between two lines about a running job, where there is no live display
RATE_SECONDS = 2.0  # of progress, before a rate is read off it
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """What a file says, fit for a terminal: signs that would steer it (colours, the cursor, a title) are shown as boxes."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


class Board:
    """A live table on a terminal, plain lines elsewhere (``runtime.progress`` chooses)."""

    def __init__(self, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
        self.jobs, self.todo = list(jobs), list(todo)
        self.failed: list[tuple[Job, str]] = []
        self.status: dict[str, dict[str, Any]] = {}
        self.began = time.monotonic()
        self._said: dict[str, float] = {}
        self._moving: tuple[float, float] | None = (
            None  # when the first steps were reported, and the runs' worth of them
        )
        wanted = jobs[0].cfg.runtime.progress if jobs else "off"
        self.console = Console(width=None if sys.stdout.isatty() else 160)
        self.mode = ("live" if self.console.is_terminal else "lines") if wanted == "auto" else wanted
        self._live: Live | None = None

    def __enter__(self) -> Board:
        merged = sum(job.asked for job in self.jobs) - len(self.jobs)
        self.say(
            f"{len(self.jobs)} run{'s' * (len(self.jobs) != 1)}"
            + (f" ({merged} asked for twice)" if merged else "")
            + f": {len(self.jobs) - len(self.todo)} done already, {len(self.todo)} to train; results in {self.jobs[0].cfg.results_dir}"
        )
        if self.mode == "live" and self.todo:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        if self.mode != "off":
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            sys.stdout.flush()

    def started(self, job: Job) -> None:
        self.status[job.run_id] = {"step": 0, "steps": job.cfg.trainer.steps}
        if self.mode == "lines":
            self.say(f"start   {job.run_id}  {job.label}")

    def update(self, job: Job, status: dict[str, Any]) -> None:
        if not status:
            return
        self.status[job.run_id] |= status
        now = time.monotonic()
        if self.mode == "lines" and status.get("step") and now - self._said.get(job.run_id, self.began) >= LINE_SECONDS:
            self._said[job.run_id] = now
            self.say(
                f"        {job.run_id}  step {status['step']}/{status['steps']}  {_losses(status)}  ({self._left()})"
            )

    def finished(self, job: Job, status: dict[str, Any]) -> None:
        self.status.pop(job.run_id, None)
        if status["state"] == "failed":
            self.failed.append((job, status["error"]))
            self.say(f"FAILED  {job.run_id}  {job.label}: {status['error']}")
        elif status["state"] == "done":
            row = job.row
            self.say(f"{self._done():>3}/{len(self.jobs)}  {job.run_id}  {job.label}: {outcome(row)}  ({self._left()})")

    def summary(self) -> None:
        """The table of all runs, best first, and what failed."""
        rows = sorted(
            ((job, job.row) for job in self.jobs if job.done),
            key=lambda pair: (pair[1]["val_loss"] is None, pair[1]["val_loss"] or 0.0),
        )
        if rows and self.mode != "off":
            self.console.print(results_table(rows))
            if told := beside_unigram(rows[0][1]):
                self.say(f"For scale, the first of these and in brackets a unigram model: {told}.")
            unigram = rows[0][1].get("data", {}).get("unigram_val_loss")
            if unigram is not None and not told:
                self.say(f"For scale: a unigram model's validation loss is {unigram:.4f} nats per token.")
            chance = rows[0][1].get("data", {}).get("chance_accuracy")
            if chance is not None:
                self.say(f"For scale: the best guess that reads nothing is right in {100 * chance:.2f} %.")
        for job, reason in self.failed:
            words = " ".join(job.cfg.overrides) or "(defaults)"
            print(f"failed: {job.run_id}  {words}\n  {reason}\n  log: {job.directory.log_path}", file=sys.stderr)
        if self.failed:
            print(
                f"{len(self.failed)} of {len(self.jobs)} runs failed; the same command tries them again",
                file=sys.stderr,
            )

    def _done(self) -> int:
        return sum(job.done for job in self.jobs)

    def _left(self) -> str:
        """Time left, from the work done since the first steps were reported: start-up says nothing of it."""
        total = len(self.todo)
        ended = sum(job.done for job in self.todo) + len(self.failed)
        if ended >= total:
            return "done"
        share = ended + sum(s.get("step", 0) / max(1, s.get("steps", 1)) for s in self.status.values())
        now = time.monotonic()
        if self._moving is None and share > 0:
            self._moving = (now, share)
        since, before = self._moving or (now, share)
        if now - since < RATE_SECONDS or share <= before:
            return "time left unknown"
        return f"{duration((now - since) * (total - share) / (share - before))} left"

    def _best(self) -> str:
        done = [(job.row, job) for job in self.jobs if job.done]
        finite = [(row["val_loss"], job) for row, job in done if row["val_loss"] is not None]
        if not finite:
            return ""
        loss, job = min(finite, key=lambda pair: pair[0])
        return f", best so far {loss:.4f} ({job.label})"

    def _render(self) -> Group:
        head = Text(f"{self._done()}/{len(self.jobs)} done, {self._left()}{self._best()}", style="bold")
        table = Table.grid(padding=(0, 2))
        for job in self.todo:
            status = self.status.get(job.run_id)
            if status is not None:
                bar = ProgressBar(total=status.get("steps", 1), completed=status.get("step", 0), width=24)
                table.add_row(
                    job.run_id, job.label, bar, f"{status.get('step', 0)}/{status.get('steps', '?')}", _losses(status)
                )
        return Group(head, table)


def results_table(rows: Sequence[tuple[Job, dict[str, Any]]]) -> Table:
    """One line a run, numbers aligned."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    tasks = any(row.get("val_accuracy") is not None for _, row in rows)  # which have no bytes
    mixed = len({row["choices"].get("objective") for _, row in rows}) > 1  # whose losses are of different targets
    measure = "accuracy" if tasks else "second half" if mixed else "bits/byte"
    columns = ("run", "what", "status", "val loss", measure, "params", "FLOPs/token", "tokens", "tokens/s")
    for name in columns:
        table.add_column(name, justify="left" if name in ("run", "what", "status") else "right", no_wrap=name != "what")
    for job, row in rows:
        loss, number = row["val_loss"], row.get(COMMON) if mixed else row["val_bpb"]
        second = accuracy(row) if tasks else "-" if number is None else f"{number:.4f}"
        table.add_row(
            job.run_id,
            job.label,
            row["status"] if row["status"] != "diverged" else f"diverged at step {row['diverged_at_step']}",
            "-" if loss is None else f"{loss:.4f}",
            second,
            f"{row['n_params']:,}",
            f"{row['flops_per_token']:,}",
            f"{row['tokens']:,}",
            f"{row['tokens_per_second']:,.0f}",
        )
    return table


def outcome(row: dict[str, Any]) -> str:
    """A result in a few words."""
    if row["status"] == "diverged":
        return f"diverged at step {row['diverged_at_step']}"
    said = [f"val loss {row['val_loss']:.4f} nats/token"]
    if row.get("val_accuracy") is not None:
        said.append(f"accuracy {accuracy(row)}")
    elif row["val_bpb"] is not None:
        said.append(f"{row['val_bpb']:.4f} bits/byte")
    return ", ".join([*said, f"{row['tokens_per_second']:,.0f} tokens/s"])


def accuracy(row: dict[str, Any]) -> str:
    """The share of right answers of a run on a task, in per cent."""
    value = row.get("val_accuracy")
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f} %"


def duration(seconds: float) -> str:
    """``45 s``, ``3:20``, ``2:05:00``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def beside_unigram(row: dict[str, Any]) -> str:
    """What a run of an objective with targets of its own was measured on, each number with what a unigram model of the training
    text reaches; nothing for other runs."""
    pairs = [(key.removesuffix("_unigram"), value) for key, value in row.items() if key.endswith("_unigram")]
    return ", ".join(f"{name} {row[name]:.4f} ({value:.4f})" for name, value in pairs if row.get(name) is not None)


def _losses(status: dict[str, Any]) -> str:
    shown = []
    for key, name in (("train_loss", "train"), ("val_loss", "val")):
        value = status.get(key)
        if isinstance(value, float):
            shown.append(f"{name} {value:.3f}")
    if isinstance(status.get("val_accuracy"), float):
        shown.append(f"accuracy {accuracy(status)}")
    speed = status.get("tokens_per_second")
    return "  ".join([*shown, *([f"{speed:,.0f} tokens/s"] if speed else [])])
