"""Two spellings of one run have one id; anything that changes a number has another."""

import shutil

import pytest
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.prepared import load_data, with_data
from lmablate.schema.identity import run_id


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("identity") / "text")


def identity(text, *words):
    given = {word.split("=")[0] for word in words}
    replaced = given | ({"trainer.steps"} if {"trainer.tokens", "trainer.tokens_per_param"} & given else set())
    base = [word for word in QUICK if word.split("=")[0] not in replaced]
    cfg = compose([*base, f"data.paths={text}/*.txt", *words])
    data = load_data(cfg)
    return run_id(with_data(cfg, data), data)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("seed=1",), ("init_seed=1", "data_seed=1")),
        (("model.ff_ratio=4.0",), ("model.d_ff=86",)),  # gated: 2/3 of 128, to a multiple of 2
        (("activation=gelu",), ("activation=gelu", "model.d_ff=128")),
        (("norm_position=double",), ("norm_position=sandwich",)),
        (("model.n_heads=4",), ("model.head_dim=8",)),
        (("attention=gqa",), ("attention=gqa", "model.n_kv_heads=2")),
        (("trainer.steps=12",), (f"trainer.tokens={12 * 4 * 32}",)),
        (("trainer.steps=60",), (f"trainer.tokens_per_param={60 * 4 * 32 / 24_864}",)),
        (("schedule.warmup_fraction=0.25",), ("schedule.warmup_steps=3",)),
        ((), ("runtime.log_every=1", "runtime.evaluations=1", "runtime.checkpoint_seconds=0", "runtime.wandb=offline")),
        ((), ("results_dir=elsewhere",)),
        (("stability=z_loss",), ("stability.z_loss=1e-4",)),
    ],
)
def test_two_spellings_have_one_id(text, one, other):
    assert identity(text, *one) == identity(text, *other)


CHANGES = (
    "seed=1", "init_seed=1", "data_seed=1", "norm=layer", "norm_position=post", "activation=geglu", "posemb=alibi", "attention=gqa",
    "block_layout=parallel", "stability=qk_norm", "model.bias=true", "model.tie_embeddings=true", "model.dropout=0.1", "optim.lr=1e-3",
    "optim.weight_decay=0.0", "schedule=cosine", "trainer.steps=13", "trainer.batch_size=3", "model.context_length=16", "norm.eps=1e-5",
    "data.val_bytes=300", "data.val_fraction=0.3", "trainer.divergence_patience=7", "model.init_std=0.03",
)  # fmt: skip


def test_whatever_changes_a_number_changes_the_id(text):
    ids = {word: identity(text, word) for word in CHANGES} | {"": identity(text)}
    assert len(set(ids.values())) == len(ids), ids


def test_precision_is_science(text):
    assert identity(text, "trainer.precision=fp32") != identity(text, "trainer.precision=bf16")


def test_moving_the_text_keeps_the_id_and_changing_it_does_not(text, tmp_path):
    moved = tmp_path / "somewhere" / "else"
    shutil.copytree(text, moved)
    for i, path in enumerate(sorted(moved.glob("*.txt"))):
        path.rename(moved / f"{99 - i}-renamed.txt")
    assert identity(moved) == identity(text)
    first = min(moved.glob("*.txt"))
    first.write_text(first.read_text() + " selah")
    assert identity(moved) != identity(text)


def test_a_stored_configuration_reads_back_as_it_was(text, tmp_path):
    cfg = compose([*QUICK, f"data.paths={text}/*.txt", "attention=gqa", "stability=all"])
    write_config(cfg, tmp_path / "run" / "config.yaml")
    assert read_config(tmp_path / "run" / "config.yaml") == cfg
