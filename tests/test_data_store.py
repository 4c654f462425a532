"""A token store is whole, good, made once, and made again only when the text has changed."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_support import bpe, byte_level, files, gather, kjv, stores, synthetic, texts, write

from lmablate.data import DataError, TokenData, prepare
from lmablate.data import documents as documents_module
from lmablate.data.documents import Corpus
from lmablate.data.local_files import LocalFiles
from lmablate.data.store import open_store
from lmablate.data.tokenizer import ByteTokenizer, train_bpe

# --- tokens in the store ----------------------------------------------------------------------------------------------


def test_unigram_loss_is_that_of_smoothed_counts(tmp_path: Path):
    data = prepare(synthetic(), byte_level(), context_length=16, cache=tmp_path)
    counts = dict.fromkeys(range(257), 1)
    for token in data.train.tolist():
        counts[token] += 1
    total = sum(counts.values())
    expected = -sum(np.log(counts[token] / total) for token in data.val.tolist()) / len(data.val)
    assert data.unigram_val_loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("limit", [40, 200])
def test_long_documents_are_tokenised_in_pieces_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    source = files(write(tmp_path / "text", texts(20, words=150)))
    whole = prepare(source, bpe(400), context_length=16, cache=tmp_path / "a")
    monkeypatch.setattr(Corpus.chunks, "__defaults__", (limit,))
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 1000)
    pieces = prepare(source, bpe(400), context_length=16, cache=tmp_path / "b")
    np.testing.assert_array_equal(pieces.train, whole.train)
    np.testing.assert_array_equal(pieces.val, whole.val)


def test_pieces_of_a_text_without_white_space_are_whole_characters(tmp_path: Path):
    text = "日本語" * 200 + "x"
    corpus = gather(tmp_path, [text, "other words"], val_fraction=1e-9)
    both = np.concatenate([corpus.train, corpus.val])
    pieces = [(piece.decode(), last) for piece, last in corpus.chunks(both, limit=100)]
    assert text in "".join(piece for piece, _ in pieces)
    assert sum(last for _, last in pieces) == 2
    assert len(pieces) > 10


def test_the_smallest_integer_that_holds_the_vocabulary_is_stored(tmp_path: Path):
    class Wide(ByteTokenizer):
        vocab_size = 65_537

    from lmablate.data.store import write_store

    for tokenizer, dtype in ((ByteTokenizer(), np.uint16), (Wide(), np.uint32)):
        folder = tmp_path / dtype.__name__
        folder.mkdir()
        corpus = gather(tmp_path, texts(10))
        write_store(folder, {"": corpus}, corpus.fingerprint, tokenizer)
        opened = open_store(folder)
        assert opened is not None
        assert opened[0].train.dtype == opened[0].val.dtype == dtype
        assert isinstance(opened[0].train, np.memmap)


# --- made once, whole -------------------------------------------------------------------------------------------------

_PREPARE_AT = """
import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])
from data_support import bpe, synthetic; from lmablate.data import prepare
import tokenizers
time.sleep(max(0, float(sys.argv[3]) - time.time()))
data = prepare(synthetic(n_documents=800), bpe(), context_length=16, cache=Path(sys.argv[2]))
print(data.fingerprint, data.tokenizer_fingerprint, data.batch(3, data_seed=0, batch_size=2, context_length=16).sum())
"""


def test_ten_processes_at_once_leave_one_good_store(tmp_path: Path):
    here, cache = str(Path(__file__).parent), tmp_path / "cache"
    words = [sys.executable, "-c", _PREPARE_AT, here, str(cache), str(time.time() + 3)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    said = [process.communicate(timeout=60) for process in running]
    assert all(process.returncode == 0 for process in running), said
    assert len({out for out, _ in said}) == 1
    assert len(list((cache / "stores").iterdir())) == 1, "what the others began is gone"
    opened = open_store(stores(cache)[0])
    assert opened is not None
    assert said[0][0].split()[0] == opened[0].fingerprint


def damage_train(store: Path) -> None:
    os.truncate(store / "train.bin", (store / "train.bin").stat().st_size - 2)


def damage_meta(store: Path) -> None:
    (store / "meta.json").write_text('{"format": 1, "by')


def damage_tokenizer(store: Path) -> None:
    (store / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [damage_train, damage_meta, damage_tokenizer])
def test_a_damaged_store_is_made_again(tmp_path: Path, damage):
    first = prepare(synthetic(), bpe(), context_length=16, cache=tmp_path)
    expected = first.train.tobytes()
    (store,) = stores(tmp_path)
    damage(store)
    assert open_store(store) is None
    again = prepare(synthetic(), bpe(), context_length=16, cache=tmp_path)
    assert again.train.tobytes() == expected
    assert list((tmp_path / "stores").iterdir()) == [store]


def test_a_lost_or_damaged_index_costs_time_only(tmp_path: Path):
    expected = prepare(synthetic(), bpe(), context_length=16, cache=tmp_path).fingerprint
    (index,) = (tmp_path / "index").iterdir()
    index.write_text("{")
    assert prepare(synthetic(), bpe(), context_length=16, cache=tmp_path).fingerprint == expected
    assert "store" in json.loads(index.read_text())
    assert len(stores(tmp_path)) == 1


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path: Path):
    young, old = (tmp_path / "stores" / f".building-{word}" for word in ("young", "old"))
    for folder in (young, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    prepare(synthetic(), byte_level(), context_length=16, cache=tmp_path)
    assert young.exists()
    assert not old.exists()


def age(folder: Path) -> None:
    """As if the files had been written an hour ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(self):
        raise AssertionError("read again")

    monkeypatch.setattr(LocalFiles, "documents", documents)


