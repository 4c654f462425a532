"""The lecture's claims as data, and the verdict that finished runs give on each.

`*.yaml` hold the claims, `data.py` reads them, `evidence.py` finds the runs, `verdict.py` judges.
"""

from lmablate.claims.data import Claim, load_claims
from lmablate.claims.verdict import judge

__all__ = ["Claim", "judge", "load_claims"]
