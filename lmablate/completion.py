"""Print what bash or zsh needs to complete commands and overrides.

  eval "$(lmablate completion bash)"     in ~/.bashrc
  eval "$(lmablate completion zsh)"      in ~/.zshrc, after compinit

  lmablate train attention=<TAB>         then lists the options of attention

Overrides are completed by Hydra: the groups, options and keys of the configuration that the line makes so far.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lmablate.core.commands import command_parser
from lmablate.core.errors import exit_on_config_error

# By shell. Each asks `lmablate` what may follow the line up to the cursor (core/commands.py). bash replaces only what stands
# after the last of its word breaks, which "=" is one of.
SCRIPTS = {
    "bash": r"""
_lmablate() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word before
    COMPREPLY=($(LMABLATE_COMPLETE="$line" "$1" 2>/dev/null))
    word="${line##*[[:space:]]}"
    before="${word%"$2"}"
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o nospace -o default -F _lmablate lmablate
""",
    "zsh": r"""
_lmablate() {
    local -a found
    found=("${(@f)$(LMABLATE_COMPLETE="${(j: :)words[1,CURRENT-1]} $PREFIX" $words[1] 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -Q -S '' -- $found; else _files; fi
}
compdef _lmablate lmablate
""",
}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print the script for a shell. Return the exit code."""
    parser = command_parser("completion")
    parser.add_argument("shell", choices=SCRIPTS, help="the shell that reads it")
    print(SCRIPTS[parser.parse_args(argv).shell].strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
