"""The front door: what people type, and what they are told. In-process and without training."""

import argparse
import errno
import importlib
import os
import sys
import threading

import pytest
import yaml
from fuzz.valid import commands, doors
from hydra import compose as their_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.version import VersionBase

from lmablate.cli import front_door, usage
from lmablate.cli.flags import parse_flags
from lmablate.config import compose
from lmablate.config.hints import known_keys, unknown_key
from lmablate.config.overrides import rewrite
from lmablate.config.quoting import text_keys
from lmablate.config.synonyms import SYNONYMS
from lmablate.core.console import VERBOSE
from lmablate.core.errors import ConfigError, exit_on_config_error, explained
from lmablate.core.files import make_folder
from lmablate.core.paths import CONF_DIR, given_path
from lmablate.runs.run_directory import below, check_writable, run_path

SMALL = (
    "data=synthetic",
    "tokenizer=bytes",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "trainer.steps=6",
)

NORMS = ", ".join(sorted(path.stem for path in (CONF_DIR / "norm").glob("*.yaml")))


def not_yaml() -> Exception:
    try:
        yaml.safe_load("a:\n\tb: 1")
    except yaml.YAMLError as error:
        return error
    raise AssertionError


def of_hydra() -> Exception:
    """A plain ValueError out of Hydra's own code."""
    from hydra._internal.defaults_list import Overrides

    class Repository:
        group_exists = staticmethod(lambda group: True)

    try:
        Overrides(Repository(), OverridesParser.create().parse_overrides(["norm=null"]))  # type: ignore[arg-type]
    except ValueError as error:
        return error
    raise AssertionError


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device", "out/page"), 1, "out/page: the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "theirs"), 2, "theirs: permission denied"),
    (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 2, "gone: no such file"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "not UTF-8"),
    (not_yaml(), 2, "line 2, column 1"),
    (of_hydra(), 2, "override must be a string"),
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", commands())
def test_every_command_tells_failures_in_words(name, monkeypatch, capsys):
    modules = {room: module for module, room in doors().items()}
    main = importlib.import_module(modules.get(name, name)).main
    monkeypatch.setenv("LMABLATE_START", "spawn")
    monkeypatch.setattr(sys, "argv", ["command"])
    words = {"lmablate.inspect.__main__": ["time"], "lmablate.__main__": ["status"]}.get(name, [])
    for failure, code, says in FAILURES:

        def fail(*_, failure=failure, **__):
            raise failure

        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", fail)
        monkeypatch.setattr(front_door, "parse_flags", fail)
        assert (main() if name == "lmablate.demo" else main(words)) == code
        told = capsys.readouterr().err
        assert told.startswith("error: ") and says in told and told.count("error: ") == 1


def test_an_error_of_ours_keeps_its_trace(monkeypatch):
    def raises(error):
        def fail():
            raise error

        return exit_on_config_error(fail)

    with pytest.raises(ZeroDivisionError):
        raises(ZeroDivisionError())()
    assert explained(ValueError("ours")) is None
    assert raises(KeyboardInterrupt())() == 130
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(OSError, match="full"):
        raises(OSError(errno.ENOSPC, "full"))()


def asked(*words: str) -> tuple[int, list]:
    """The configurations that a command line hands to its command, and the exit code."""
    got: list = []
    code = front_door.main(
        "plan", lambda configs, _: got.extend(configs) or 0, words, study=lambda s, _: got.append(s) or 0
    )
    return code, got


def told(capsys, *words: str) -> str:
    code, _ = asked(*words)
    assert code == 2
    return capsys.readouterr().err


