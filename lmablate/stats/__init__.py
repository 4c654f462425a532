"""Statistics of ablations: paired comparisons, exact tests, equivalence, families, interim looks, and sample sizes.

scipy is imported inside functions, so that reading results does not load it.
"""

from lmablate.stats.estimates import interval
from lmablate.stats.pairs import comparisons, paired_differences

__all__ = ["comparisons", "interval", "paired_differences"]
