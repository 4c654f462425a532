"""Print the table of a plan: the cost of each run, and the time of all of them on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmablate.budget import DEFINITIONS, flops_per_token, kv_bytes_per_token, parameters
from lmablate.core.console import Column, console, duration, explains, folded, table
from lmablate.schema.identity import is_stale

if TYPE_CHECKING:
    from rich.text import Text

    from lmablate.data import TokenData
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig

CALIBRATION_SECONDS = 2.0
COMPILE_GAIN = 1.4  # speed of compiled steps over eager ones: 1.45 at width 48, 1.31 at 128 (benchmarks/rung.py)


def print_own_components(jobs: Sequence[Job], launcher: str) -> None:
    """Print what holds for the user's own components: FLOPs counted by torch, and runs that cannot join a gang."""
    from lmablate.budget.measured import measures_flops
    from lmablate.model.plain_torch import why_solo

    own = [job.cfg for job in jobs if job.cfg.code]
    counted = dict.fromkeys(f"{axis}={cfg.choices.get(axis)}" for cfg in own for axis in measures_flops(cfg))
    if counted:
        print(f"FLOPs of {', '.join(counted)}: counted by torch.utils.flop_counter, since the class does not say them.")
    if launcher == "gang":
        for why in dict.fromkeys(filter(None, map(why_solo, own))):
            print(f"alone, and in no gang: {why}.")


def print_published(configs: Sequence[RunConfig]) -> None:
    """Print parameters and costs of presets at their own size, without text or hardware that could train them."""
    for cfg in configs:
        counts = parameters(cfg)
        print(
            f"preset={cfg.choices['preset']}: {counts.total:,} parameters ({counts.non_embedding:,} non-embedding) with its vocabulary "
            f"of {cfg.published_vocab_size:,}, {flops_per_token(cfg):,} FLOPs and {kv_bytes_per_token(cfg):,} bytes of KV cache a token; "
            "shrink=tiny (small, base) makes it trainable here"
        )


def show(
    jobs: Sequence[Job],
    data: Mapping[str, TokenData],
    later: Sequence[Job] = (),
    when: str = "",
    *,
    by_arm: bool = False,
) -> None:
    """Print the table and the price. `later`: jobs whose configuration is not final, with `when` it will be; `by_arm`:
    one row for each arm of a study."""
    todo = [*(job for job in jobs if not job.done), *later]
    speed = calibrate(todo[0], data[todo[0].run_id]) if todo else 0.0
    priced = [(job, _seconds(job, speed)) for job in jobs]
    priced += [(job, seconds_of(job, speed)) for job in later]
    for line in _price(len(priced), todo, sum(seconds or 0.0 for _, seconds in priced)):
        print(folded(line))
    console().print(_arms_table(priced) if by_arm else _runs_table(priced, len(jobs), when))
    for line in _explanations(priced, todo, speed) if explains() else ():
        print(folded(line))


def _seconds(job: Job, speed: float) -> float | None:
    """Return the training time of a run in seconds, or None if it is done."""
    return None if job.done else seconds_of(job, speed)


def seconds_of(job: Job, speed: float) -> float:
    """Return the training time of a run in seconds. `speed`: in FLOP/s, of eager steps."""
    return job.work / (speed * (COMPILE_GAIN if job.cfg.runtime.compile is True else 1.0))


def _runs_table(priced: Sequence[tuple[Job, float | None]], known: int, when: str) -> Text:
    """Return a table with a row a run; runs from number `known` on have no id yet."""
    cells = []
    for number, (job, seconds) in enumerate(priced):
        cfg, counts, open_ = job.cfg, parameters(job.cfg), number >= known
        sizes = (flops_per_token(cfg), cfg.tokens, cfg.trainer.steps, counts.non_embedding, kv_bytes_per_token(cfg))
        length = f"{cfg.tokens / counts.active_non_embedding:.3g}"
        state = when if open_ else _state(job)
        price = "-" if seconds is None else f"{seconds:,.0f}"
        cells.append(
            (
                "-" if open_ else job.run_id,
                job.label,
                state,
                f"{counts.total:,}",
                price,
                *_epochs(job, priced),
                length,
                *(f"{n:,}" for n in sizes),
            )
        )
    columns = (
        Column("run", keep=True, left=True), Column("what", keep=True, wrap=True), Column("state", keep=True, left=True),
        Column("params", keep=True), Column("seconds", keep=True), *(Column(name, keep=True) for name in _epochs(None, priced)),
        *map(Column, ("tokens/param", "FLOPs/token", "tokens", "steps", "non-emb.", "KV B/token")),
    )  # fmt: skip
    return table(columns, cells)


