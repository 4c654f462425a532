"""A results directory as tables and sentences: arms, what was equal, and caveats for the reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmablate.results.arms import (
    arm_columns,
    axes_that_vary,
    axis_columns,
    config_columns,
    in_order,
    is_missing,
    keys,
    show,
)
from lmablate.results.common_targets import objective_notices
from lmablate.results.lost import is_lost
from lmablate.results.size_matching import SIZES, matched_size, size_notices, size_text
from lmablate.schema.identity import SCIENCE_VERSION

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def arms_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm of `runs` (as from with_arms), best mean first, arms without a finished run last.

    Columns: arm, its options, n (completed runs), mean, sd, min and max of the final validation loss (nats per token),
    diverged, failed (runs), val_bpb (mean, bits per byte), of tasks val_accuracy (mean), n_params, n_params_non_embedding,
    flops_per_token, tokens (training tokens, the most of any run), tokens_per_param (the fewest of any run), tokens_per_second (median).
    """
    import pandas as pd

    columns = [column for column in arm_columns(runs) if column in runs]
    tasks = "val_accuracy" in runs and runs["val_accuracy"].notna().any()
    rows = []
    for arm, group in runs.groupby("arm", sort=False):
        loss = group["val_loss"].dropna()
        row = {"arm": arm, **{column: group[column].iloc[0] for column in columns}, "n": len(loss)}
        row |= {"mean": loss.mean(), "sd": loss.std(), "min": loss.min(), "max": loss.max()}
        row |= {status: int((group["status"] == status).sum()) for status in ("diverged", "failed")}
        row["val_bpb"] = group["val_bpb"].mean()
        if tasks:
            row["val_accuracy"] = group["val_accuracy"].mean()
        row |= {key: int(group[key].max()) for key in (*SIZES, "tokens")}
        row["tokens_per_param"] = group["tokens_per_param"].min() if "tokens_per_param" in group else None
        row["tokens_per_second"] = group["tokens_per_second"].median()
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["mean", "arm"], na_position="last", ignore_index=True)


def question(runs: pd.DataFrame) -> str:
    """Return what the runs compare, as text: ``norm (layer, rms) × activation (gelu, swiglu)``."""
    parts = []
    for column in arm_columns(runs):
        options = _options(runs, column)
        parts.append(f"{column} ({', '.join(options)})" if len(options) <= 8 else f"{column} ({len(options)} options)")
        if column == "preset" and "shrink" in runs and len(shrunk := _options(runs, "shrink")) == 1 and shrunk != ["-"]:
            parts[-1] += f" shrunk to {shrunk[0]}"
    equal = f", at equal {size_text(size)}" if parts and (size := matched_size(runs)) else ""
    return (" × ".join(parts) or "One arm") + equal


def varied(runs: pd.DataFrame) -> list[Row]:
    """Return the deliberate differences: name and options of every column that tells the arms apart, and the seeds."""
    rows = [{"name": column, "options": _options(runs, column)} for column in arm_columns(runs)]
    return [*rows, {"name": "seed", "options": sorted(_seed_labels(runs))}]


def followed(runs: pd.DataFrame) -> list[Row]:
    """Return the differences that follow: configuration keys that vary without being set, with the option that decides.

    Each row: name, values (pairs of value and the options or arms it belongs to)."""
    chosen, rows = arm_columns(runs), []
    for column in axes_that_vary(runs, config=True):
        if column in chosen:
            continue
        for by in [*chosen, "arm"]:
            pairs = sorted(set(zip(keys(runs, column), keys(runs, by), strict=True)), key=str)
            if len(pairs) == len(set(keys(runs, by))):  # one value for each option: this one decides
                break
        options: dict[str, list[str]] = {}
        for value, option in pairs:
            options.setdefault(show(value), []).append(show(option))
        rows.append({"name": column, "values": list(options.items())})
    return rows


