"""Lack of memory, numbers that are not finite, damaged files: what a run makes of them."""

import errno
import json
import os
import random
import signal

import pytest
import torch
from chaos.mutations import config_problem, edited, result_problem
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.core.locks import FileLock, LockHeld
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.scheduler import run_jobs
from lmablate.launcher.sweep_manifest import run_status
from lmablate.results import load_history
from lmablate.runs import recovery
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.prepared import load_data, prepare_run
from lmablate.runs.run import RunSession, execute
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.result import RunResult
from lmablate.training.checkpoint import Damaged, checkpoints, load_weights, read_checkpoint, save_checkpoint
from lmablate.training.trainer import Trainer

SAME = ["step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("faults") / "text")


def made(text, results, *more):
    words = [*QUICK, "model.d_model=16", "model.n_layers=1", "runtime.compile=false", "runtime.device=cpu"]
    words += ["trainer.precision=fp32", "runtime.log_every=1", "runtime.checkpoint_seconds=0", *more]
    cfg = compose([*words, f"data.paths={text}/*.txt", f"results_dir={results}"])
    return cfg, load_data(cfg)


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return execute(prepare_run(*made(text, folder))), load_history(folder)[SAME]


def poison(monkeypatch, times):
    """Make the loss of the seventh step a NaN, so many times."""
    real, left = Trainer.backward, [times]

    def backward(self, rows):
        nats = real(self, rows)
        if self.progress.step == 6 and left[0]:
            left[0] -= 1
            return nats * float("nan")
        return nats

    monkeypatch.setattr(Trainer, "backward", backward)


def test_a_nan_that_does_not_come_again_is_repeated_away_and_said(text, tmp_path, monkeypatch, undisturbed, caplog):
    poison(monkeypatch, 1)
    row = execute(prepare_run(*made(text, tmp_path, "runtime.nan_restarts=1")))
    wanted, history = undisturbed
    assert (row["status"], row["val_loss"], row["train_loss"]) == (
        "completed",
        wanted["val_loss"],
        wanted["train_loss"],
    )
    assert load_history(tmp_path)[SAME].equals(history)
    assert row["provenance"]["faults"] == {"not_finite_at": [7], "not_finite_came_again": False}
    assert "suspect this machine" in caplog.text
    assert "faults" not in wanted["provenance"]


def test_a_nan_that_comes_again_is_a_divergence_at_its_step(text, tmp_path, monkeypatch):
    poison(monkeypatch, 99)
    row = execute(prepare_run(*made(text, tmp_path, "runtime.nan_restarts=2")))
    assert (row["status"], row["diverged_at_step"], row["val_loss"]) == ("diverged", 7, None)
    assert row["provenance"]["faults"] == {"not_finite_at": [7, 7, 7], "not_finite_came_again": True}
    assert len(checkpoints(tmp_path / row["run_id"] / "checkpoint")) == 1


def test_without_the_policy_a_nan_is_recorded_at_once(text, tmp_path, monkeypatch):
    poison(monkeypatch, 1)
    row = execute(prepare_run(*made(text, tmp_path)))
    assert (row["status"], row["diverged_at_step"]) == ("diverged", 7)
    assert "faults" not in row["provenance"]


def no_room_for(monkeypatch, most):
    """Let passes of more than `most` sequences fail as torch does on a CPU."""
    real = Trainer.backward

    def backward(self, rows):
        if recovery.pass_size(self.cfg) > most and self.progress.step >= 2:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
            )
        return real(self, rows)

    monkeypatch.setattr(Trainer, "backward", backward)


