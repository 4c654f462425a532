"""One run on several processes: the numbers of one process, checkpoints for any number, and refusals in words."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from corpus import QUICK, command, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.results import load_history, load_runs
from lmablate.results.load import numerics_text
from lmablate.runs.prepared import load_data, prepare_run, with_data
from lmablate.runs.run import execute
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import run_id
from lmablate.training import distributed
from lmablate.training.checkpoint import checkpoints
from lmablate.training.distributed import check, is_distributed
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer

WORDS = (
    *QUICK,
    "trainer.batch_size=8",
    "trainer.steps=30",
    "runtime.checkpoint_seconds=0",
    "optim.grad_clip=0.5",
    "trainer.precision=fp32",
)
SHORT = (*WORDS, "trainer.steps=9", "model.n_layers=1", "runtime.checkpoint_seconds=60")
CURVE = ["train_loss", "val_loss", "grad_norm"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("distributed") / "text")


def under(monkeypatch, ranks):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", str(ranks))):
        monkeypatch.setenv(name, value)


def one(*words):
    return [compose(["trainer.batch_size=8", *words])]


def test_the_command_and_torchrun_must_fit_each_other(monkeypatch):
    assert not is_distributed(one())
    with pytest.raises(
        ConfigError, match=r"runtime\.parallel=ddp is for a run on several processes.*torchrun --nproc-per-node"
    ):
        is_distributed(one("runtime.parallel=ddp"))
    under(monkeypatch, 4)
    with pytest.raises(ConfigError, match=r"torchrun has started 4 processes.*runtime\.parallel=ddp"):
        is_distributed(one())
    assert is_distributed(one("runtime.parallel=fsdp2"))
    with pytest.raises(ConfigError, match="a study many"):
        distributed.refuse_study()


@pytest.mark.parametrize(
    ("ranks", "launcher", "words", "message"),
    [
        (3, "local", [], r"trainer\.batch_size=8 does not divide among 3 processes: start 2"),
        (2, "gang", [], "hydra/launcher=gang runs many jobs, and torchrun one"),
        (2, "ray", [], "hydra/launcher=ray"),
        (2, "local", ["ffn=token_choice", "ffn.balance_over=batch"], r"use ffn\.balance_over=text"),
        (2, "local", ["model.dropout=0.1"], r"set runtime\.microbatch_size to a divisor of 4"),
        (2, "local", ["model.dropout=0.1", "runtime.microbatch_size=3"], "divisor of 4"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_words(monkeypatch, ranks, launcher, words, message):
    under(monkeypatch, ranks)
    with pytest.raises(ConfigError, match=message):
        check(one("runtime.parallel=ddp", *words), launcher)


def test_two_runs_are_refused_and_one_with_noise_by_microbatch_is_not(monkeypatch):
    under(monkeypatch, 2)
    with pytest.raises(ConfigError, match="this command has 2"):
        check(one("runtime.parallel=ddp") * 2, "local")
    assert check(one("runtime.parallel=ddp", "model.dropout=0.1", "runtime.microbatch_size=2"), "local")
    assert check(one("runtime.parallel=ddp", "diagnostics=standard"), "local")
    with pytest.raises(ConfigError, match="diagnostics read whole weights"):
        check(one("runtime.parallel=fsdp2", "diagnostics=standard"), "local")


def test_how_a_run_is_spread_is_no_part_of_its_identity_and_stands_in_its_numerics(text, monkeypatch):
    plain, spread = (compose([*WORDS, f"data.paths={text}/*.txt", *more]) for more in ([], ["runtime.parallel=ddp"]))
    data = load_data(plain)
    assert run_id(with_data(plain, data), data) == run_id(with_data(spread, data), data)
    under(monkeypatch, 4)
    assert distributed.numerics(plain) == {} and distributed.numerics(spread) == {"parallel": "ddp", "ranks": 4}
    assert (
        numerics_text({"device": "cpu", "precision": "fp32", "parallel": "ddp", "ranks": 4}) == "cpu fp32 eager ddp x4"
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process alone."""
    import torch.distributed as dist

    from lmablate.training.distributed.ranks import Ranks, set_ranks

    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield set_ranks(Ranks("cpu"))
    dist.destroy_process_group()


