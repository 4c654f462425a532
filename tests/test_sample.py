"""Text from a run's folder: the tokens of its model, and every refusal in words."""

import json
import shutil

import pytest
import torch
from corpus import QUICK, write_corpus

from lmablate import sample
from lmablate.config import compose
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.load import load_run
from lmablate.runs.prepared import prepare_run
from lmablate.runs.run import execute


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_corpus(folder / "text")
    words = [*QUICK, f"data.paths='{folder}/text/*.txt'", f"results_dir={folder}/results", "posemb=learned"]
    cfg = compose([*words, "trainer.precision=fp32", "optim.lr=0.02", "trainer.steps=40", "runtime.evaluations=1"])
    execute(prepare_run(cfg))
    return next((folder / "results").glob("*/result.json")).parent


def said(capsys, *words):
    """What a command that works prints."""
    assert sample.main([str(word) for word in words]) == 0
    return capsys.readouterr()


def refused(capsys, *words):
    """The message of a command that exits with 2."""
    assert sample.main([str(word) for word in words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "Traceback" not in told.err
    assert not told.out
    return told.err


def test_greedy_text_is_the_likeliest_token_each_time(run, capsys):
    model, _, data = load_run(run)
    ids = [data.eot_id, *data.encode("in the ")]
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert data.eot_id not in ids[1:]
    out = said(capsys, run, "--prompt", "in the ", "--tokens", 20, "--temperature", 0)
    assert out.out == data.decode(ids[1:]) + "\n"
    assert not out.err


def test_the_same_seed_gives_the_same_texts(run, capsys):
    words = (run, "--prompt", "let", "--tokens", 12, "--temperature", 0.9, "--top-k", 40, "--top-p", 0.95)
    first = said(capsys, *words, "--n", 3, "--seed", 4).out
    assert said(capsys, *words, "--n", 3, "--seed", 4).out == first
    assert said(capsys, *words, "--n", 3, "--seed", 5).out != first
    assert first.startswith("--- 1 of 3\nlet") and "\n--- 3 of 3\nlet" in first
    alone = said(capsys, *words, "--seed", 4).out
    assert first.startswith(f"--- 1 of 3\n{alone}")


def test_a_text_stops_at_the_end_of_its_document(run, capsys, monkeypatch):
    from lmablate import decoding

    real = decoding.generate

    def with_end(*given, end, **keys):
        found = real(*given, end=end, **keys)
        found[:, 6] = end
        return found

    monkeypatch.setattr(decoding, "generate", with_end)
    assert len(said(capsys, run, "--prompt", "let", "--tokens", 12, "--temperature", 0).out) == 5 + 1


def test_texts_longer_than_the_table_of_positions(run, capsys):
    """The context is 32 tokens; the end token before the prompt takes one, and the last token written is not read."""
    assert said(capsys, run, "--prompt", "a" * 21, "--tokens", 11, "--temperature", 0).out.startswith("a" * 21)
    assert "ask for at most 11 tokens" in refused(capsys, run, "--prompt", "a" * 21, "--tokens", 12)
    assert "has 41: shorten it by 9" in refused(capsys, run, "--prompt", "a" * 40, "--tokens", 1)
    assert "posemb=learned has positions for 32 tokens" in refused(capsys, run, "--tokens", 40)


def test_a_prompt_from_a_file_is_read_as_it_is(run, capsys, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("light over\ndark é")
    words = ("--tokens", "3", "--temperature", "0")
    assert said(capsys, run, *words, "--prompt-file", path) == said(capsys, run, *words, "--prompt", path.read_text())
    path.write_bytes(b"caf\xe9")
    assert "not UTF-8 (byte 3)" in refused(capsys, run, "--prompt-file", path)
    assert "cannot be read (No such file" in refused(capsys, run, "--prompt-file", tmp_path / "none")
    assert "--prompt: holds bytes that are not UTF-8" in refused(capsys, run, "--prompt", "caf\udce9")


def test_words_that_mean_nothing(run, capsys):
    assert "--tokens 0: give 1 or more" in refused(capsys, run, "--tokens", 0)
    assert "--n 0: give 1 or more" in refused(capsys, run, "--n", 0)
    assert "--seed -1: give 0 or more" in refused(capsys, run, "--seed", -1)
    assert "--top-p 0: must be above 0" in refused(capsys, run, "--top-p", 0)
    assert "all texts are the same one" in refused(capsys, run, "--n", 2, "--temperature", 0)
    if not torch.cuda.is_available():
        assert "sees no CUDA GPU" in refused(capsys, run, "--device", "cuda")


def copied(run, folder):
    """The run's folder without its result and its weights."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint", "result.json"))
    return folder


def test_runs_that_cannot_write(run, capsys, tmp_path):
    assert "no run is there" in refused(capsys, tmp_path / "nowhere")
    other = copied(run, tmp_path / "other")
    assert "the run is not finished" in refused(capsys, other)
    row = json.loads((run / "result.json").read_text())
    del row["checksum"]
    (other / "result.json").write_text(json.dumps(row | {"status": "diverged", "diverged_at_step": 7}))
    assert "the run diverged at step 7, so that it has no weights to sample from" in refused(capsys, other)
    (other / "result.json").write_text(json.dumps(row))
    assert "there is no checkpoint in" in refused(capsys, other)
    cfg = read_config(other / "config.yaml")
    (other / "config.yaml").unlink()
    write_config(
        cfg.model_copy(update={"tokenizer": None, "choices": cfg.choices | {"data": "mqar"}}), other / "config.yaml"
    )
    assert "data=mqar, a task whose tokens stand for no text" in refused(capsys, other)


@pytest.mark.slow
def test_a_run_of_a_prefix_objective_reads_its_prompt_in_both_directions(capsys, tmp_path):
    write_corpus(tmp_path / "text")
    words = [*QUICK, f"data.paths='{tmp_path}/text/*.txt'", f"results_dir={tmp_path}/results", "objective=prefix"]
    cfg = compose([*words, "trainer.precision=fp32", "optim.lr=0.02"])
    execute(prepare_run(cfg))
    run = next((tmp_path / "results").glob("*/result.json")).parent
    model, _, data = load_run(run)
    ids = [data.eot_id, *data.encode("in the be")]
    prefix = torch.tensor([len(ids)])
    with torch.no_grad():
        for _ in range(40):
            ids.append(int(model(torch.tensor([ids]), prefix)[0, -1].argmax()))
    out = said(capsys, run, "--prompt", "in the be", "--tokens", 40, "--temperature", 0)
    assert out.out == data.decode(ids[1:]) + "\n"
    assert "go beyond the 32 of the run's training texts" in out.err
