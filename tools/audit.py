"""Known vulnerabilities of the pinned packages: ``python tools/audit.py`` (part of `make lint`).

pip-audit asks a public database for every line of constraints.txt. Where that cannot be reached, or pip-audit is not
installed, the audit is skipped with a word; a finding is an error.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

PINNED = Path(__file__).resolve().parent.parent / "constraints.txt"
SECONDS = 3.0  # to reach the database
MOST_SECONDS = 300  # for the whole audit


def unreachable() -> str:
    """Why there can be no audit here; empty if there can."""
    try:
        from pip_audit._service.osv import OsvService
    except ImportError:
        return "pip-audit is not installed (pip install -c constraints.txt pip-audit)"
    host = urlsplit(getattr(OsvService, "DEFAULT_OSV_URL", "")).hostname
    if host is None:
        return "this pip-audit does not say where its database is"
    try:
        socket.create_connection((host, 443), timeout=SECONDS).close()
    except OSError as error:
        return f"its database cannot be reached ({error})"
    return ""


def main() -> int:
    if why := unreachable():
        print(f"audit of {PINNED.name} skipped: {why}")
        return 0
    words = ["-r", str(PINNED), "--no-deps", "--disable-pip", "-s", "osv", "--progress-spinner", "off"]
    try:
        return subprocess.run([sys.executable, "-m", "pip_audit", *words], timeout=MOST_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"audit of {PINNED.name} skipped: no answer within {MOST_SECONDS} s")
        return 0


if __name__ == "__main__":
    sys.exit(main())
