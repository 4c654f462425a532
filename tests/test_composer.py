"""Jobs composed from what others share are what Hydra composes for each alone."""

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from lmablate.config.compose import register_resolvers
from lmablate.core.paths import CONF_DIR
from lmablate.launcher.composer import Composer

JOBS = [
    ["seed=0"],
    ["seed=1", "optim.lr=1e-2"],
    ["activation=gelu", "seed=1"],
    ["seed=2", "activation=gelu", "model.d_ff=96", "+norm.added=3"],
    ["posemb=t5", "seed=3", "posemb.n_buckets=8"],
    ["posemb=t5", "seed=4", "~posemb.n_buckets"],
    ["tokenizer=bytes", "data=kjv", "runtime.log_every=7", "model.n_kv_heads=null"],
    ["schedule=wsd_branches", "schedule.branches=[0.5,1.0]", "results_dir='a b'"],
    ["hydra.job.chdir=true", "seed=5"],
    ["seed=0"],
]


@pytest.fixture
def loader():
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None and isinstance(hydra.config_loader, ConfigLoaderImpl)
        yield hydra.config_loader


@pytest.fixture
def master(loader):
    words = ["activation=swiglu", "hydra.verbose=false"]
    return loader.load_configuration("train", words, RunMode.MULTIRUN)


def plain(config):
    return OmegaConf.to_container(config, resolve=False)


def test_every_job_is_what_hydra_makes_of_its_words(loader, master):
    compose = Composer(loader, master)
    for words in JOBS:
        mine, whole = compose(words), loader.load_sweep_config(master, words)
        assert plain(mine) == plain(whole), words
        assert mine.hydra.overrides.task == [word for word in words if not word.startswith("hydra.")]


def test_jobs_that_differ_in_seeds_are_composed_once(loader, master, monkeypatch):
    composed = []
    whole = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda *a: composed.append(a) or whole(*a))
    compose = Composer(loader, master)
    seeds = [compose(["norm=layer", f"seed={seed}", "optim.lr=0.01"]).seed for seed in range(5)]
    assert seeds == list(range(5))
    assert len(composed) == 1


@pytest.mark.parametrize(
    "words", [["modle.d_model=3"], ["model.d_modle=3"], ["norm=lazer"], ["seed=1", "norm.layers=2"]]
)
def test_what_is_wrong_is_said_in_hydras_words(loader, master, words):
    with pytest.raises(HydraException) as theirs:
        loader.load_sweep_config(master, words)
    with pytest.raises(HydraException) as mine:
        Composer(loader, master)(words)
    assert str(mine.value) == str(theirs.value)
