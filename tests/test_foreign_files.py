"""What stands in files of others is shown as what it is, on a page, in Markdown and on a terminal, and misleads no reader."""

import json
import os
import re
import sys

import fake_results
import pytest
from corpus import QUICK, write_corpus

from lmablate import archive, status
from lmablate.cli import front_door
from lmablate.config import compose
from lmablate.core.console import plain
from lmablate.core.errors import ConfigError, DataError
from lmablate.core.files import DEEPEST, file_stem, read_json, read_jsonl
from lmablate.launcher.sweep_manifest import load_sweeps
from lmablate.report.command import main as report
from lmablate.results import load_history
from lmablate.results.evaluations import load_evaluations
from lmablate.results.load import load_unfinished
from lmablate.results.studies import load_studies, study_path, write_study
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.run_directory import RunDirectory

SCRIPT = "<script>alert(1)</script>"
MARKUP = f"x\n```\n{SCRIPT}`a` [link](javascript:x) \x1b[31mred"
DEEP = "[" * 200_000


@pytest.fixture
def folder(tmp_path):
    """Results of somebody who wrote Markdown, HTML and signs that steer a terminal wherever words are free."""

    def spoil(row):
        row["choices"]["norm"] = row["arm"] = row["solved"] = MARKUP
        row["provenance"] |= {"overrides": [f"norm={MARKUP}"], "torch": MARKUP}
        row["sweep"] = f"../../evil{MARKUP}"

    results = tmp_path / "results"
    fake_results.write_fake_results(results, {"norm": ("rms",)}, seeds=(0, 1), change=spoil)
    fake_results.write_fake_results(results, {"norm": ("layer",)}, seeds=(0, 1), sweep=None)
    failed = RunDirectory(results, "feed`<img src=x>`")
    failed.write_status({"state": "failed", "error": MARKUP, "step": "x", "steps": SCRIPT})
    failed.config_path.write_text("overrides: 5")
    return results