def make(source, cache: Path) -> TokenData:
    return prepare(source, byte_level(), context_length=16, cache=cache)


def test_unchanged_files_are_not_read_again_and_changed_ones_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = files(write(tmp_path / "text", texts(10)))
    age(tmp_path / "text")
    first = make(source, tmp_path / "cache")
    with monkeypatch.context() as patch:
        refuse_to_read(patch)
        assert make(source, tmp_path / "cache").fingerprint == first.fingerprint
        (tmp_path / "text/0.txt").write_text("other words " * 20)
        with pytest.raises(AssertionError, match="read again"):
            make(source, tmp_path / "cache")
    assert make(source, tmp_path / "cache").fingerprint != first.fingerprint


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path):
    source = files(write(tmp_path / "text", texts(10)))
    age(tmp_path / "text")
    first = make(source, tmp_path / "cache")
    path = tmp_path / "text/0.txt"
    time_before = path.stat().st_mtime_ns
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(time_before, time_before))
    assert make(source, tmp_path / "cache").fingerprint != first.fingerprint


def test_a_file_written_just_now_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = files(write(tmp_path / "text", texts(10)))
    make(source, tmp_path / "cache")
    refuse_to_read(monkeypatch)
    with pytest.raises(AssertionError, match="read again"):
        make(source, tmp_path / "cache")


def test_opening_is_fast_and_imports_no_reader(shared_cache: Path):
    prepare(kjv(), bpe(1024), context_length=128, cache=shared_cache)
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from data_support import bpe, kjv; from lmablate.data import prepare; start = time.perf_counter()\n"
        "data = prepare(kjv(), bpe(1024), context_length=128, cache=Path(sys.argv[2]))\n"
        "data.batch(0, data_seed=0, batch_size=2, context_length=16)\n"
        "heavy = {'datasets', 'tokenizers', 'torch', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "print(time.perf_counter() - start, heavy)"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(shared_cache)]
    seconds, heavy = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert heavy.strip() == "set()"
    assert float(seconds) < 0.5


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot prepare the data in .*file/cache.*LMABLATE_CACHE"):
        prepare(synthetic(), byte_level(), context_length=16, cache=tmp_path / "file/cache")


def test_a_text_too_short_for_the_context_is_refused_with_both_numbers(tmp_path: Path):
    source = files(write(tmp_path / "text", ["a few words", "and some more"]))
    with pytest.raises(
        DataError, match=r"data.paths=.*text has 1\d training tokens, and model.context_length=64 needs at least 65"
    ):
        prepare(source, byte_level(), context_length=64, cache=tmp_path / "cache")


def test_the_users_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LMABLATE_CACHE", str(tmp_path / "mine"))
    prepare(synthetic(), byte_level(), context_length=16)
    assert len(stores(tmp_path / "mine")) == 1


def test_what_is_read_and_held_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="lmablate"):
        prepare(synthetic(), byte_level(), context_length=16, cache=tmp_path)
    assert "reading data=synthetic" in caplog.text
    assert "bytes of validation text" in caplog.text


def test_bpe_does_not_depend_on_the_order_of_the_texts():
    documents = texts(30)
    first, second = (train_bpe([order], 350).dumps() for order in (documents, documents[::-1]))
    assert first == second