def test_no_words_are_the_default_run():
    code, (cfg,) = asked()
    assert code == 0 and cfg == compose([])


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        ("norm=layer --cfg job", "activation:"),
        ("norm=layer -c job", "activation:"),
        ("--cfg=job norm=layer", "activation:"),
        ("sweeps=activation --cfg job", "swiglu at unmatched width"),
        ("-m norm=rms,layer seed=3 --cfg job", "# norm=layer seed=3"),
        ("-m norm=layer -c job -p norm", "LayerNorm"),
    ],
)
def test_the_configuration_is_shown_wherever_the_flag_stands(words, shows, capsys):
    assert asked(*words.split())[0] == 0
    assert shows in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--norm rms", "write norm=rms"),
        ("--results_dir x", "write results_dir=x"),
        ("--results-dir=x", "write results_dir=x"),
        ("-norm=rms", "write norm=rms"),
        ("--learning-rate 1", "did you mean optim.lr? there are -m"),
        ("--cfg foo", "it takes job or hydra or all"),
        ("--experimental-rerun config.pickle", "reads a pickle"),
        ("--cfg", "nothing follows it"),
        ("--trust", "needs the name of a package"),
        ("norm=rms --resolve", "only be used in conjunction"),
    ],
)
def test_flags_of_other_programs_are_understood(words, says, capsys):
    assert says in told(capsys, *words.split())


def test_flags_are_split_from_overrides_in_any_order():
    found = parse_flags(["norm=rms", "--info", "seed=0", "-m", "--trust=a,b", "--config-dir", "x", "~optim.eps"])
    assert found.overrides == ["norm=rms", "seed=0", "~optim.eps"] and found.trusted == ["a", "b"]
    assert found.hydra_args(found.overrides)[3:] == ["-m", "--info=all", "--config-dir=x"] and found.multirun


@pytest.mark.parametrize(
    ("words", "says"),
    [
        # options that are no words
        ("posemb=null", "posemb=null: no such option, did you mean none?"),
        ("norm=true", f"norm has {NORMS}"),
        ("attention=1", "attention has gqa"),
        ("activation=1e3", "activation=1e3: no such option"),
        ("-m norm=null,rms", "norm=null: no such option, did you mean none?"),
        ("norm=[rms,layer]", "-m norm=rms,layer"),
        ("hydra/launcher=null", "hydra/launcher has gang"),
        ("preset=gpt5", "did you mean gpt2 or gpt1"),
        ("sweeps=norn", "did you mean norm"),
        ("norm=rsm", f"did you mean rms? norm has {NORMS}"),
        # the grammar
        ("norm = rms", "write norm=rms"),
        ("norm= rms", "write norm=rms"),
        ("norm =rms", "write norm=rms"),
        ("-m norm=rms, layer", "write norm=rms,layer"),
        ("-m norm=rms，layer", "'，' is not ',': write norm=rms,layer"),
        ("model.d_model=１２", "'１' is not '1', '２' is not '2': write model.d_model=12"),
        ("~norm", "~norm: a run has one option of each group; choose another of norm: layer"),
        ("~seed", "seed: missing, and every run needs it: give seed=VALUE"),
        ("norm＝rms", "write norm=rms"),
        ("norm", "an override is key=value"),
        ("norm=rms,layer", "add -m in front of the overrides"),
        ("optim.lr=1e-3,1e-2", "A list is written optim.lr=[1e-3,1e-2]"),
        ("seed=range(1,3)", "add -m"),
        ("optim.lr=a=b", "optim.lr=a=b: cannot be read"),
        ("optim.lr=[1", "\"optim.lr='[1'\""),
        # studies and grids
        ("sweeps=norm_and_activation sweep.seeds.values=8", "is a grid and no study with arms: its seeds are a key like any other"),
        ("sweep.seeds=8", "only a study has this"),
        ("norm=rms sweep.skip=norm=rms", "this is one run"),
        # unknown keys
        ("sweep=norm", "did you mean sweeps?"),
        ("posemb.factor=4", "posemb.factor: no such key in the option chosen; posemb=rope_dynamic or"),
        ("xyzzy=1", "--help lists the groups"),
    ],
)  # fmt: skip
def test_what_was_meant_is_said(words, says, capsys):
    assert says in told(capsys, *words.split())


