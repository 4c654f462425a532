"""Statistics of ablations: paired comparisons, exact tests, equivalence, families, looks, and how many seeds it takes.

Everything from scipy is imported where it is used: reading results does not load it.
"""

from lmablate.stats.estimates import interval
from lmablate.stats.pairs import comparisons, paired_differences

__all__ = ["comparisons", "interval", "paired_differences"]
