"""Shared fixtures: one cache for the whole run, no tracker, and small models on small text."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("COLUMNS", None)  # workers of pytest-xdist have one

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish():
    """Keep thousands of collected tests out of every garbage collection, a tenth of the time of the whole run."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """Tokenizers and token stores of this test run; workers of pytest-xdist share it, as jobs of a sweep would."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "lmablate-cache"
    before = os.environ.get("LMABLATE_CACHE")
    os.environ["LMABLATE_CACHE"] = str(folder)
    yield folder
    if before is None:
        os.environ.pop("LMABLATE_CACHE", None)
    else:
        os.environ["LMABLATE_CACHE"] = before