@pytest.mark.parametrize(
    ("key", "meant"),
    {
        "lr": "optim.lr",
        "optim.learning_rate": "optim.lr",
        "trainer.lr": "optim.lr",
        "learning_rate": "optim.lr",
        "n_layers": "model.n_layers",
        "num_hidden_layers": "model.n_layers",
        "d_model": "model.d_model",
        "hidden_size": "model.d_model",
        "num_attention_heads": "model.n_heads",
        "block_size": "model.context_length",
        "steps": "trainer.steps",
        "batch_size": "trainer.batch_size",
        "epochs": "trainer.tokens",
        "dropout": "model.dropout",
        "device": "runtime.device",
        "wandb": "runtime.wandb",
        "warmup": "schedule.warmup_steps",
        "optim.warmup_steps": "schedule.warmup_steps",
        "modle.d_model": "model.d_model",
        "optimizer": "optim",
    }.items(),
)
def test_the_name_that_others_have_for_a_key_finds_it(key, meant):
    assert unknown_key(key).startswith(f"{key}: no such key, did you mean {meant}")


def test_every_synonym_names_a_key_and_is_none_itself():
    keys = set(known_keys())
    assert set(SYNONYMS.values()) <= keys
    assert not set(SYNONYMS) & keys


def test_keys_that_hold_text_need_no_quotes():
    assert {"results_dir", "data.paths", "tokenizer.path", "runtime.cache_dir", "trainer.init_from"} <= text_keys()
    read = OverridesParser.create().parse_override
    for typed in (
        "runs/lr=3e-4",
        "2026",
        "a[1]/{b}",
        "don't",
        "erg_ü/x",
        "1e3",
        "true",
        "a b:c",
        "f(x)",
        "end\\",
        "~/x",
    ):
        (word,) = rewrite([f"results_dir={typed}"])
        assert read(word).value() == typed
    assert compose(["results_dir=runs/lr=3e-4", "runtime.wandb_project=1"]).runtime.wandb_project == "1"
    assert rewrite(["runtime.cache_dir=null"]) == ["runtime.cache_dir=null"]


def test_text_keeps_quotes_lists_and_grids_that_were_given():
    read = OverridesParser.create().parse_override
    for word in ("data.paths=[a=1/*.txt,b.txt]", "data.paths=['a=1/*.txt',b.txt]"):
        assert read(rewrite([word])[0]).value() == ["a=1/*.txt", "b.txt"]
    assert rewrite(["data.paths=a=1,b", "results_dir='x=1'"]) == ["data.paths='a=1',b", "results_dir='x=1'"]


def test_home_is_home_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("results_dir='~/x'", "results_dir=~/x"):
        assert compose([word]).results_dir == str(tmp_path / "x")
    assert given_path("~/x") == tmp_path / "x"
    with pytest.raises(argparse.ArgumentTypeError, match="empty"):  # --out "$FOLDER"
        given_path("")


GRIDS = [
    ("posemb=rope_linear,rope_yarn posemb.factor=4", [4.0, 4.0], lambda c: c.posemb["factor"]),
    ("attention=sliding_window,interleaved attention.window=4", [4, 4], lambda c: c.attention["window"]),
    ("ffn=token_choice,loss_free ffn.n_experts=4", [4, 4], lambda c: c.ffn["n_experts"]),
    ("schedule=wsd,cosine schedule.final_fraction=0.3", [0.3, 0.3], lambda c: c.schedule.final_fraction),
    ("schedule=wsd,wsd_branches schedule.branches=[1.0]", "schedule.branches: schedule=wsd has no such key", None),
    ("data=copy,reverse data.vocab_size=20", [20, 20], lambda c: c.data.vocab_size),
    ("objective=mlm,rtd objective.mask_share=0.3", [0.3, 0.3], lambda c: c.objective.mask_share),
    ("posemb=rope_linear,alibi posemb.factor=4", "posemb.factor: posemb=alibi has no such key; posemb=rope_dynamic", None),
    ("norm=rms,layer posemb.facto=4", "posemb.facto: no such key, did you mean posemb.factor", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected", "of"),
    [pytest.param(*grid, marks=[] if grid[0].startswith("posemb") else pytest.mark.slow, id=grid[0]) for grid in GRIDS],
)
def test_a_fixed_key_of_a_swept_group_holds_in_each_option(words, expected, of, capsys):
    small = SMALL[2:] if "data=" in words else SMALL
    if of is None:
        assert expected in told(capsys, "-m", *small, *words.split())
        return
    code, jobs = asked("-m", *small, *words.split())
    assert code == 0, capsys.readouterr().err
    assert [of(job) for job in jobs] == expected
    assert "choice(" not in str([job.overrides for job in jobs])


@pytest.mark.slow
def test_a_fixed_key_of_a_group_that_arms_or_trials_choose(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/sweeper: study, override /tune: none]\n"
        "sweep: {question: q, arms: {a: [posemb=rope_linear], b: [posemb=rope_yarn]}, seeds: 2}\nhydra: {mode: MULTIRUN}\n"
    )  # which has no claims and no scales
    code, (study,) = asked("sweeps=mine", "posemb.factor=4", *SMALL)
    assert code == 0
    study.check()
    assert [base.posemb["factor"] for base in study.bases] == [4.0, 4.0] and list(study.arms) == ["a", "b"]
    search = ("hydra/sweeper=optuna", "-m", "posemb.factor=4", *SMALL, f"results_dir={tmp_path}/r")
    for others, says in (("rope_yarn", ""), ("alibi", "posemb=alibi has no such key")):
        code, (found,) = asked(*search, f"posemb=rope_linear,{others}")
        assert code == 0 and [one.key for one in found.space] == ["posemb"]
        if says:
            with pytest.raises(ConfigError, match=says):
                found.check()
        else:
            assert found._without_space().posemb["factor"] == 4.0


