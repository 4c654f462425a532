"""Hold everything else equal: arms that differ in architecture see the same tokens and start from the same draws."""

import numpy as np
import pytest
import torch
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.model import build_model
from lmablate.runs.prepared import load_data, with_data
from lmablate.training.trainer import Trainer

ARMS = (
    "norm=layer",
    "activation=gelu",
    "posemb=alibi",
    "attention=mqa",
    "block_layout=parallel",
    "norm_position=post",
    "model.n_layers=3",
    "model.d_model=64",
)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("pairing") / "text")
    return (*QUICK, f"data.paths={text}/*.txt")


def seen_tokens(cfg, data):
    """What the trainer really feeds the model, step by step."""
    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()) if module.training else None
    )
    list(trainer.records())
    return seen


@pytest.mark.parametrize("arm", ARMS)
def test_arms_see_the_same_tokens_at_every_step(words, arm):
    base, other = compose(words), compose([*(w for w in words if w.split("=")[0] != arm.split("=")[0]), arm])
    data = load_data(base)
    seen = seen_tokens(with_data(base, data), data)
    assert len(seen) == base.trainer.steps
    for a, b in zip(seen, seen_tokens(with_data(other, data), data), strict=True):
        assert torch.equal(a, b)


def test_the_data_seed_changes_the_order_and_the_init_seed_does_not(words):
    data = load_data(compose(words))
    first = {
        seed: np.stack(seen_tokens(with_data(compose([*words, seed]), data), data))
        for seed in ("seed=0", "init_seed=5", "data_seed=5")
    }
    assert np.array_equal(first["seed=0"], first["init_seed=5"])
    assert not np.array_equal(first["seed=0"], first["data_seed=5"])


def shared(cfg_a, cfg_b):
    """Pairs of weights that both models have under one layer, branch, role and shape, whatever wraps them."""

    def by_key(cfg):
        parts = {}
        for name, p in build_model(cfg).named_parameters():
            words = [w for w in name.split(".") if w not in ("branch", "both", "norm")]
            parts[(*words, tuple(p.shape))] = p
        return parts

    a, b = by_key(cfg_a), by_key(cfg_b)
    return [(a[key], b[key]) for key in a.keys() & b.keys() if a[key].ndim >= 2]


@pytest.mark.parametrize("arm", ARMS[:-1])
def test_what_arms_share_starts_equal(words, arm):
    base = compose(words)
    other = compose([*(w for w in words if w.split("=")[0] != arm.split("=")[0]), arm])
    # depth scales the last matrices; everything else keeps its draw when layers are added
    pairs = (
        shared(base, other)
        if "n_layers" not in arm
        else shared(
            *(
                c.model_copy(update={"model": c.model.model_copy(update={"depth_scaled_init": False})})
                for c in (base, other)
            )
        )
    )
    assert len(pairs) >= 8
    for a, b in pairs:
        assert torch.equal(a, b)
