"""Tables from raw results: pure functions of what single_run.py, gang.py and sweep.py wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import measure
from benchmarks.conclusions import tuned_hour

Result = Mapping[str, Any]
NONE = "not measured"
OURS = "lmablate, default"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers, set to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float) -> str:
    """Three figures, thousands with commas."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(value: tuple[float, float, float] | Sequence[float] | None, unit: str = "") -> str:
    """``1.72 [1.65, 1.80]``."""
    if value is None:
        return NONE
    middle, low, high = value
    places = 2 if abs(middle) < 100 else 0
    return f"{middle:,.{places}f}{unit} [{low:,.{places}f}, {high:,.{places}f}]"


def row_of(result: Result, name: str) -> Mapping[str, Any] | None:
    return next((row for row in result.get("rows", ()) if row["name"] == name), None)


def speedup(result: Result, ours: str, theirs: str) -> tuple[float, float, float] | None:
    """Their time over our time, with its interval; None where one of the two was not measured."""
    a, b = row_of(result, theirs), row_of(result, ours)
    return None if a is None or b is None else measure.ratio(a["times"], b["times"])


def share_of_peak(result: Result, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """FLOP/s of a step over the matmul peak of the row's precision, the better one of before and after."""
    peak = max(result["peak"][when][row["precision"]] for when in ("before", "after"))
    middle, low, high = measure.interval(row["times"])
    return tuple(result["flops_per_step"] / seconds / peak for seconds in (middle, high, low))  # type: ignore[return-value]


def single_table(result: Result) -> str:
    """All contenders at one shape."""
    if "rows" not in result:
        return f"{result['config']}: {NONE} ({result['not_measured']})"
    lines = []
    for row in result["rows"]:
        milliseconds = [1e3 * seconds for seconds in measure.interval(row["times"])]
        tokens = result["tokens_per_step"] / (milliseconds[0] / 1e3)
        share = share_of_peak(result, row)
        lines.append(
            [
                row["name"] + (" (best)" if row["best"] else ""),
                f"{row['n_params']:,}",
                with_interval(milliseconds),
                f"{tokens:,.0f}",
                with_interval(speedup(result, OURS, row["name"])),
                f"{100 * share[0]:.0f} % [{100 * share[1]:.0f}, {100 * share[2]:.0f}]",
            ]
        )
    head = ["contender", "parameters", "ms a step", "tokens/s", "its time over our default's", "of the matmul peak"]
    return table(head, lines)


def caption(result: Result) -> str:
    """Shape, machine and peaks of one result."""
    about, peak = result["machine"], result["peak"]
    moved = measure.drift(peak["before"], peak["after"])
    peaks = ", ".join(
        f"{name} {peak['before'][name] / 1e9:,.0f} and {peak['after'][name] / 1e9:,.0f}" for name in peak["before"]
    )
    text = (
        f"{result['config']}: {result['note']}; {result['n_params']:,} parameters, {result['tokens_per_step']:,} tokens a step, "
        f"{len(result['rows'][0]['times'])} rounds. Matmul peak before and after, GFLOP/s: {peaks}."
    )
    if moved > measure.DRIFT:
        text += f" **The peak moved by {100 * moved:.0f} % during the run**: shares are uncertain by as much, ratios are not."
    text += f" Load at the start {about['load']} on {about['cores']} cores."
    if missing := result.get("missing"):
        reasons: dict[str, list[str]] = {}
        for name, reason in missing.items():
            reasons.setdefault(reason, []).append(name)
        text += "".join(f" {NONE.capitalize()}: {'; '.join(names)} ({reason})." for reason, names in reasons.items())
    return text


def alone_table(result: Result) -> str:
    """Start-up, compilation and memory, each contender in a process of its own."""
    eager = {
        (row["library"], row["precision"]): row["alone"]["first_step_seconds"]
        for row in result["rows"]
        if row.get("alone") and not row["compiled"]
    }
    lines = []
    for row in result["rows"]:
        own = row.get("alone")
        if not own:
            lines.append([row["name"], NONE, NONE, NONE, NONE])
            continue
        base = eager.get((row["library"], row["precision"]))
        cold, warm = own["first_step_seconds"], own.get("warm_first_step_seconds")
        lines.append(
            [
                row["name"],
                f"{cold:.1f}",
                f"{max(0.0, cold - base):.1f}" if row["compiled"] and base is not None else "-",
                f"{max(0.0, warm - base):.1f}" if warm is not None and base is not None else "-",
                f"{own['peak_bytes'] / 1e6:,.0f}",
            ]
        )
    head = ["contender", "to the first step, s", "of it compiling, s", "with a warm cache, s", "peak memory, MB"]
    return table(head, lines)


def gang_table(result: Result) -> str:
    """K members as one program at one shape: tokens/s, and the gain over K runs one after the other."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = []
    for row in result["rows"]:
        size, times = row["size"], row["times"]
        gains = []
        for name in ("solo eager", "solo compiled"):
            solo = rows.get(name)
            gains.append(with_interval(measure.ratio([size * t for t in solo["times"]], times)) if solo else NONE)
        per_member = row.get("bytes_per_member")
        tokens = size * result["tokens_per_step"] / measure.interval(times)[0]
        lines.append([row["name"], f"{tokens:,.0f}", *gains, f"{per_member / 1e6:,.0f}" if per_member else "-"])
    return table(["", "tokens/s", "over solo eager", "over solo compiled", "MB a member"], lines)


def sweep_table(result: Result) -> str:
    """The sweep, each way of running it."""
    lines = []
    for row in result["rows"]:
        hours = row["wall_seconds"] / 3600
        lines.append(
            [
                row["way"],
                str(row["runs"]),
                f"{row['wall_seconds']:,.0f}",
                # runs forked from a process that compiled their graph are nobody's children in the end
                "-" if row.get("compiled") else f"{row['processor_seconds']:,.0f}",
                f"{row['runs'] / hours:,.0f}",
                "-" if row["outside_share"] is None else f"{100 * row['outside_share']:.0f} %",
                "-" if row["start_share"] is None else f"{100 * row['start_share']:.1f} %",
                f"{row['mean_val_loss']:.3f}",
            ]
        )
    head = [
        "",
        "runs",
        "wall s",
        "processor s",
        "runs an hour",
        "outside training steps",
        "start-up over training",
        "mean val loss",
    ]
    return table(head, lines)


def profile_table(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of a step by kind of operation, one column a contender."""
    groups = list(next(iter(profiles.values())))
    lines = [[group, *(f"{profile[group]:.1f}" for profile in profiles.values())] for group in groups]
    lines.append(["all", *(f"{sum(profile.values()):.1f}" for profile in profiles.values())])
    return table(["ms of a step", *profiles], lines)


def conclusions_table(ways: Mapping[str, Result]) -> str:
    """What a conclusion takes, each way."""
    lines = []
    for name, way in ways.items():
        seconds, hour = f"{way['wall_seconds_a_run']:.2f}", f"{way['conclusions_an_hour']:.1f}"
        tuned = f"{tuned_hour(way):.2f}"
        lines.append([name, str(way["runs"]), seconds, f"{way['sd']:.4f}", str(way["runs_an_arm"]), hour, tuned])
    head = [
        "",
        "runs measured",
        "wall s a run, all budgets",
        "sd of a difference",
        "runs an arm",
        "conclusions an hour",
        "with tuning",
    ]
    return table(head, lines)


def quality_table(result: Result) -> str:
    """The sides of the quality benchmark: losses at the five rates, and from fresh seeds at the chosen one."""
    rates = sorted({float(lr) for side in result["sides"].values() for lr in side["search"]})
    rows = []
    for side in result["sides"].values():
        searched = {float(lr): loss for lr, loss in side["search"].items()}
        cells = [f"{searched[lr]:.3f}".replace("inf", "diverged") if lr in searched else NONE for lr in rates]
        fresh = list(side["fresh"].values())
        mean = f"{sum(fresh) / len(fresh):.3f} [{min(fresh):.3f}, {max(fresh):.3f}]" if fresh else NONE
        lr = side.get("lr")
        edge = "" if lr not in (min(searched), max(searched)) else " (an end of the range)"
        rows.append([side["title"], f"{side['n_params']:,}", *cells, NONE if lr is None else f"{lr:g}{edge}", mean])
    head = ["", "parameters", *(f"{lr:g}" for lr in rates), "chosen rate", "fresh seeds"]
    return table(head, rows)