def test_out_of_memory_goes_on_with_smaller_passes_and_the_same_science(text, tmp_path, monkeypatch, undisturbed):
    no_room_for(monkeypatch, 1)
    row = execute(prepare_run(*made(text, tmp_path, "runtime.on_oom=halve_microbatch")))
    wanted, _ = undisturbed
    assert row["run_id"] == wanted["run_id"]
    assert row["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
    assert row["numerics"]["microbatch_size"] == 1
    assert row["provenance"]["faults"] == {"out_of_memory_with": [4, 2]}
    assert load_history(tmp_path)["step"].tolist() == list(range(13))


def test_out_of_memory_is_a_failure_that_names_the_size(text, tmp_path, monkeypatch):
    no_room_for(monkeypatch, 2)
    cfg, data = made(text, tmp_path)
    with pytest.raises(RuntimeError) as caught:
        execute(prepare_run(cfg, data))
    said = recovery.failure(caught.value, cfg)
    assert said["kind"] == "out_of_memory"
    assert said["tried"] == {"microbatch_size": 4, "context_length": 32, "bytes": 4294967296}
    assert "4 sequences of 32 tokens in one pass" in said["error"]
    assert "runtime.on_oom=halve_microbatch goes on with 2" in said["error"]


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), int(2.5 * 2**30)),
        (MemoryError(), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    ],
)
def test_lack_of_memory_is_recognised(error, size):
    assert recovery.is_out_of_memory(error)
    assert recovery.allocation(error) == size


def test_other_errors_are_no_lack_of_memory_and_a_disk_is_told_in_words(text, tmp_path):
    assert not recovery.is_out_of_memory(RuntimeError("shapes differ"))
    assert not recovery.is_out_of_memory(ValueError("out of memory"))
    cfg, _ = made(text, tmp_path)
    said = recovery.failure(OSError(errno.ENOSPC, "No space left on device", "a/history.jsonl"), cfg)
    assert said["kind"] == "disk"
    assert said["error"].startswith("no space left on device (a/history.jsonl): free some room")
    assert recovery.failure(ConfigError("norm=x"), cfg)["kind"] == "config"


def test_two_processes_cannot_train_one_run_and_a_made_one_is_not_made_again(text, tmp_path, undisturbed):
    cfg, data = made(text, tmp_path)
    folder = RunDirectory(tmp_path, undisturbed[0]["run_id"]).create()
    lock = FileLock.acquire(folder.lock_path)
    with pytest.raises(LockHeld):
        execute(prepare_run(cfg, data))
    assert not folder.config_path.exists()
    lock.release()
    row = execute(prepare_run(cfg, data))
    made_at = folder.result_path.stat().st_mtime_ns
    assert execute(prepare_run(cfg, data)) == RunResult.model_validate_json(row.model_dump_json())
    assert folder.result_path.stat().st_mtime_ns == made_at
    assert folder.attempts_path.read_text().count("\n") == 1


@pytest.mark.parametrize(("times", "saved"), [(1, ["step-000000007.safetensors"]), (2, [])])
def test_sigint_ends_the_step_and_a_second_one_ends_the_run(text, tmp_path, monkeypatch, undisturbed, times, saved):
    cfg, _ = made(text, tmp_path, "runtime.checkpoint_seconds=600", "runtime.progress=off")
    real = Trainer.backward

    def backward(self, rows):
        for _ in range(times if self.progress.step == 6 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, rows)

    monkeypatch.setattr(Trainer, "backward", backward)
    (job,), _ = prepare_jobs([cfg])
    assert run_jobs([job]) == 130
    assert [path.name for path in checkpoints(job.directory.checkpoint_dir)] == saved
    assert run_status(tmp_path, job.run_id)["state"] == "stopped"
    monkeypatch.setattr(Trainer, "backward", real)
    assert run_jobs([job]) == 0
    assert job.row["val_loss"] == undisturbed[0]["val_loss"] and load_history(tmp_path)[SAME].equals(undisturbed[1])