def _epochs(job: Job | None, priced: Sequence[tuple[Job, float | None]]) -> list[str]:
    """The cell of a column that is shown where a run reads its text more than once; its heading without a job."""
    if not any((one.epochs or 0.0) > 1 for one, _ in priced):
        return []
    if job is None:
        return ["epochs"]
    return ["-" if job.epochs is None else f"{job.epochs:.2f}"]


def _state(job: Job) -> str:
    if job.done:
        state: str = "done, stale" if is_stale(job.row.science_version, job.row.code) else job.row.status
    else:  # a finished one lacks requested diagnostics
        state = "to train again" if job.directory.is_done else "to train"
    return f"{state} (asked {job.requests} times)" if job.requests > 1 else state


def _arms_table(priced: Sequence[tuple[Job, float | None]]) -> Text:
    """Return a table with a row an arm: its runs of each stage, how many are done, and the time of the others."""
    arms: dict[str, list[tuple[Job, float | None]]] = {}
    for job, seconds in priced:
        arms.setdefault(job.cfg.arm or job.label, []).append((job, seconds))
    cells = []
    for arm, own in arms.items():
        tune = sum(job.cfg.stage == "tune" for job, _ in own)
        sizes = sorted({parameters(job.cfg).total for job, _ in own})
        params = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
        done = sum(seconds is None for _, seconds in own)
        price = sum(seconds or 0.0 for _, seconds in own)
        lengths = sorted(job.cfg.tokens / parameters(job.cfg).active_non_embedding for job, _ in own)
        length = " to ".join(dict.fromkeys(f"{one:.3g}" for one in (lengths[0], lengths[-1])))
        most = max((job for job, _ in own), key=lambda job: job.epochs or 0.0)
        runs = (str(tune), str(len(own) - tune), str(done))
        cells.append((arm, params, *runs, f"{price:,.0f}", *_epochs(most, priced), length))
    names = ("params", "tuning runs", "evaluation runs", "done", "seconds", *_epochs(None, priced), "tokens/param")
    return table([Column("arm", keep=True, wrap=True), *map(Column, names)], cells)


def _price(every: int, todo: Sequence[Job], seconds: float) -> list[str]:
    """Return the lines about the total price."""
    from lmablate.launcher.jobs import closed
    from lmablate.launcher.scheduler import slot_count

    n = slot_count(todo) or 1
    price = f"about {duration(seconds / n)} on this machine, {n} at a time" if todo else "nothing to do"
    lines = [f"{every} run{'s' * (every != 1)}, {every - len(todo)} done already, {len(todo)} to train: {price}"]
    lines += [f"{job.run_id} cannot be looked into, or trained here ({why})" for job in todo if (why := closed(job))]
    return lines


def _explanations(priced: Sequence[tuple[Job, float | None]], todo: Sequence[Job], speed: float) -> list[str]:
    """Return where the price is from, and what the columns mean."""
    lines = []
    if todo:
        whose = f" {todo[0].label}" if len(priced) > 1 else ""
        faster = any(job.cfg.runtime.compile is True for job in todo)
        compiled = f", times {COMPILE_GAIN:g} where compiled" if faster else ""
        lines.append(
            f"Price: {speed / 1e9:.1f} GFLOP/s a run, from {CALIBRATION_SECONDS:.0f} s of eager steps{whose}{compiled}; "
            "start-up and evaluation come on top."
        )
    if counted := sorted({job.cfg.counted_params for job, _ in priced if job.cfg.counted_params is not None}):
        lines.append(
            f"trainer.tokens_per_param counts {', '.join(f'{one:,}' for one in counted)} non-embedding parameters: those of "
            "the command without the axes that a grid or a study varies, or of the budget's reference."
        )
    return lines + [DEFINITIONS[key] for key in ("params", "params_non_embedding", "flops", "kv_cache")]


def calibrate(job: Job, data: TokenData) -> float:
    """Return the training speed of the job's model on this machine in FLOP/s, from a few timed eager steps."""
    import torch

    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    torch.set_num_threads(job.cfg.runtime.threads)
    cfg = job.cfg
    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    return flops_per_token(cfg) * cfg.tokens_per_step / trainer.seconds_per_step(CALIBRATION_SECONDS)