def test_combinations_are_left_out_and_values_paired():
    code, jobs = asked(
        "-m", *SMALL, "norm=rms,layer", "activation=gelu,swiglu", "sweep.skip=norm=layer,activation=gelu"
    )
    assert code == 0
    assert [(j.choices["norm"], j.choices["activation"]) for j in jobs] == [
        ("rms", "gelu"),
        ("rms", "swiglu"),
        ("layer", "swiglu"),
    ]
    assert not any("sweep." in word for job in jobs for word in job.overrides)
    pairs = ("model.n_layers=1,2", "norm=rms,layer", "model.d_model=16,32", "optim.lr=1e-3,1e-2,3e-2")
    _, jobs = asked(
        "-m",
        *pairs,
        "sweep.zip=model.d_model,model.n_layers",
        "sweep.skip=optim.lr=0.001",
        "sweep.skip=norm=rms,optim.lr=0.03",
    )
    got = [(j.model.n_layers, j.choices["norm"], j.model.d_model, j.optim.lr) for j in jobs]
    rates = [("rms", 0.01), ("layer", 0.01), ("layer", 0.03)]
    assert got == [(n, norm, d, lr) for n, d in ((1, 16), (2, 32)) for norm, lr in rates]


def test_a_stored_grid_and_a_study_are_arranged_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "grid.yaml").write_text(
        "# @package _global_\nsweep:\n  question: q\n  zip: [[norm, seed]]\n  skip: [{norm: layer, activation: gelu}]\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {norm: 'rms,layer', seed: '0,1', activation: 'gelu,silu'}}}\n"
    )
    _, jobs = asked("sweeps=grid", *SMALL)
    got = [(j.choices["norm"], j.seed, j.choices["activation"]) for j in jobs]
    assert got == [("rms", 0, "gelu"), ("rms", 0, "silu"), ("layer", 1, "silu")]
    crossed = ("model.d_model=64,128", "model.n_layers=2,3", "sweep.zip=model.d_model,model.n_layers")
    code, (study,) = asked("sweeps=norm", *crossed, "sweep.skip=arm=rms,model.d_model=128")
    names = list(study.arms)
    assert code == 0 and names[0] == "rms, d_model 64, n_layers 2" and "rms, d_model 128, n_layers 3" not in names
    assert len(names) == 2 * len({name.split(",")[0] for name in names}) - 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("sweep.zip=norm,seed", "seed has not several values here; norm and activation has"),
        ("sweep.zip=norm,activation", "all need as many: norm has 2, activation has 3"),
        ("sweep.zip=norm", "pairs the values of two keys or more"),
        ("sweep.zip=norm,norm", "norm stands there twice"),
        ("sweep.skip=norm=none", "norm takes rms, layer here, and not none"),
        ("sweep.skip=seed=0", "seed has not several values here"),
        ("sweep.skip=norm", "name what is left out by its values"),
        ("sweep.skip=norm=rms sweep.skip=norm=layer", "leaves none of the 6 combinations"),
        ("hydra/sweeper=optuna sweep.zip=norm,activation", "a search draws its trials"),
    ],
)
def test_what_cannot_be_arranged_is_refused(words, says, capsys):
    assert says in told(capsys, "-m", "norm=rms,layer", "activation=gelu,silu,swiglu", *words.split())