def held_equal(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (name, value) of every column with one value in all runs, axes before numbers, without nulls."""
    numbers = [name for name in config_columns(runs) if not name.endswith(".kind") and name not in _PROVENANCE.values()]
    names = [*axis_columns(runs), "tokens", *numbers, "numerics", "science_version"]
    single = [name for name in names if name in runs and len(set(keys(runs, name))) == 1]
    shown = [(name, _value_text(runs[name].iloc[0])) for name in single]
    return [(name, value) for name, value in shown if value != "-"]


def notices(runs: pd.DataFrame, arms: pd.DataFrame, sizes: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return the caveats of these numbers, the most serious first. `sizes`: arms that are compared with one another, if not all."""
    lines = objective_notices(runs)
    for own in sizes or [list(arms["arm"])]:
        within = runs[runs["arm"].isin(own)]
        finished = within[within["status"] == "completed"]
        lines += size_notices(within, arms[arms["arm"].isin(own)])
        if finished["tokens"].nunique() > 1:
            low, high = finished["tokens"].min(), finished["tokens"].max()
            lines.append(f"Training tokens differ between runs ({low:,} to {high:,}).")
    lines = list(dict.fromkeys(lines))
    if runs["science_version"].nunique() > 1:
        lines.append("Runs of several science versions are mixed: the code's numbers changed between them.")
    stale = int(runs["stale"].sum()) if "stale" in runs else 0
    if stale:
        lines.append(
            f"{stale} of {len(runs)} runs are stale: today's code (science version {SCIENCE_VERSION}, and parts of your own as they "
            "stand now) would compute other numbers. Training them again replaces them."
        )
    lines += _searched(runs)
    if runs["numerics"].nunique() > 1:
        lines.append(_numerics(runs))
    for column, what in (("data.fingerprint", "texts"), ("data.tokenizer", "tokenizers")):
        if column in runs and runs[column].nunique() > 1:
            lines.append(
                f"Runs on different {what} are mixed: losses per token do not compare between them; bits per byte may."
            )
    lines += _seed_notices(runs)
    diverged = int((runs["status"] == "diverged").sum())
    if diverged:
        none = [row["arm"] for row in arms.to_dict("records") if row["n"] == 0]
        lines.append(
            f"{diverged} of {len(runs)} runs diverged. Their arms' means are over the runs that did not, and flatter them."
            + (f" No run of arm {', '.join(none)} finished, so there is no mean." if none else "")
        )
    lines += _weak_arms(runs, arms)
    return lines


def _numerics(runs: pd.DataFrame) -> str:
    """Return the notice that runs differ in their numerics, with the arms that mix them."""
    mixed = [
        f"arm {arm} has {', '.join(f'{n} {kind}' for kind, n in sorted(group['numerics'].value_counts().items()))}"
        for arm, group in runs.groupby("arm")
        if group["numerics"].nunique() > 1
    ]
    some = "; ".join(mixed[:4]) + (f"; {len(mixed) - 4} more arms are mixed" if len(mixed) > 4 else "")
    kinds = "; ".join(sorted(runs["numerics"].unique()))
    return f"Numerics differ between runs ({kinds}): such runs are not paired." + (
        f" Within one arm: {some}." if some else ""
    )


def _searched(runs: pd.DataFrame) -> list[str]:
    if n := runs.attrs.get("searched"):
        return [
            f"{n} runs of evaluation seeds are left out: a search was guided by them, so they flatter what it found. Evaluate on "
            "other seeds (sweep.seeds)."
        ]
    if "stage" in runs and (runs["stage"] == "search").all():
        return [
            "These are the trials of a search, each chosen by what others lost: evidence for no difference between them."
        ]
    return []


def _seed_notices(runs: pd.DataFrame) -> list[str]:
    seeds = {arm: _seed_labels(group) for arm, group in runs.groupby("arm")}
    every = set().union(*seeds.values())
    if len(every) == 1:
        return ["One seed: a difference cannot be told from noise."]
    lacking = [
        f"arm {arm} lacks {', '.join(sorted(every - own, key=_seed_order)[:6])}{' and more' if len(every - own) > 6 else ''}"
        for arm, own in seeds.items()
        if own != every
    ]
    if lacking:
        some = "; ".join(lacking[:4]) + (f"; {len(lacking) - 4} more arms lack some" if len(lacking) > 4 else "")
        return [f"Arms have different seeds: {some}. Only shared seeds are paired."]
    return []


def _weak_arms(runs: pd.DataFrame, arms: pd.DataFrame) -> list[str]:
    """Return notices on arms no better than a unigram model, which leave nothing to compare, and on such runs of other arms."""
    column = "data.unigram_val_loss"
    if column not in runs or runs[column].isna().all():
        return []
    weak = [row["arm"] for row in arms.to_dict("records") if row["mean"] > 0.98 * runs[column].max()]
    out = [f"No better than a unigram model: {', '.join(weak)}. Train longer before comparing."] if weak else []
    lost = [row["arm"] for row in runs.to_dict("records") if row["status"] == "completed" and is_lost(row)]
    if few := [f"{n} of {arm}" for arm, n in sorted(Counter(lost).items()) if arm not in weak]:
        out.append(
            f"Runs that learned nothing, at the loss of a unigram model: {', '.join(few)}. They count in the means of their arms."
        )
    return out


def _seed_labels(runs: pd.DataFrame) -> set[str]:
    return {seed_label(row) for row in runs[["seed", "init_seed", "data_seed"]].to_dict("records")}


def _seed_order(label: str) -> tuple[int, str]:
    return len(label), label


def seed_label(row: Row) -> str:
    """Return a run's seed as text: ``0``, or ``0/1`` if weights and data have different ones."""
    if not is_missing(row["seed"]):
        return str(row["seed"])
    return "?" if is_missing(row["init_seed"]) else f"{row['init_seed']}/{row['data_seed']}"


def provenance(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the origin of the numbers: (name, all its values among the runs)."""
    rows = []
    for name, column in _PROVENANCE.items():
        if column in runs:
            values = sorted({_value_text(value) for value in keys(runs, column)} - {"-"})
            rows += [(name, ", ".join(values))] if values else []
    if "provenance.started" in runs:
        times = sorted({*keys(runs, "provenance.started"), *keys(runs, "provenance.finished")} - {None}, key=str)
        rows += [("trained", f"{times[0]} to {times[-1]}")] if times else []
    return rows


_PROVENANCE = {
    "lmablate": "provenance.lmablate",
    "torch": "provenance.torch",
    "Python": "provenance.python",
    "git commit": "provenance.git_commit",
    "uncommitted changes": "provenance.git_dirty",
    "host": "provenance.host",
    "platform": "provenance.platform",
    "threads per run": "provenance.threads",
    "numerics": "numerics",
    "science version": "science_version",
    "training tokens in the text": "data.train_tokens",
    "text (fingerprint)": "data.fingerprint",
    "tokenizer (fingerprint)": "data.tokenizer",
    "vocabulary": "data.vocab_size",
    "validation tokens": "data.val_tokens",
    "validation bytes": "data.val_bytes",
    "unigram model (nats per token)": "data.unigram_val_loss",
    "entropy of the source (nats per token)": "data.entropy_floor",
}


def _options(runs: pd.DataFrame, column: str) -> list[str]:
    return [show(value) for value in sorted(set(keys(runs, column)), key=in_order)]


def _value_text(value: Any) -> str:
    """Return the value as `show` does, with large whole numbers in groups of three."""
    whole = isinstance(getattr(value, "item", lambda: value)(), int) and not isinstance(value, bool)
    return f"{value:,}" if whole and abs(value) >= 10_000 else show(value)
