"""Which mode the wandb mirror runs in, and what its runs are called."""

import logging
from pathlib import Path

import pytest
from tracked import ID, KEY, home_without_wandb

from lmablate.core.errors import ConfigError
from lmablate.runs.tracking import account
from lmablate.runs.tracking.account import resolve_mode
from lmablate.runs.tracking.client import flatten, short_name


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    account._hint.cache_clear()
    return home_without_wandb(tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_plain_word_is_taken_as_it_is(mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline" if mode == "disabled" else "disabled")
    assert resolve_mode(mode) == mode


def test_an_unknown_word_names_the_key_and_the_words():
    with pytest.raises(ConfigError, match=r"runtime\.wandb=yes.*auto, online, offline, disabled"):
        resolve_mode("yes")


def test_auto_without_a_key_is_off_and_says_so_once(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LMABLATE_VERBOSE", "1")  # -v
    assert [resolve_mode("auto"), resolve_mode("auto")] == ["disabled", "disabled"]
    assert [entry.getMessage() for entry in caplog.records] == [
        "wandb is off: no key configured (wandb login, or runtime.wandb=offline to keep a local copy)"
    ]


NETRC = "machine {} login user password " + KEY
SETTINGS = "[default]\n{}\n"
KEYS = {
    "env": {"WANDB_API_KEY": KEY},
    "env, mode online": {"WANDB_API_KEY": KEY, "WANDB_MODE": "online"},
    "token file": {"WANDB_IDENTITY_TOKEN_FILE": "token"},
    "netrc": {"~/.netrc": NETRC.format("127.0.0.1:9")},
    "other server": {"~/.netrc": NETRC.format("wandb.lab.example"), "WANDB_BASE_URL": "https://wandb.lab.example"},
    "netrc of windows": {"~/_netrc": NETRC.format("127.0.0.1:9")},
    "netrc elsewhere": {"~/keys": NETRC.format("127.0.0.1:9"), "NETRC": "~/keys"},
    "netrc, any machine": {"~/.netrc": f"default login user password {KEY}"},
    "public server": {"~/.netrc": NETRC.format("api.forge.coreweave.com"), "WANDB_BASE_URL": ""},
    "public server, old name": {"~/.netrc": NETRC.format("api.wandb.ai"), "WANDB_BASE_URL": ""},
    "settings of the user": {"~/config/settings": SETTINGS.format(f"api_key = {KEY}")},
    "settings of the folder": {"~/work/wandb/settings": SETTINGS.format(f"api_key = {KEY}")},
    "server in the settings": {
        "~/config/settings": SETTINGS.format("base_url = https://wandb.lab.example"),
        "~/.netrc": NETRC.format("wandb.lab.example"),
        "WANDB_BASE_URL": "",
    },
}
NO_KEYS = {
    "empty": {"WANDB_API_KEY": ""},
    "key of another server": {"~/.netrc": NETRC.format("api.wandb.ai")},
    "no password": {"~/.netrc": "machine 127.0.0.1:9 login user"},
    "damaged netrc": {"~/.netrc": "machine"},
    "damaged settings": {"~/config/settings": "api_key"},
}
MODES = {
    "disabled": {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"},
    "offline": {"WANDB_MODE": "offline"},
    "dryrun": {"WANDB_MODE": "dryrun"},
    "wandb offline": {"WANDB_API_KEY": KEY, "~/work/wandb/settings": SETTINGS.format("mode = offline")},
}
CASES = {
    **{name: (setting, "online") for name, setting in KEYS.items()},
    **{name: (setting, "disabled") for name, setting in NO_KEYS.items()},
    **{name: (setting, "disabled" if name == "disabled" else "offline") for name, setting in MODES.items()},
}


def prepare(setting, home, monkeypatch):
    for name, value in setting.items():
        if name.startswith("~/"):
            path = home / name[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", CASES)
def test_auto_finds_what_wandb_would_find(name, home, monkeypatch):
    setting, mode = CASES[name]
    prepare(setting, home, monkeypatch)
    assert resolve_mode("auto") == mode


def test_flatten():
    nested = {"a": 1, "b": {"c": None, "d": {"e": "x"}}, "f": [0.9, 0.95], "g": {}, "h": Path("x")}
    assert flatten(nested) == {"a": 1, "b.c": None, "b.d.e": "x", "f": "[0.9, 0.95]", "h": "x"}


def test_short_name_says_what_differs():
    defaults = {"norm": "rms", "activation": "swiglu", "posemb": "rope"}
    assert short_name(defaults, defaults, ID) == f"baseline-{ID}"
    assert short_name({**defaults, "norm": "layer", "activation": "gelu"}, defaults, ID) == f"layer-gelu-{ID}"
    assert short_name({**defaults, "posemb": "none"}, defaults, ID) == f"no_posemb-{ID}"