def test_the_users_own_yaml_is_told_by_file_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("conf/norm", "sweeps"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "conf/norm/tab.yaml").write_text("_target_: a.B\nx:\n\ty: 1\n")
    (tmp_path / "sweeps/tab.yaml").write_text("# @package _global_\nsweep:\n\tquestion: q\n")
    (tmp_path / "sweeps/keys.yaml").write_text(
        "# @package _global_\nsweep: {question: q, skp: 1}\nhydra: {mode: MULTIRUN}\n"
    )
    assert asked()[0] == 0  # a file that nobody asks for harms nobody
    assert "conf/norm/tab.yaml, line 3" in told(capsys, "norm=tab")
    assert "sweeps/tab.yaml, line 3" in told(capsys, "sweeps=tab")
    assert "sweeps/tab.yaml, line 3" in told(capsys, "sweeps=tab", "scale=gpu")
    assert "sweep.skp: a grid has no such key" in told(capsys, "sweeps=keys")
    (tmp_path / "conf/norm/latin.yaml").write_bytes(b"# \xe9\n")
    assert "conf/norm/latin.yaml: not UTF-8" in told(capsys, "norm=latin")


def test_a_grid_that_is_refused_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "norm=foo" in told(capsys, "-m", "norm=rms,foo")
    check_writable(tmp_path / "a" / "b", keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: 3}}", "hydra.sweeper.params=3: give keys and values"),
        # as a list of options it was one run of both, mixed
        ("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {norm: [rms, layer]}}}", "a run has one option of norm"),
        ("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {norm: 'rms,'}}}", "norm=rms,: cannot be read"),
        ("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {norm: 3}}}", "norm=3: no such option"),
        ("# @package _global_\nhydra: {mode: NOTHING}", "expected one of [RUN, MULTIRUN] (hydra.mode)"),
        ("sweep: {question: x}", "begins with the line # @package _global_"),
    ],
)  # fmt: skip
def test_a_stored_sweep_that_is_not_right_is_told_as_words_would_be(tmp_path, monkeypatch, capsys, text, says):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "x.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    shown = told(capsys, "sweeps=x")
    assert says in shown and "object_type" not in shown


