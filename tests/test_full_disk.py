"""A disk that is full leaves nothing half-written: what belongs together is there whole, or not at all."""

import resource
from contextlib import contextmanager

import pytest
from fake_results import write_fake_results
from matplotlib.figure import Figure

from lmablate import archive
from lmablate.analysis._style import save
from lmablate.core.files import atomic_write, write_together
from lmablate.results.studies import write_study


@contextmanager
def no_room_beyond(size):
    """Files cannot grow beyond so many bytes; the system's own word for it is of the kind of a full disk's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            yield
        assert not str(caught.value.filename).endswith(".tmp"), "it names a file that nobody asked for"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "results"
    ids = [row["run_id"] for row in write_fake_results(folder, steps=40)]
    uses = [{"run_id": run_id, "arm": "a", "stage": "evaluate"} for run_id in ids]
    write_study(folder, "norm_and_activation", {"sweep": "norm_and_activation", "runs": uses})
    return folder


def test_an_archive_is_whole_or_what_it_was(results, tmp_path):
    with no_room_beyond(2000):
        archive.save(results, tmp_path / "new", "norm_and_activation")
    assert content(tmp_path / "new") == {}
    archive.save(results, tmp_path / "old", "norm_and_activation")
    before = content(tmp_path / "old")
    assert len(before) == 2
    with no_room_beyond(len(before["study.json"]) + 500):
        archive.save(results, tmp_path / "old", "norm_and_activation")
    assert content(tmp_path / "old") == before


def test_a_figure_is_there_in_both_forms_or_in_none(tmp_path):
    with no_room_beyond(2000):
        save(Figure(), tmp_path / "figure")
    assert content(tmp_path) == {}
    paths = save(Figure(), tmp_path / "figure")
    assert [path.name for path in paths] == ["figure.png", "figure.svg"] and len(content(tmp_path)) == 2


def test_what_stood_there_stays(tmp_path):
    atomic_write(tmp_path / "a", "old")
    with no_room_beyond(100):
        write_together({tmp_path / "a": "new", tmp_path / "b": "x" * 200})
    assert content(tmp_path) == {"a": b"old"}


def test_a_file_that_cannot_be_begun_is_named_and_not_the_one_beside_it(tmp_path):
    with pytest.raises(OSError) as failed:
        atomic_write(tmp_path / "none" / "page.html", "new")
    assert failed.value.filename == str(tmp_path / "none" / "page.html")
