"""What we ask of ourselves, against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.conclusions import RATES, tuned_hour
from benchmarks.tables import NONE, OURS, number, row_of, share_of_peak, speedup, table, with_interval

COMPILED = "lmablate, bf16 compiled"


class Bar(NamedTuple):
    """`value` is (median, low, high); `at_least` False turns the comparison round."""

    what: str
    needed: float
    value: tuple[float, float, float] | None
    unit: str = ""
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """Missed or met by the whole interval, or too close to call."""
        if self.value is None:
            return NONE
        middle, low, high = self.value if self.at_least else (-x for x in (self.value[0], *reversed(self.value[1:])))
        needed = self.needed if self.at_least else -self.needed
        if low >= needed:
            return "met"
        if high < needed:
            return f"**missed by {abs(middle / needed - 1) * 100:.0f} %**"
        return "met, within noise" if middle >= needed else "missed, within noise"


PLAIN = {
    "C1": {"transformers GPT-2": 2.2, "transformers Llama": 1.9, "x-transformers": 1.6, "litgpt": 1.6},
    "C3": {"transformers GPT-2": 1.8, "transformers Llama": 1.6, "x-transformers": 1.6, "litgpt": 1.6},
}
EQUAL = {"C1": 1.05, "C3": 0.97}
QUALITY = {"a": ("ours_gpt2", "nanogpt", 3), "b": ("ours", "llama", 2)}  # ours, theirs, per cent below
Ratio = tuple[float, float, float]


def best_of(ratios: Iterator[Ratio | None]) -> Ratio | None:
    """Against the best of several, the smallest ratio."""
    known = [ratio for ratio in ratios if ratio is not None]
    return min(known) if known else None


def against(result: Mapping[str, Any], ours: str, precision: str, *, compiled: bool) -> Ratio | None:
    """Our row `ours` against the best peer of this precision."""
    peers = [
        row["name"]
        for row in result.get("rows", ())
        if row["library"] != "lmablate" and (row["precision"], row["compiled"]) == (precision, compiled)
    ]
    return best_of(speedup(result, ours, name) for name in peers)


def single_bars(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Bar]:
    """Those of one run, from the results by configuration."""
    for config, needed_by in PLAIN.items():
        result = results.get(config, {})
        for library, needed in needed_by.items():
            peer = f"{library}, fp32 eager"
            yield Bar(f"{config}: our default in a short run (eager) over {peer}", needed, speedup(result, OURS, peer))
            yield Bar(
                f"{config}: bf16 compiled (`runtime.compile=true`) over {peer}", needed, speedup(result, COMPILED, peer)
            )
    for config, needed in EQUAL.items():
        for precision in ("fp32", "bf16"):
            value = against(results.get(config, {}), f"lmablate, {precision} compiled", precision, compiled=True)
            yield Bar(f"{config}: both compiled in {precision}, over the best peer", needed, value)
    wide = results.get("C4", {})
    yield Bar("C4: our default over the best fp32 eager peer", 2.5, against(wide, OURS, "fp32", compiled=False))
    yield Bar("C4: our default over the best bf16 eager peer", 2.5, against(wide, OURS, "bf16", compiled=False))
    for name in (OURS, COMPILED):
        row = row_of(results.get("W512", {}), name)
        share = None if row is None else share_of_peak(results["W512"], row)
        yield Bar(f"W512: {name}, share of the bf16 matmul peak", 0.65, share)
    row = row_of(wide, OURS)
    peak = row["alone"]["peak_bytes"] / 1e6 if row and row.get("alone") else None
    yield Bar("C4: peak memory of our default, MB", 700, None if peak is None else (peak,) * 3, at_least=False)


def gang_bars(result: Mapping[str, Any] | None) -> Iterator[Bar]:
    """Those of gangs."""
    by_config = {one["config"]: one for one in (result or {}).get("results", ())}
    small = {row["name"]: row for row in by_config.get("C0", {}).get("rows", ())}
    for name in ("K=8", "K=8 compiled"):
        gain = None
        if name in small:
            gain = measure.ratio([8 * t for t in small["solo eager"]["times"]], small[name]["times"])
        yield Bar(f"C0: gang of 8{name[3:]} over solo eager", 3.5, gain)
    for config, one in by_config.items():
        for plan in one["plans"]:
            way = "compiled" if plan["compiled"] else "eager"
            yield Bar(
                f"{config}: the planner's K = {plan['size']} over solo, both {way}", 0.95, tuple(plan["over_solo"])
            )
    rows = {row["name"]: row for row in by_config.get("C1", {}).get("rows", ())}
    per_member = rows.get("K=8", {}).get("bytes_per_member")
    yield Bar(
        "C1: memory a member of a gang of 8, MB",
        130,
        None if per_member is None else (per_member / 1e6,) * 3,
        at_least=False,
    )


def conclusion_bars(result: Mapping[str, Any] | None) -> Iterator[Bar]:
    """Conclusions an hour: one measurement a question, so no interval."""
    asked = (result or {}).get("questions", {})
    for name in asked or ("sweep",):
        ways = asked.get(name, {}).get("ways", {})
        gain = ways["ours"]["conclusions_an_hour"] / ways["plain"]["conclusions_an_hour"] if len(ways) == 2 else None
        yield Bar(f"Conclusions an hour over plain practice: {name}", 5, None if gain is None else (gain,) * 3)
        if gain is not None:
            tuned = tuned_hour(ways["ours"]) / tuned_hour(ways["plain"])
            yield Bar(
                f"The same with each arm's learning rate chosen among {RATES} (reckoned): {name}", 5, (tuned,) * 3
            )


def sweep_bars(result: Mapping[str, Any] | None) -> Iterator[Bar]:
    """Those of the sweep: one measurement each, so no interval."""
    rows = {row["way"]: row for row in (result or {}).get("rows", ())}
    wall = {way: row["wall_seconds"] / row["runs"] for way, row in rows.items()}
    warm = {seconds for way, seconds in wall.items() if way.endswith("compiled here before")}
    cold = {seconds for way, seconds in wall.items() if way.startswith("lmablate, ")} - warm
    for other in (
        "shell loop over a script with transformers Llama",
        "lmablate fp32 eager under Hydra's basic launcher",
    ):
        for ours, when in ((cold, "graphs new"), (warm, "graphs compiled here before")):
            gain = (wall[other] / min(ours),) * 3 if ours and other in wall else None
            yield Bar(f"16-job sweep, {when}: runs an hour over {other}", 2.5, gain)
    outside = next((row["start_share"] for way, row in rows.items() if way.endswith("defaults")), None)
    value = None if outside is None else (outside,) * 3
    yield Bar("16-job sweep: start-up and compilation over training", 0.05, value, at_least=False)


def quality_bars(result: Mapping[str, Any] | None) -> Iterator[Bar]:
    """How far our loss ends below another's, by the fresh seeds: of their means, and from the closest to the farthest two."""
    sides = (result or {}).get("sides", {})
    for name, (ours, theirs, needed) in QUALITY.items():
        a, b = (list(sides.get(side, {}).get("fresh", {}).values()) for side in (ours, theirs))
        value, who = None, tuple(sides[side]["title"] if side in sides else side for side in (ours, theirs))
        if a and b:
            pairs = ((sum(a) / len(a), sum(b) / len(b)), (max(a), min(b)), (min(a), max(b)))
            value = tuple(100 * (1 - mine / their) for mine, their in pairs)
        yield Bar(f"({name}) Loss of {who[0]} below {who[1]}, %", needed, value)


def bars_table(bars: list[Bar]) -> str:
    """All bars with their verdicts."""
    rows = []
    for bar in bars:
        sign = "at least" if bar.at_least else "at most"
        value = bar.value
        shown = NONE if value is None else number(value[0]) if len(set(value)) == 1 else with_interval(value)
        rows.append([bar.what, f"{sign} {number(bar.needed)}", shown, bar.verdict])
    return table(["", "bar", "measured", "verdict"], rows)
