"""Read the wandb configuration of the user (mode, server, key) without importing wandb and without the network."""

from __future__ import annotations

import configparser
import logging
import netrc
import os
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from lmablate.core.console import detail
from lmablate.core.errors import ConfigError

log = logging.getLogger(__name__)
MODES = ("auto", "online", "offline", "disabled")
FORBIDDEN, LONGEST = "/\\#?%:", 128  # characters of a project's name; length of any name
# wandb 0.31 calls its public server by the first name, and takes a key that is stored under the second as well.
_PUBLIC_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")


def resolve_mode(mode: str) -> str:
    """Return ``online``, ``offline`` or ``disabled`` for a value of runtime.wandb, without wandb or the network.

    ``auto`` follows WANDB_MODE and wandb's settings files. Otherwise it is online if a key is configured, and off if
    not, with a hint shown once. Raises ConfigError for any other value.
    """
    if mode not in MODES:
        raise ConfigError(f"runtime.wandb={mode}: unknown; use one of {', '.join(MODES)}")
    return configured_mode() if mode == "auto" else mode


def configured_mode() -> str:
    """Return ``offline`` or ``disabled`` if WANDB_MODE or wandb's settings say so, else ``online`` if a key is configured."""
    settings = _settings()
    mode = settings.get("mode", "online")
    if mode in ("offline", "dryrun"):
        return "offline"
    if mode == "disabled":
        return "disabled"
    if _has_key(settings):
        return "online"
    _hint()
    return "disabled"


@cache
def _hint() -> None:
    """Log the hint once a process."""
    log.log(detail(), "wandb is off: no key configured (wandb login, or runtime.wandb=offline to keep a local copy)")


def check_names(project: str, group: str | None) -> None:
    """Raise ConfigError for names that wandb would refuse when the run begins; the run would then go on without wandb."""
    if bad := [sign for sign in FORBIDDEN if sign in project]:
        raise ConfigError(
            f"runtime.wandb_project={project}: wandb takes no {' '.join(bad)} in the name of a project; the team stands in "
            "WANDB_ENTITY, or leave wandb off with runtime.wandb=disabled"
        )
    for key, name in (("runtime.wandb_project", project), ("the name of the sweep", group or "-")):
        if not 1 <= len(name) <= LONGEST:
            raise ConfigError(
                f"{key}: wandb takes names of 1 to {LONGEST} characters, and this one has {len(name)}: {name[:40]}"
            )


def _settings() -> dict[str, str]:
    """Return wandb's settings; later ones win: the user's file, that of the current folder, the environment."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    here = Path(".wandb") if Path(".wandb").exists() else Path("wandb")
    settings: dict[str, str] = {}
    for path in (Path(folder).expanduser() / "settings", here / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path)
            settings |= dict(parser.items("default"))
        except (OSError, UnicodeDecodeError, configparser.Error):  # an unreadable file counts as missing
            continue
    for key in ("mode", "base_url", "api_key", "identity_token_file"):
        if value := os.environ.get(f"WANDB_{key.upper()}"):
            settings[key] = value
    return settings


def _has_key(settings: dict[str, str]) -> bool:
    if settings.get("api_key") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(settings.get("base_url") or f"https://{_PUBLIC_HOSTS[0]}").netloc
    try:
        known = netrc.netrc(_netrc_path())
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
    entries = (known.authenticators(name) for name in (_PUBLIC_HOSTS if host == _PUBLIC_HOSTS[0] else (host,)))
    return any(entry is not None and bool(entry[2]) for entry in entries)


def _netrc_path() -> Path:
    """Return the path that wandb reads: $NETRC, else ~/.netrc, else ~/_netrc."""
    if explicit := os.environ.get("NETRC"):
        return Path(explicit).expanduser()
    usual, windows = Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()
    return windows if windows.exists() and not usual.exists() else usual
