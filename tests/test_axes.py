"""Every option of every axis, listed from conf/, through the checks that `lmablate check` runs on a user's own."""

from functools import cache

import pytest
from tiny import option_cases

from lmablate.check import CHECKS, FAILS, PASSES, RUNS, SKIPPED, Subject

subject = cache(Subject)
# The only options that a question may be left out for: their shapes, or what a token meets, hang on data.
MAY_NOT_BE_ASKED = {"flops": "shapes_depend_on_data", "decoding": "reads_whole_texts"}


def findings(one, checks):
    """What does not hold, by check."""
    found = {each.name: each(one) for each in checks}
    for name, mark in MAY_NOT_BE_ASKED.items():
        if name in found and found[name].status == SKIPPED:
            assert any(getattr(module, mark, False) for module in one.model().modules()), found[name].note
    return {name: finding.note for name, finding in found.items() if finding.status == FAILS}


@pytest.mark.parametrize(("axis", "option"), option_cases(), ids=lambda word: word)
def test_every_pass_of_every_option(axis, option):
    one = subject(axis, option)
    assert one.cfg.choices[axis] == option
    assert findings(one, PASSES) == {}


@pytest.mark.parametrize("check", [each.name for each in RUNS])
@pytest.mark.parametrize(("axis", "option"), option_cases(), ids=lambda word: word)
def test_every_run_of_every_option(axis, option, check):
    assert findings(subject(axis, option), [CHECKS[check]]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "option"), option_cases(), ids=lambda word: word)
def test_every_option_is_exported_and_compiled_or_says_why_not(axis, option):
    assert findings(subject(axis, option), [CHECKS["export"], CHECKS["compile"]]) == {}
