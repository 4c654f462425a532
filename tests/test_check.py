"""`lmablate check`: what holds is said to hold, and each fault is named."""

import broken
import pytest

from lmablate.check import CHECKS, FAILS, Subject
from lmablate.check.__main__ import main
from lmablate.core.errors import ConfigError
from lmablate.model import components

NORM, ATTENTION = "eps: 1.0e-6\n", "scale: null\n"
# Class, axis, keys of its YAML, the check that must name the fault, and its words.
FAULTS = [
    ("Ahead", "attention", ATTENTION, "causal", "the future leaks: position 6 is reached by token 7"),
    ("AheadByChoice", "attention", ATTENTION, "causal", "the future leaks: other tokens after position"),
    ("DeadKey", "norm", NORM + "strength: 1.0\n", "keys", "norm.strength accepts 30.0, 3.0, 0.5, 0.3 and changes nothing"),
    ("Chance", "norm", NORM, "no chance", "two passes in training differ by"),
    ("OneStorage", "norm", NORM, "layers apart", "blocks.1.ffn.norm.gain.weight is the memory of blocks.0."),
    ("Stale", "posemb", "", "no memory", "after passes of other lengths"),
    ("Drawn", "norm", NORM, "draws", "gain.weight has other numbers in a second build"),
    ("InPlace", "norm", NORM, "inputs kept", "broken.InPlace changes what it is given"),
    ("Half", "norm", NORM, "dtypes kept", "broken.Half returns bfloat16 for float32"),
    ("Squeezed", "attention", ATTENTION, "lengths", "a text of 1 gives logits of the shape [2]"),
    ("Batch", "norm", NORM, "rows apart", "logits in a batch and alone differ by"),
]  # fmt: skip

# Faults that no run of which is composed, with the words of the refusal.
REFUSED = [
    ("Miscounted", "attention", ATTENTION, "(broken.Miscounted) says 4,096 parameters of one and builds 5,120"),
    ("OneForAll", "norm", NORM, "layers that share a weight"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with an option a fault."""
    place = tmp_path_factory.mktemp("broken")
    for name, axis, keys, *_ in FAULTS + REFUSED:
        (place / "conf" / axis).mkdir(parents=True, exist_ok=True)
        text = f"# A fault. {axis}={name.lower()}\n_target_: broken.{name}\n{keys}"
        (place / "conf" / axis / f"{name.lower()}.yaml").write_text(text)
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(components, "_trusted", {"broken"})
    broken.OneForAll.gains.clear()
    broken.OneStorage.gains.clear()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "axis", "keys", "check", "words"),
    [pytest.param(*row, marks=pytest.mark.slow if row[3] == "keys" else (), id=row[0]) for row in FAULTS],
)  # of keys: test_keys.py
def test_each_fault_is_named(name, axis, keys, check, words):
    finding = CHECKS[check](Subject(axis, name.lower()))
    assert finding.status == FAILS
    assert words in finding.note


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "axis", "keys", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_wrong_count_is_refused_before_anything_is_checked(name, axis, keys, words, capsys):
    assert main([f"{axis}={name.lower()}"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "axis", "keys", "check", "words"), FAULTS, ids=[row[0] for row in FAULTS])
def test_the_whole_command_names_each_fault(name, axis, keys, check, words, capsys):
    assert main([f"{axis}={name.lower()}"]) == 1
    assert f"\n{check}: " in capsys.readouterr().out


def test_the_table_says_what_fails_where_what_it_costs_and_how_to_mend_it(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["norm=inplace", "--only", "inputs kept,draws"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("norm=inplace: broken.InPlace (")
    assert "inputs kept   does not hold see below\n" in out
    assert "draws         holds\n" in out
    for label in ("where", "cost", "mend"):
        assert f"\n  {label:<6}" in out
    assert "1 of 2 checks do not hold" in out
    assert max(map(len, out.splitlines()[2:])) <= 80
    assert main(["norm=inplace", "--only", "draws"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.d_model=64"], "no option to check: name one of an axis"),
        (["norm=rms,layer"], "norm=rms,layer: check takes one option at a time"),
        (["norm=rsm"], "norm=rsm: no such option, did you mean rms?"),
        (["norm=rms", "--only", "speed"], "--only speed: no such check; there are builds"),
    ],
)
def test_what_cannot_be_checked_exits_2(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


CONTRACTS = [
    ("attention", "class Mine(nn.Module):\n def __init__(self, d_model, n_heads): pass", "no subclass of Attention"),
    ("norm", "class Mine(nn.Module):\n def __init__(self, *, eps): pass", "takes 0 positional arguments and is given d_model"),
    ("norm", "class Mine(nn.Module):\n def __init__(self, d_model, eps): pass", "needs eps, which nobody gives"),
    ("block_layout", "class Mine(nn.Module):\n def __init__(self, a, f, place): pass", "has no n_branches"),
    ("norm_position", "class Mine(nn.Module):\n pass", "no subclass of NormPosition"),
    ("posemb", "class Mine(nn.Module):\n pass", "no subclass of PosEmb"),
    ("ffn", "class Mine(nn.Module):\n pass", "no subclass of FFNOption"),
    ("norm", "class Mine(nn.Module):\n def __init__(self, d): pass\n def forward(self, x, positions): pass", "forward needs positions"),
]  # fmt: skip


@pytest.mark.parametrize(("axis", "code", "says"), CONTRACTS)
def test_a_class_that_is_no_option_is_refused_with_the_contract(axis, code, says, monkeypatch):
    scope = {"__name__": "mine"}
    exec("from torch import nn\n" + code, scope)  # noqa: S102 - of this file
    monkeypatch.setattr(components, "_import", lambda path, place: scope["Mine"])
    with pytest.raises(ConfigError, match=r"docs/extend.md") as refused:
        components.resolve({"_target_": "mine.Mine"}, axis)
    assert says in str(refused.value)
    assert f"an option of {axis} is a subclass of " in str(refused.value)
