"""Write and read config.yaml of a run: its resolved configuration under a checksum, so that a changed file is refused."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import atomic_write, read_bounded
from lmablate.schema.run_config import SCHEMA_VERSION, RunConfig

MOST_BYTES = 4 << 20
HEAD = "# sha256 of what follows: "
LAUNCHER_VARIABLE = "LMABLATE_ASKED"  # environment variable of a launcher's processes: the launcher's name


def write_config(cfg: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, which ``read_config`` reads back."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(cfg.model_dump(), sort_keys=False)
    atomic_write(path, f"{HEAD}{_digest(text)}\n{text}")


def read_config(path: Path) -> RunConfig:
    """Return the RunConfig of a run directory. A file without a checksum is accepted. Raises ConfigError for a file
    that is damaged, was changed, or is of another release; FileNotFoundError if there is none."""
    import yaml
    from pydantic import ValidationError

    try:
        text = read_bounded(path, MOST_BYTES).decode()
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise ConfigError(f"{path}: {access.reason(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}): train the run again, which writes it anew") from None
    if text.startswith(HEAD):
        head, _, text = text.partition("\n")
        if head.removeprefix(HEAD) != _digest(text):
            raise ConfigError(
                f"{path}: damaged, or changed by hand: its checksum does not fit. The run's own command writes it anew"
            )
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version}, and this lmablate reads {SCHEMA_VERSION}: use the release that wrote it"
        )
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"{path}: {where}: {first['msg']} ({error.error_count()} faults in all)") from None


def launcher_name() -> str:
    """Return a name that tells this launcher from others that share a results directory."""
    return f"{platform.node()}-{os.getpid()}"


def request_path(run_dir: Path) -> Path:
    """Return the path of the configuration that this process was started with.

    Each launcher writes its own file, since runtime settings and paths may differ between two launchers of the same
    run. Only the launcher that trains it writes config.yaml.
    """
    name = os.environ.get(LAUNCHER_VARIABLE)
    own = run_dir / f".asked-{name}.yaml"
    return own if name and access.there(own) else run_dir / "config.yaml"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
