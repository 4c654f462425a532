"""The stopping rule of a study's interim looks."""

from __future__ import annotations

from lmablate.stats.sequential import look_rule
from lmablate.sweeper.looks import StoppingRule, never
from lmablate.sweeper.settings import StudySettings, expand_arms


def rule_of(settings: StudySettings) -> StoppingRule:
    """Return the stopping rule of a study, at a two-sided 5 % for all its arms together.

    Without `sweep.looks` nothing stops."""
    if not settings.looks:
        return never

    return look_rule(settings.look_rule or "obrien_fleming", comparisons=max(1, len(expand_arms(settings)) - 1))