@pytest.mark.parametrize(
    ("code", "says"),
    [("def x(:", "SyntaxError: invalid syntax"), ("import sys; sys.exit(3)", "SystemExit: 3"), ("1 / 0", "ZeroDivisionError")],
)  # fmt: skip
def test_a_package_that_cannot_be_read_is_told_in_words(tmp_path, monkeypatch, capsys, code, says):
    (tmp_path / "conf/norm").mkdir(parents=True)
    (tmp_path / "conf/norm/broken.yaml").write_text("_target_: broken_parts.Norm\n")
    (tmp_path / "broken_parts.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    shown = told(capsys, *SMALL, "--trust", "broken_parts", "norm=broken")
    assert f"norm._target_=broken_parts.Norm cannot be imported: {says}" in shown


@pytest.mark.parametrize("key", ["hydra.run.dir", "++hydra.sweep.dir", "hydra.output_subdir"])
def test_a_folder_of_hydras_is_refused_with_ours(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    assert "write results_dir=PATH" in told(capsys, f"{key}=x")
    assert not list(tmp_path.iterdir())


def test_every_command_that_takes_overrides_takes_v(monkeypatch):
    monkeypatch.delenv(VERBOSE, raising=False)
    assert parse_flags(["-v", "norm=layer"]).overrides == ["norm=layer"]
    assert os.environ.pop(VERBOSE) == "1"


@pytest.mark.parametrize("code", [0, 2])
def test_a_command_that_is_refused_takes_its_empty_folders_back(tmp_path, code):
    """Whatever it is refused for after the check of --out; folders that were there, or hold something, stay."""
    (tmp_path / "before").mkdir()

    @exit_on_config_error
    def command() -> int:
        check_writable(tmp_path / "a" / "b", "--out")
        check_writable(tmp_path / "before", "--out")
        make_folder(tmp_path / "full" / "inner")
        (tmp_path / "full" / "file").write_text("kept")
        if code:
            raise ConfigError("no run is there")
        return 0

    assert command() == code
    assert sorted(path.name for path in tmp_path.iterdir()) == (["before", "full"] if code else ["a", "before", "full"])
    assert (tmp_path / "full/inner").exists() is (code == 0)


def test_compose_leaves_another_hydra_program_alone(tmp_path):
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    VersionBase.instance().version_base, before = None, VersionBase.instance().version_base
    try:
        with initialize_config_dir(version_base="1.2", config_dir=str(tmp_path)):
            state, version = GlobalHydra.instance().hydra, VersionBase.instance().version_base
            assert compose(["norm=layer"]).choices["norm"] == "layer"
            with pytest.raises(ConfigError):
                compose(["norm=batch"])
            assert GlobalHydra.instance().hydra is state and VersionBase.instance().version_base == version
            assert their_compose("theirs").a == 1
        assert not GlobalHydra.instance().is_initialized()
    finally:
        VersionBase.instance().version_base = before


def test_compose_in_threads():
    seeds: dict[int, int | None] = {}

    def one(seed):
        seeds[seed] = compose([f"seed={seed}", f"norm={('rms', 'layer')[seed % 2]}"]).seed

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seeds == {seed: seed for seed in range(4)}


def test_help_lists_groups_sweeps_and_options_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "conf/norm").mkdir(parents=True)
    (tmp_path / "conf/norm/mine.yaml").write_text("# Mine. norm=mine\n_target_: a.B\n")
    text = usage.help_text("plan")
    for part in (
        "preset ",
        "shrink ",
        "tune ",
        "hydra/launcher",
        "hydra/sweeper",
        "norm_position   ",
        "yours: mine",
        "[swiglu]",
    ):
        assert part in text, part
    assert "--all" in text and "--all" not in usage.help_text("train")
    assert max(map(len, text.splitlines())) <= 80


def test_the_beginning_of_an_id_finds_its_run(tmp_path):
    for name in ("6f7374e6aaaa", "6f7374e6bbbb", "0123456789ab"):
        (tmp_path / name).mkdir()
    assert run_path(f"{tmp_path}/01234") == tmp_path / "0123456789ab"
    assert run_path(f"{tmp_path}/0123456789ab") == tmp_path / "0123456789ab"
    assert run_path(f"{tmp_path}/ffff") == tmp_path / "ffff"
    with pytest.raises(argparse.ArgumentTypeError, match="6f7374e6aaaa, 6f7374e6bbbb"):
        run_path(f"{tmp_path}/6f73")


def test_runs_one_level_down_are_pointed_at_and_no_output_goes_among_runs(tmp_path, capsys):
    from lmablate.archive import main as archive
    from lmablate.report.command import main as report
    from lmablate.status import main as status

    run = tmp_path / "demo" / "results" / "0123456789ab"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    assert below(tmp_path / "demo") == [run.parent]
    assert report([str(tmp_path / "demo"), "--out", str(tmp_path / "out")]) == 2
    assert status([str(tmp_path / "demo")]) == 0
    assert archive(["save", str(tmp_path / "demo"), str(tmp_path / "kept")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("one level down") == 2 and "one level down" in captured.out
    with pytest.raises(ConfigError, match="runs are there; choose another folder"):
        check_writable(run.parent, "--out")


def test_a_command_that_succeeds_ends_with_the_next_one(capsys):
    for code in (0, 1):
        assert (
            front_door.then(lambda given, launcher, code=code: code, lambda given: ["report", given])(
                "my runs", "local"
            )
            == code
        )
    assert front_door.then(lambda given, launcher: 0, lambda given: ())("", "local") == 0
    assert capsys.readouterr().out == "\nnext: lmablate report 'my runs'\n"
