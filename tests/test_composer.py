"""Jobs composed from what others share are what Hydra composes for each alone."""

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from lmablate.config import compose
from lmablate.config.composition import register_resolvers
from lmablate.config.reuse import Loader
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.launcher.hydra_launchers import Composer

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
    ["seed=2", "++seed=7", "optim.lr=0.02"],  # the last word on a key counts, whichever way it is set
    ["optim.lr=0.02", "optim.lr=0.03"],
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


@pytest.fixture
def loaded(monkeypatch):
    """How often Hydra composes for `compose`."""
    calls = []
    whole = Loader.load_configuration
    monkeypatch.setattr(Loader, "load_configuration", lambda *a, **k: calls.append(a[2]) or whole(*a, **k))
    return calls


def test_in_one_process_the_options_are_composed_once(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [compose(["norm=layer", f"seed={seed}", "optim.lr=0.01"]) for seed in range(3)]
    assert [run.seed for run in runs] == [0, 1, 2] and loaded == [["norm=layer"]]
    for steps in (10, 20):
        compose(["sweeps=norm", f"trainer.steps={steps}"])  # a group that stands in another folder
    assert loaded[1:] == [["sweeps=norm"]]
    with pytest.raises(ConfigError, match="add -m"):
        compose(["norm=layer", "seed=1,2"])
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        compose(["norm=layer", "optim.rl=1"])


def test_a_file_that_was_edited_added_or_removed_counts_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "norm").mkdir(parents=True)
    mine = tmp_path / "conf" / "norm" / "mine.yaml"

    def eps():
        return compose(["norm=mine", "seed=1"]).norm["eps"]

    mine.write_text("_target_: lmablate.model.norm.RMSNorm\neps: 0.5\n")
    assert eps() == eps() == 0.5
    mine.write_text("_target_: lmablate.model.norm.RMSNorm\neps: 0.25\n")
    assert eps() == 0.25
    mine.rename(tmp_path / "conf" / "norm" / "other.yaml")
    with pytest.raises(ConfigError, match="no such option"):
        eps()
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text((tmp_path / "conf" / "norm" / "other.yaml").read_text())
    assert eps() == 0.25
    mine.write_text("_target_: lmablate.model.norm.RMSNorm\neps: 0.125\n")  # found before that
    assert eps() == 0.125