def test_markdown_shows_what_strangers_wrote_and_none_of_it_is_markup(folder, tmp_path, capsys, monkeypatch):
    figures = []
    monkeypatch.setattr("lmablate.analysis._style.save", lambda figure, path: figures.append(path))
    assert report([str(folder), "--out", str(tmp_path / "out"), "--format", "markdown"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    page = (tmp_path / "out" / "report.md").read_text()
    outside, inside = [], []
    for number, block in enumerate(re.split(r"^```$", page, flags=re.MULTILINE)):
        (inside if number % 2 else outside).append(block)
    assert len(inside) == 2 and all(block.count("\n") == 2 for block in inside)  # a command each, on one line
    words = re.sub(r"(?<!\\)`[^`\n]*`", "", "".join(outside))  # code is shown as it is
    assert "script" in words and not re.search(r"(?<!\\)<(?:script|img)|(?<!\\)\[link|(?<!\\)`", words)
    assert any("evil" in path.name for path in figures) and {path.parent for path in figures} == {
        tmp_path / "out" / "figures"
    }


def test_a_terminal_is_not_steered(folder, capsys):
    assert status.main([str(folder), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and SCRIPT in shown
    assert plain("a\x1b]0;title\x07b\nc\u202edé") == "a\ufffd]0;title\ufffdb\nc\ufffddé"


def test_figures_of_names_that_look_alike_as_files_are_told_apart():
    assert file_stem("norm_position") == "norm_position"
    assert len({file_stem(name) for name in ("a/b", "a b", "a_b", "x" * 300, "x" * 301)}) == 5
    assert all(re.fullmatch(r"[\w-]{1,100}", file_stem(name)) for name in ("../../x", "x" * 300, "\x00"))


def test_values_nested_without_end_are_damage_and_no_crash(folder, tmp_path):
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "legal.json").write_text("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2))
    for path in (tmp_path / "deep.json", tmp_path / "legal.json"):
        with pytest.raises(ValueError, match="within each other"):
            read_json(path)
    (tmp_path / "deep.jsonl").write_text(f"{DEEP}\n{{}}\n")
    with pytest.raises(ValueError, match=r"deep\.jsonl:1"):
        read_jsonl(tmp_path / "deep.jsonl")
    run = next(folder.glob("*/result.json")).parent
    (run / "evaluations").mkdir()
    for place in (run / "evaluations" / "x.json", run / "status.json", run / "history.jsonl", run / "result.json"):
        place.write_text(f"{DEEP}\n")
    for name in (".sweeps", "studies"):
        (folder / name).mkdir()
        (folder / name / "x.json").write_text(DEEP)
    assert [sweep.name for sweep in load_sweeps(folder)] == [""] and load_studies(folder) == {}
    with pytest.warns(UserWarning, match="left out"):
        assert load_evaluations(folder).empty
    with pytest.warns(UserWarning, match="left out"):
        assert run.name not in set(load_history(folder)["run_id"])
    found = {row["run_id"]: row for row in load_unfinished(folder)}
    assert found[run.name]["state"] == "damaged"
    failed = found["feed`<img src=x>`"]
    assert (failed["step"], failed["steps"], failed["overrides"]) == (None, None, ())
    (folder / "rows.jsonl").write_text('{"schema_version": 1, "common": {}}\n')
    (folder / "study.json").write_text(DEEP)
    with pytest.raises(ConfigError, match="not an archive"):
        archive.load(folder)


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path):
    """A sparse file: what is refused by its size costs no memory."""
    from lmablate.data.tokenizer import load_pretrained
    from lmablate.schema.data import PretrainedTokenizer

    large = tmp_path / "tokenizer.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    for read in (read_json, read_jsonl):
        with pytest.raises(OSError, match="are read"):
            read(large)
    settings = PretrainedTokenizer(kind="pretrained", path=str(large), revision=None, end_token=None, vocab_size=None)
    with pytest.raises(DataError, match="cannot read"):
        load_pretrained(settings)


@pytest.mark.parametrize("name", ["", "   ", "a\0b", "a\x1b[2Jb"])
def test_a_results_directory_has_a_name(tmp_path, name):
    cfg = compose(["norm=rms"])
    path = tmp_path / "config.yaml"
    write_config(cfg.model_copy(update={"results_dir": name}), path)
    with pytest.raises(ConfigError, match=r"results_dir.*is no name of a folder"):
        read_config(path)


def test_results_dir_without_a_value_is_refused(capsys):
    assert front_door.main("plan", lambda configs, launcher: pytest.fail("taken"), ["results_dir="]) == 2
    assert "is no name of a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine/question", "../../evil", "/etc/evil", "..", ".hidden"])
def test_the_file_of_a_study_lies_in_its_folder_whatever_the_study_is_called(tmp_path, name):
    results = tmp_path / "a" / "results"
    path = study_path(results, name)
    assert path.parent == results / "studies" and not path.name.startswith(".")
    run = {"run_id": "0123456789ab", "arm": "x", "stage": "tune"}
    assert write_study(results, name, {"sweep": name, "runs": [run]}) == path
    assert list(load_studies(results)) == [name]
    for wrong in ({"sweep": 5, "runs": []}, {"sweep": "x", "runs": [1]}, {"sweep": "x", "runs": [{"run_id": []}]}, []):
        path.write_text(json.dumps(wrong))
        assert load_studies(results) == {}


def test_commands_and_pages_name_a_secret_and_do_not_repeat_it(folder, tmp_path, monkeypatch, capsys):
    key = "0123456789abcdef0123456789abcdef01234567"
    named = tmp_path / key
    folder.rename(named)
    monkeypatch.setenv("HF_TOKEN", key)
    monkeypatch.setattr("lmablate.analysis._style.save", lambda figure, path: None)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # put back after the command has wrapped it
    assert report([str(named), "--out", str(tmp_path / "out"), "--format", "markdown"]) == 0
    assert status.main([f"{named}/no"]) == 2
    told = capsys.readouterr()
    page = (tmp_path / "out" / "report.md").read_text()
    assert key not in told.out + told.err + page and "<HF_TOKEN>" in told.err and "<HF_TOKEN>" in page


def test_what_a_grid_writes_down_before_its_jobs_are_checked_holds_no_secret(tmp_path, monkeypatch, capsys):
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    text = write_corpus(tmp_path / "text")
    words = ["-m", *QUICK, f"data.paths={text}/*.txt", "seed=0,1", f"results_dir={tmp_path / 'results'}"]
    words.append(f"runtime.wandb_project={key}")
    assert front_door.main("train", lambda configs, launcher: pytest.fail("taken"), words) == 2
    told = capsys.readouterr()
    assert "WANDB_API_KEY" in told.err and key not in told.err + told.out
    written = [path.read_text() for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert not any(key in one for one in written) and os.environ["WANDB_API_KEY"] == key


def test_studies_whose_names_look_alike_have_files_of_their_own(tmp_path):
    for name in ("a/b", "a b", "a_b"):
        write_study(tmp_path, name, {"sweep": name, "runs": []})
    assert load_studies(tmp_path).keys() == {"a/b", "a b", "a_b"}