def trained(kind, cfg, data, folder, until=None):
    """The trainer and its records, stopped at step `until`."""
    trainer = kind(build_model(cfg), data, cfg, folder)
    records = []
    with contextlib.suppress(Interrupted):
        for record in trainer.records(lambda: signal.SIGTERM if until == trainer.progress.step else 0):
            records.append(record)
    return trainer, records


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_in_a_group_of_one_the_curve_and_the_checkpoints_are_the_solo_ones(text, tmp_path, alone, way):
    from lmablate.training.distributed.checkpoint import shard_folders
    from lmablate.training.distributed.trainer import RankTrainer

    cfg = compose([*SHORT, f"data.paths={text}/*.txt", "runtime.microbatch_size=4"])
    data = load_data(cfg)
    cfg = with_data(cfg, data)
    spread = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"parallel": way})})
    whole, expected = trained(Trainer, cfg, data, tmp_path / "solo")
    _, first = trained(RankTrainer, spread, data, tmp_path / "shared", until=5)
    (shards,) = shard_folders(tmp_path / "shared")
    assert (
        shards.name == "step-000000005.shards"
        and not list(shards.rglob("*.pkl"))
        and not (shards / ".metadata").exists()
    )
    shutil.copytree(tmp_path / "shared", tmp_path / "taken")
    _, rest = trained(RankTrainer, spread, data, tmp_path / "shared")
    _, solo_rest = trained(Trainer, cfg, data, tmp_path / "taken")
    assert rest[0]["step"] == solo_rest[0]["step"] == 6
    for found in (first + rest, first + solo_rest):
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        for mine, theirs in zip(found, expected, strict=True):
            for key in set(CURVE) & set(theirs):
                assert mine[key] == pytest.approx(theirs[key], abs=1e-5)
    (last,) = checkpoints(tmp_path / "shared")
    assert not shard_folders(tmp_path / "shared")
    reread = Trainer(build_model(cfg), data, cfg, tmp_path / "shared")
    assert reread.load()["step"] == 9 and last.name == "step-000000009.safetensors"
    for a, b in zip(reread.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_damaged_parts_send_a_run_back_to_the_checkpoint_before(text, tmp_path, alone):
    from lmablate.training.distributed.checkpoint import shard_folders
    from lmablate.training.distributed.trainer import RankTrainer

    cfg = compose([*SHORT, f"data.paths={text}/*.txt", "runtime.checkpoint_seconds=0", "runtime.keep_checkpoints=2"])
    data = load_data(cfg)
    cfg = with_data(cfg, data)
    spread = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"parallel": "ddp"})})
    trained(RankTrainer, spread, data, tmp_path, until=5)
    newest, before = shard_folders(tmp_path)
    (part,) = newest.glob("*.safetensors")
    raw = bytearray(part.read_bytes())
    raw[-3] ^= 1
    part.write_bytes(raw)
    trainer = Trainer(build_model(cfg), data, cfg, tmp_path)
    assert trainer.load()["step"] == 4 and before.name == "step-000000004.shards"
    assert [path.name for path in tmp_path.glob("*.damaged")] == ["step-000000005.damaged"]


def test_a_run_that_goes_on_from_parts_says_from_which_step_and_leaves_none_of_them(text, tmp_path, alone):
    from lmablate.training.distributed.trainer import RankTrainer

    cfg = compose([*SHORT, f"data.paths={text}/*.txt", f"results_dir={tmp_path}"])
    data = load_data(cfg)
    directory = RunDirectory(tmp_path, run_id(with_data(cfg, data), data)).create()
    spread = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"parallel": "ddp"})})
    trained(RankTrainer, with_data(spread, data), data, directory.checkpoint_dir, until=5)
    execute(prepare_run(cfg, data))
    (attempt,) = map(json.loads, directory.attempts_path.read_text().splitlines())
    assert attempt["from"] == 5
    assert [path.name for path in directory.checkpoint_dir.iterdir()] == ["step-000000009.safetensors"]


# What follows starts processes.


def torchrun(ranks, *words, timeout=900):
    return command(
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "lmablate.train",
        *words,
        timeout=timeout,
    )


def curve(results):
    history = load_history(results)
    return history.set_index("step")[[name for name in ("train_loss", "val_loss") if name in history]]


def close(found, expected, apart=1e-4):
    assert list(found.index) == list(expected.index)
    print("largest difference", (found - expected).abs().max().to_dict())
    assert ((found - expected).abs().max() < apart).all()


