"""Text becomes the same store wherever it lies, and a store is whole, good and made once."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from data_support import bpe, byte_level, files, kjv, synthetic, texts, write

from lmablate.data import DataError, TokenData, prepare
from lmablate.data import documents as documents_module
from lmablate.data.documents import Corpus, collect
from lmablate.data.local_files import LocalFiles
from lmablate.data.store import open_store
from lmablate.data.tokenizer import ByteTokenizer, train_bpe


def gather(folder: Path, documents: list[str], *, val_fraction: float = 0.2, val_bytes: int = 500) -> Corpus:
    encoded = [text.encode() for text in documents]
    folder.mkdir(exist_ok=True)
    return collect(encoded, folder / "spool", where="test", val_fraction=val_fraction, val_bytes=val_bytes)


def texts_of(corpus: Corpus, spans: np.ndarray) -> list[str]:
    raw = corpus.spool.read_bytes()
    return [raw[start : start + size].decode() for start, size in spans.tolist()]


def stores(cache: Path) -> list[Path]:
    return [path for path in (cache / "stores").iterdir() if not path.name.startswith(".")]


# --- the canonical text -----------------------------------------------------------------------------------------------


def test_names_folders_order_and_format_change_nothing(tmp_path: Path):
    documents = texts(30)
    (tmp_path / "rows").mkdir()
    with (tmp_path / "rows/a.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text, "n": 1}) + "\n" for text in reversed(documents))
    pa.parquet.write_table(pa.table({"body": documents[5:] + documents[:5]}), tmp_path / "rows/b.parquet")
    write(tmp_path / "deep/er", documents[:20])
    write(tmp_path / "deep", documents[20:], name="z{}.md")
    sources = [
        files(write(tmp_path / "one", documents)),
        files(write(tmp_path / "two", documents[::-1], name="x{}.txt")),
        files(tmp_path / "deep/**"),
        files([str(tmp_path / "deep/*.md"), str(tmp_path / "deep/er/*.txt")]),
        files(tmp_path / "rows/*.jsonl"),
        files(tmp_path / "rows/*.parquet", text_field="body"),
    ]
    made = [prepare(source, bpe(), context_length=16, cache=tmp_path / "cache") for source in sources]
    assert len({data.fingerprint for data in made}) == 1
    assert len({data.train.tobytes() for data in made}) == 1
    assert len(stores(tmp_path / "cache")) == 1


@pytest.mark.parametrize("place", ["train", "val"])
def test_one_other_character_is_another_text(tmp_path: Path, place: str):
    first = gather(tmp_path / "a", texts(40))
    changed = texts_of(first, getattr(first, place))[0]
    documents = [text if not text.startswith(changed) else text[:-1] + "!" for text in texts(40)]
    assert documents != texts(40)
    assert gather(tmp_path / "b", documents).fingerprint != first.fingerprint


def test_a_new_document_moves_no_other(tmp_path: Path):
    before = gather(tmp_path / "a", texts(40), val_bytes=10**6)
    after = gather(tmp_path / "b", texts(40) + texts(20, seed=1), val_bytes=10**6)
    for side in ("train", "val"):
        old, new = (texts_of(corpus, getattr(corpus, side)) for corpus in (before, after))
        assert [text for text in new if text in old] == old
        assert len(new) > len(old)


def test_split_and_order_follow_the_hash_of_the_text(tmp_path: Path):
    documents = texts(200)
    corpus = gather(tmp_path, documents, val_fraction=0.3, val_bytes=10**6)

    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    ordered = sorted(documents, key=digest)
    held_out = [text for text in ordered if int.from_bytes(digest(text)[:8], "big") / 2**64 < 0.3]
    assert texts_of(corpus, corpus.val) == held_out
    assert texts_of(corpus, corpus.train) == ordered[len(held_out) :]
    assert 40 < len(held_out) < 80


def test_equal_documents_are_kept_and_stay_together(tmp_path: Path):
    corpus = gather(tmp_path, texts(30) * 3, val_bytes=10**6)
    train, val = (texts_of(corpus, spans) for spans in (corpus.train, corpus.val))
    assert len(train) + len(val) == 90
    assert all(train.count(text) == 3 for text in train)
    assert not set(train) & set(val)


@pytest.mark.parametrize(("fraction", "held_out"), [(1e-9, 1), (1 - 1e-9, 2)])
def test_few_documents_leave_neither_side_empty(tmp_path: Path, fraction: float, held_out: int):
    corpus = gather(tmp_path, texts(3), val_fraction=fraction, val_bytes=10**6)
    assert (len(corpus.val), len(corpus.train)) == (held_out, 3 - held_out)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_text_is_split_at_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, copies: int):
    book = "".join(f"line {i} of the book\n" for i in range(500))
    corpus = gather(tmp_path, [book] * copies, val_fraction=0.1, val_bytes=10**6)
    (head, *same), (tail, *others) = texts_of(corpus, corpus.train), texts_of(corpus, corpus.val)
    assert head + tail == book
    assert head.endswith("\n")
    assert len(tail) / len(book) == pytest.approx(0.1, abs=0.01)
    assert same == [head] * (copies - 1)
    assert others == [tail] * (copies - 1)
    assert "only one document" in caplog.text


def test_a_single_text_without_white_space_is_split_between_characters(tmp_path: Path):
    corpus = gather(tmp_path, ["日本語" * 1000], val_fraction=0.1003, val_bytes=10**6)
    (head,), (tail,) = texts_of(corpus, corpus.train), texts_of(corpus, corpus.val)
    assert head + tail == "日本語" * 1000


def test_blank_documents_are_dropped(tmp_path: Path):
    blank = ["", " \n\t ", "\n"]
    assert gather(tmp_path / "a", texts(20) + blank).fingerprint == gather(tmp_path / "b", texts(20)).fingerprint
    with pytest.raises(DataError, match="test: there is no text"):
        gather(tmp_path / "c", blank)


def test_the_validation_text_is_cut_to_its_bytes_at_white_space(tmp_path: Path):
    corpus = gather(tmp_path, texts(200), val_bytes=1000)
    val = texts_of(corpus, corpus.val)
    assert 1000 - 256 < corpus.val_bytes == sum(len(text.encode()) for text in val) <= 1000
    whole = next(text for text in texts(200) if text.startswith(val[-1]))
    assert whole[len(val[-1])].isspace()
    unbroken = gather(tmp_path / "b", ["日本語" * 100 + str(i) for i in range(50)], val_bytes=1000)
    assert 1000 - 3 < unbroken.val_bytes <= 1000
    assert texts_of(unbroken, unbroken.val)


def test_validation_text_is_the_same_for_every_tokenizer(tmp_path: Path):
    source = files(write(tmp_path / "text", texts(60)))
    shown, sizes = set(), set()
    for tokenizer in (bpe(270), bpe(400), byte_level()):
        data = prepare(source, tokenizer, context_length=16, cache=tmp_path / "cache")
        documents = data.decode(data.val).split("<|endoftext|>")
        assert documents.pop() == "", "the last document ends too"
        assert sum(len(text.encode()) for text in documents) == data.val_bytes
        assert int((data.val == data.eot_id).sum()) == len(documents)
        shown.add(tuple(documents))
        sizes.add(len(data.val))
    assert len(shown) == 1
    assert len(sizes) == 3


def test_training_and_validation_share_no_document(tmp_path: Path):
    data = prepare(
        files(write(tmp_path / "text", texts(60))), byte_level(), context_length=16, cache=tmp_path / "cache"
    )
    train, val = ({*data.decode(ids).split("<|endoftext|>")} - {""} for ids in (data.train, data.val))
    assert train | val <= {*texts(60)} | val
    assert not any(text.startswith(tuple(val)) for text in train)


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
    monkeypatch.setattr(Corpus.pieces, "__defaults__", (limit,))
    monkeypatch.setattr(documents_module, "BATCH_BYTES", 1000)
    pieces = prepare(source, bpe(400), context_length=16, cache=tmp_path / "b")
    np.testing.assert_array_equal(pieces.train, whole.train)
    np.testing.assert_array_equal(pieces.val, whole.val)


def test_pieces_of_a_text_without_white_space_are_whole_characters(tmp_path: Path):
    text = "日本語" * 200 + "x"
    corpus = gather(tmp_path, [text, "other words"], val_fraction=1e-9)
    both = np.concatenate([corpus.train, corpus.val])
    pieces = [(piece.decode(), last) for piece, last in corpus.pieces(both, limit=100)]
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
        write_store(folder, gather(tmp_path, texts(10)), tokenizer)
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
