"""Files that are damaged between two commands."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from chaos.common import Children, Outcome, check_against, rows, run, start, train_here, words
from chaos.mutations import config_problem, count_problems, mutated_config, mutated_result, result_problem


def interrupted(folder: Path, name: str, children: Children, steps: int = 12) -> tuple[Path, list[str]]:
    """A run that was killed in the middle, with two checkpoints; and its command."""
    results = folder / name
    line = words(folder, results, "runtime.nan_restarts=0", steps=steps)

    def stopped() -> None:
        from lmablate.config import compose
        from lmablate.runs.prepared import prepare_run
        from lmablate.runs.run import RunSession

        cfg = compose(line)
        session = RunSession(prepare_run(cfg))
        for record in session.trainer.records():
            session.store(record)
            if record["step"] == steps // 2:
                return  # the process ends here, as if it were killed

    children.call(stopped)
    return results, line


def damaged_checkpoints(outcome: Outcome, folder: Path, children: Children) -> None:
    """The newest checkpoint truncated or changed: the run goes back to the one before, and ends the same."""
    reference = folder / "checkpoint-reference"
    children.call(lambda: train_here(words(folder, reference, steps=12)))
    rng = random.Random(0)
    kinds = ("half", "empty", "last byte", "one bit of a weight", "noise", "header")
    for kind in kinds:
        results, line = interrupted(folder, f"checkpoint-{kind.replace(' ', '-')}", children)
        found = sorted(results.glob("*/checkpoint/step-*.safetensors"))
        outcome.expect(len(found) == 2, f"{kind}: {len(found)} checkpoints, and not 2")
        raw = bytearray(found[-1].read_bytes())
        if kind == "one bit of a weight":
            raw[-100] ^= 4
        whole = {"half": raw[: len(raw) // 2], "empty": b"", "last byte": raw[:-1], "noise": rng.randbytes(len(raw))}
        found[-1].write_bytes(whole.get(kind, raw[:30] + b"!" + raw[31:] if kind == "header" else raw))
        log = folder / "damaged.log"
        log.unlink(missing_ok=True)
        outcome.expect(children.call(lambda line=line: train_here(line), log) == 0, f"{kind}: cannot be continued")
        outcome.expect("going back to the checkpoint before" in log.read_text(), f"{kind}: no word of it")
        for aside in results.glob("*/checkpoint/*.damaged"):
            aside.unlink()
        check_against(outcome, results, reference)
        outcome.times += 1
    outcome.note = ", ".join(kinds)


def torn_histories(outcome: Outcome, folder: Path, children: Children) -> None:
    """A history cut anywhere in its last lines can be read as it is, and is whole after the run has gone on."""
    from lmablate.results import load_history

    reference = folder / "history-reference"
    children.call(lambda: train_here(words(folder, reference, steps=12)))
    results, line = interrupted(folder, "history-torn", children)
    (path,) = results.glob("*/history.jsonl")
    kept = folder / "history-kept"
    shutil.copytree(results, kept)
    raw = path.read_bytes()
    for cut in range(1, 200, 20):
        shutil.rmtree(results)
        shutil.copytree(kept, results)
        path.write_bytes(raw[:-cut])
        whole = raw[:-cut].count(b"\n") + (cut == 1)
        outcome.expect(len(load_history(results)) == whole, f"{cut} bytes cut: load_history lost a whole line")
        outcome.expect(children.call(lambda: train_here(line)) == 0, f"{cut} bytes cut: cannot be continued")
        # Records before the checkpoint that the disk lost are lost; none is made up, and none stands twice.
        here = (results / path.parent.name / "history.jsonl").read_bytes().splitlines()
        steps = [int(text.split(b'"step": ')[1].split(b",")[0]) for text in here]
        outcome.expect(steps == sorted(set(steps)) and steps[-1] == 12, f"{cut} bytes cut: steps {steps}")
        ((run_id, row),) = rows(results).items()
        outcome.expect(row["val_loss"] == rows(reference)[run_id]["val_loss"], f"{cut} bytes cut: another loss")
        outcome.times += 1


def mutated_files(outcome: Outcome, folder: Path, *, times: int, seed: int) -> None:
    """Mutated results and configurations through the loaders."""
    from lmablate.runs.config_file import read_config

    results = folder / "mutated"
    if not results.exists():
        outcome.expect(start(*words(folder, results, steps=4)).wait() == 0, "the run failed")
    ((run_id, row),) = rows(results).items()
    path = results / run_id / "config.yaml"
    config = read_config(path)
    half = times // 2
    outcome.faults += count_problems(
        results / run_id / "result.json", mutated_result, lambda path: result_problem(path, row), half, seed
    )
    outcome.faults += count_problems(
        path, mutated_config, lambda path: config_problem(path, config), times - half, seed
    )
    outcome.times = times
    path.write_text(path.read_text().replace("d_model: 32", "d_model: 64", 1))
    done = run(str(results / run_id), module="lmablate.sample")
    outcome.expect(done.returncode == 2 and "checksum" in done.stderr, "a changed configuration is used for sampling")