@pytest.fixture(scope="module")
def solo(text, tmp_path_factory):
    results = tmp_path_factory.mktemp("solo")
    done = command("lmablate.train", *WORDS, f"data.paths={text}/*.txt", f"results_dir={results}", timeout=900)
    assert done.returncode == 0, done.stderr
    return curve(results)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_gives_the_same_curve(text, solo, tmp_path, ranks, way):
    more = [f"runtime.parallel={way}", "runtime.evaluate_lengths=[1,2]"]
    done = torchrun(ranks, *WORDS, f"data.paths={text}/*.txt", f"results_dir={tmp_path}", *more)
    assert done.returncode == 0, done.stderr
    close(curve(tmp_path), solo)
    (row,) = load_runs(tmp_path).to_dict("records")
    assert row["numerics"].endswith(f"{way} x{ranks}") and row["status"] == "completed"
    (folder,) = tmp_path.glob("*/evaluations")
    assert list(folder.glob("*.json"))


def stop_at(step, ranks, words, results):
    """Start, SIGTERM torchrun once the run is past `step`, and wait."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "lmablate.train",
    ]
    process = subprocess.Popen(
        [*launch, *words, f"results_dir={results}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            if json.loads(next(iter(results.glob("*/status.json"))).read_text()).get("step", 0) >= step:
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) != 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_a_checkpoint_of_four_processes_goes_on_on_one_and_on_two(text, tmp_path, way):
    long = [w for w in WORDS if not w.startswith("trainer.steps")] + ["trainer.steps=120", f"data.paths={text}/*.txt"]
    whole = tmp_path / "whole"
    assert command("lmablate.train", *long, f"results_dir={whole}").returncode == 0
    stop_at(6, 4, [*long, f"runtime.parallel={way}"], tmp_path / "four")
    shards = max((tmp_path / "four").glob("*/checkpoint/step-*.shards"))
    begun = int(shards.stem.partition("-")[2])
    assert 0 < begun < 120 and len(list(shards.glob("*.safetensors"))) >= 2
    other = "ddp" if way == "fsdp2" else "fsdp2"
    for name, ranks, more in (("one", 1, way), ("two", 2, way), ("other", 2, other), ("none", 0, None)):
        results = tmp_path / name
        shutil.copytree(tmp_path / "four", results)
        words = [*long, f"results_dir={results}"]
        done = torchrun(ranks, *words, f"runtime.parallel={more}") if ranks else command("lmablate.train", *words)
        assert done.returncode == 0, done.stderr
        close(curve(results), curve(whole))
        (attempts,) = results.glob("*/attempts.jsonl")
        assert [json.loads(line)["from"] for line in attempts.read_text().splitlines()] == [None, begun]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model.dropout=0.2", "runtime.microbatch_size=2"],
        ["data=recall", "tokenizer=none", "trainer.batch_size=8"],
        ["objective=prefix"],
        ["trainer.precision=bf16", "model.tie_embeddings=true"],
        ["diagnostics=standard"],
        ["posemb=t5", "stability=all", "attention=mqa"],
        ["posemb=t5", "stability=z_loss", "attention=mla"],
        ["ffn=token_choice"],
        ["objective=mlm"],
    ],
    ids=["dropout", "task", "prefix", "bf16", "diagnostics", "parts", "latent", "experts", "mlm"],
)
def test_noise_unequal_targets_and_precision_are_those_of_one_process(text, tmp_path, words):
    base = [*WORDS, "trainer.steps=9"]
    if "data=recall" in words:
        base = [w for w in base if not w.startswith(("data", "tokenizer"))]
        words = words[:1] + words[2:]
    else:
        base.append(f"data.paths={text}/*.txt")
    done = command("lmablate.train", *base, *words, f"results_dir={tmp_path / 'solo'}")
    assert done.returncode == 0, done.stderr
    for way in ("ddp", "fsdp2"):
        if way == "fsdp2" and "diagnostics=standard" in words:
            continue
        done = torchrun(2, *base, *words, f"results_dir={tmp_path / way}", f"runtime.parallel={way}")
        assert done.returncode == 0, done.stderr
        # A gradient that is rounded to bf16 before it is summed over processes keeps three digits.
        close(curve(tmp_path / way), curve(tmp_path / "solo"), 5e-3 if "trainer.precision=bf16" in words else 1e-4)


@pytest.mark.slow
def test_a_failure_in_the_first_process_ends_all_of_them(text, tmp_path):
    results = tmp_path / "results"
    words = [*WORDS, f"data.paths={text}/*.txt", f"results_dir={results}", "runtime.parallel=ddp"]
    done = torchrun(2, *words)
    assert done.returncode == 0
    again = torchrun(2, *words)
    assert again.returncode == 0  # nothing is left to do, and nobody waits
    bad = torchrun(2, *words, "trainer.batch_size=7")
    assert bad.returncode != 0 and "does not divide among 2 processes" in bad.stderr
