"""Write a finished run as a folder that transformers loads.

  lmablate export results/0123456789ab --out my-model
  lmablate export results/0123456789ab --out my-model --push user/name

AutoTokenizer reads it and, by the run's objective, AutoModelForCausalLM, AutoModelForMaskedLM or AutoModelForSeq2SeqLM.
Of ELECTRA it holds two folders, generator and discriminator. Its logits are compared with the run's before it appears.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from lmablate.cli.arguments import add_trust
from lmablate.cli.front_door import trust_packages
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.paths import given_path
from lmablate.runs.run_directory import run_path


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Export one run, and upload it if ``--push`` is given. Return the exit code."""
    parser = command_parser("export")
    parser.add_argument("run_dir", type=run_path, metavar="RUN_DIR", help="the folder of a run, RESULTS_DIR/<run_id>")
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--push", metavar="USER/NAME", help="upload it to the Hugging Face Hub too, as a private model")
    parser.add_argument("--public", action="store_true", help="with --push: as a public model")
    add_trust(parser)
    args = parser.parse_args(argv)
    trust_packages(args.trust)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if args.public and not args.push:
        raise ConfigError("--public says how to push, and --push is not given: add --push USER/NAME, or leave it out")
    from lmablate.interop.export import check_name, export_run, push
    from lmablate.interop.saved import library

    if args.push:
        check_name(args.push)
    library().utils.logging.disable_progress_bar()
    done = export_run(args.run_dir, args.out)
    print(f"{done.folder}: {done.architecture}, logits within {done.difference:.1e} of the run's")
    if args.push:
        print(push(done.folder, args.push, private=not args.public))
    return 0


if __name__ == "__main__":
    sys.exit(main())
