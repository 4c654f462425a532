"""The tests of the project's own options, for any option: ``lmablate check attention=mine``.

A `Subject` is an option in a small model on a small text (small.py). A `Check` tests one property of it and returns a `Finding`.
"""

from lmablate.check.elsewhere import compiles, export
from lmablate.check.finding import FAILS, HOLDS, SKIPPED, Check, Finding
from lmablate.check.keys import keys
from lmablate.check.outputs import (
    builds,
    dtypes_kept,
    inputs_kept,
    lead_axes,
    lengths,
    no_chance,
    no_memory,
    rows_apart,
)
from lmablate.check.reading import bf16, causal, decoding, objectives, two_stacks
from lmablate.check.subject import Subject, subject_of
from lmablate.check.training import gang, resume, siblings
from lmablate.check.weights import counts, draws, first_scale, flops, gradients, layers_apart

# Checks of one forward or backward pass, and checks that train.
PASSES = (
    *(builds, counts, flops, first_scale, draws, layers_apart, gradients, no_chance, no_memory, inputs_kept, dtypes_kept),
    *(lengths, rows_apart, lead_axes, causal, objectives, two_stacks, bf16, decoding),
)  # fmt: skip
RUNS = (resume, gang, siblings, keys)
CHECKS = {each.name: each for each in (*PASSES, *RUNS, export, compiles)}

__all__ = ["CHECKS", "FAILS", "HOLDS", "PASSES", "RUNS", "SKIPPED", "Check", "Finding", "Subject", "subject_of"]
