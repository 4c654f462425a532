"""Text becomes the same tokens wherever it lies: order, split and validation text follow from content alone."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from data_support import bpe, byte_level, files, gather, stores, texts, write

from lmablate.data import DataError, TokenData, prepare
from lmablate.data.documents import Corpus


def texts_of(corpus: Corpus, spans: np.ndarray) -> list[str]:
    raw = corpus.spool.read_bytes()
    return [raw[start : start + size].decode() for start, size in spans.tolist()]


def contained(folder: Path, documents: list[str]) -> list[Path]:
    """The same documents in each container that is read."""
    folder.mkdir()
    lines = [json.dumps({"text": text, "in": {"text": text, "n": i}}) for i, text in enumerate(documents)]
    raw = "\n".join(lines).encode()
    zstd = pa.Codec("zstd")
    packed = zstd.compress(raw[:999], asbytes=True) + zstd.compress(
        raw[999:], asbytes=True
    )  # two frames, as pzstd makes
    table = pa.table({"text": pa.array([text.encode() for text in documents], pa.binary()), "n": range(len(documents))})
    rows = io.BytesIO()
    pa.parquet.write_table(table, rows)
    for name, data in {
        "a.jsonl.bz2": bz2.compress(raw), "b.ndjson.xz": lzma.compress(raw), "c.jsonl.zst": packed, "d.jsonl.gz": gzip.compress(raw),
        "e.json": ("[\n" + ",\n".join(lines) + "\n]\n").encode(), "f.json": json.dumps([json.loads(line) for line in lines]).encode(),
        "g.json": "\n".join(json.dumps(json.loads(line), indent=2) for line in lines).encode(),
        "h.parquet.gz": gzip.compress(rows.getvalue()),
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    with pa.OSFile(str(folder / "i.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    with pa.OSFile(str(folder / "j.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with zipfile.ZipFile(folder / "k.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/0.jsonl", "\n".join(lines[:10]))
        archive.writestr("in/1.json.gz", gzip.compress("\n".join(lines[10:20]).encode()))
        archive.writestr("2.txt", documents[20])
        archive.writestr("__MACOSX/in/._0.jsonl", b"\0\5\26\7")
        rows = io.BytesIO()
        pa.parquet.write_table(table.slice(21), rows)
        archive.writestr("in/3.parquet", rows.getvalue())
    with zipfile.ZipFile(folder / "l.jsonl.zip", "w") as archive:
        archive.writestr("l", raw)
    return sorted(folder.iterdir())


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
        *(files(path) for path in contained(tmp_path / "contained", documents)),
        files(tmp_path / "contained/c.jsonl.zst", text_field="in.text"),
    ]
    made = [prepare(source, byte_level(), context_length=16, cache=tmp_path / "cache") for source in sources]
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


def test_less_training_text_is_the_first_of_it_with_the_tokenizer_of_all(tmp_path: Path):
    texts = [f"document {i} says {'ab' * (i % 7)} and {i * i} words\n" * 6 for i in range(40)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)

    def tokens(**changes: int) -> TokenData:
        return prepare(files(f"{tmp_path}/*.txt", **changes), bpe(), context_length=8, cache=tmp_path / "cache")

    whole, less = tokens(), tokens(train_bytes=2000)
    assert less.tokenizer_fingerprint == whole.tokenizer_fingerprint and less.fingerprint != whole.fingerprint
    assert np.array_equal(less.val, whole.val)
    kept = len(less.train) - 2  # the last document was cut, where a word may have been whole before
    assert 0 < kept < len(whole.train) and np.array_equal(less.train[: kept - 8], whole.train[: kept - 8])
    with pytest.raises(DataError, match=r"data.train_bytes=1000000 keeps all \d+ bytes of training text"):
        tokens(train_bytes=1_000_000)
