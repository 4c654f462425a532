"""Train four small models, six seeds each, and write a report.

  lmablate demo
  lmablate demo results_dir=elsewhere

Minutes on a laptop's processor. Overrides are those of lmablate train. Given again, it goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lmablate.cli.front_door import main as front_door
from lmablate.cli.usage import help_text
from lmablate.core.errors import exit_on_config_error
from lmablate.report.command import main as report
from lmablate.train import train

RESULTS, PAGE = Path("demo/results"), Path("demo/report")
# Six short runs an arm decide more than four of twice the length, and need no compiler.
SIZE = ("scale=laptop", "model=pico", "trainer.tokens_per_param=10", "seed=range(6)")
QUIET = ("runtime.wandb=disabled", "runtime.evaluations=4")
NEXT = """
next, one thing of your own, which four seeds can decide in some minutes:
  lmablate train -m posemb=rope,none seed=0,1,2,3 scale=laptop model=pico
  lmablate report results
"""


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(args):
        print(help_text("demo"))
        return 0
    args = ["sweeps=norm_and_activation", *SIZE, *QUIET, f"results_dir={RESULTS}", *args]
    print("lmablate train " + " ".join(args), flush=True)
    if code := front_door("train", train, args):
        return code
    given = [word.removeprefix("results_dir=") for word in args if word.startswith("results_dir=")]
    print(f"lmablate report {given[-1]} --out {PAGE}", flush=True)
    code = report([given[-1], "--out", str(PAGE)])
    if not code:
        print(NEXT, end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
