"""The rule by which a study's early looks stop an arm."""

from __future__ import annotations

from lmablate.stats.sequential import look_rule
from lmablate.sweeper.looks import Rule, never
from lmablate.sweeper.settings import StudySettings, expand_arms


def rule_of(settings: StudySettings) -> Rule:
    """The rule of a study with `sweep.looks`, at a two-sided 5 % for all its arms together; without looks nothing stops."""
    if not settings.looks:
        return never

    return look_rule(settings.look_rule or "obrien_fleming", comparisons=max(1, len(expand_arms(settings)) - 1))