@pytest.mark.parametrize("damage", ["a bit", "half", "another model"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(text, tmp_path, undisturbed, caplog, damage):
    cfg, data = made(text, tmp_path)
    with RunSession(prepare_run(cfg, data)) as session:
        for record in session.trainer.records():
            session.store(record)
            if record["step"] == 6:
                break
    folder = session.directory.checkpoint_dir
    newest, before = checkpoints(folder)
    assert (read_checkpoint(newest)[0]["step"], read_checkpoint(before)[0]["step"]) == (5, 4)
    raw = bytearray(newest.read_bytes())
    raw[-9] ^= 1  # of a weight or a moment: the file is as well-formed as before
    if damage == "another model":
        other = made(text, tmp_path / "other", "model.d_model=32")
        row = execute(prepare_run(*other))
        raw = checkpoints(tmp_path / "other" / row["run_id"] / "checkpoint")[0].read_bytes()
    newest.write_bytes(raw[: len(raw) // 2] if damage == "half" else raw)
    row = execute(prepare_run(cfg, data))
    assert "going back to the checkpoint before" in caplog.text
    assert row["val_loss"] == undisturbed[0]["val_loss"]
    assert load_history(tmp_path)[SAME].equals(undisturbed[1])
    assert [path.name for path in checkpoints(folder)] == ["step-000000012.safetensors"]
    attempts = map(json.loads, session.directory.attempts_path.read_text().splitlines())
    assert [attempt["from"] for attempt in attempts] == [None, 4]


def test_a_changed_number_in_a_result_is_noticed(text, tmp_path):
    row = execute(prepare_run(*made(text, tmp_path)))
    directory = RunDirectory(tmp_path, row["run_id"])
    whole = directory.result_path.read_text()
    read = directory.read_result()
    assert read["val_loss"] == row["val_loss"] and read.get("checksum") is None
    said = f'"val_loss": {row["val_loss"]}'
    assert whole.count(said) == 1
    directory.result_path.write_text(whole.replace(said, f'"val_loss": {row["val_loss"] - 0.5}'))
    assert directory.read_result() is None
    assert result_problem(directory.result_path, read) == ""
    directory.result_path.write_text(json.dumps(dict(reversed(json.loads(whole).items()))))
    assert directory.read_result() == read  # another order and layout are no change


def test_a_changed_configuration_is_refused_by_name(text, tmp_path):
    cfg, _ = made(text, tmp_path)
    path = tmp_path / "config.yaml"
    write_config(cfg, path)
    assert read_config(path) == cfg
    whole = path.read_text()
    path.write_text(whole.replace("d_model: 16", "d_model: 64", 1))
    with pytest.raises(ConfigError, match=r"config.yaml: damaged, or changed by hand"):
        read_config(path)
    path.write_text(whole.partition("\n")[2])  # from before there were checksums
    assert read_config(path) == cfg
    for broken in ("a: [", "- 1", "schema_version: 1", "\x00", "a: !!python/object:os.system x"):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            read_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        read_config(path)
    assert config_problem(path, cfg) == ""


def test_edits_change_something():
    content = {"a": 1, "b": {"c": [1, 2.5, None]}, "d": "word"}
    assert sum(edited(content, random.Random(i)) != content for i in range(50)) > 45


def test_a_byte_of_a_checkpoints_header_is_refused_or_changes_nothing(tmp_path):
    model = torch.nn.Linear(3, 2)
    path = save_checkpoint(tmp_path, 1, model, torch.optim.AdamW(model.parameters()), {"a": [1, 2]}, keep=1)
    raw = path.read_bytes()
    state, tensors = read_checkpoint(path)
    refused = 0
    for at in range(8, 8 + int.from_bytes(raw[:8], "little")):
        path.write_bytes(raw[:at] + b"!" + raw[at + 1 :])
        try:
            again, others = read_checkpoint(path)
        except Damaged:
            refused += 1
        else:
            assert again == state and all(torch.equal(others[name], tensors[name]) for name in tensors)
            assert raw[at : at + 1] == b" ", "only the padding may be anything"
    assert refused > 100


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EEXIST])
def test_something_else_in_the_place_of_a_runs_file_is_told_in_words(number):
    said = recovery.failure(OSError(number, os.strerror(number), "results/0123456789ab/result.json"))
    assert said["kind"] == recovery.DISK
    assert "results/0123456789ab/result.json" in said["error"]


def test_a_damaged_checkpoint_is_named_where_it_is_read(tmp_path):
    path = tmp_path / "step-000000006.safetensors"
    path.write_bytes(b"key: !!python/none x\n")
    with pytest.raises(ConfigError, match=r"step-000000006\.safetensors: damaged .*train the run again"):
        load_weights(path, torch.nn.Linear(1, 1))
