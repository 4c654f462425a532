"""The lecture's claims as data, and the verdict that finished runs give on each.

`*.yaml` hold the claims, `data.py` reads them, `rows.py`, `matching.py` and `evidence.py` find the runs, `measure.py` estimates,
`verdict.py` judges, `reading.py` does it for a results directory.
"""

from lmablate.claims.claim import Claim, load_claims
from lmablate.claims.verdict import judge

__all__ = ["Claim", "judge", "load_claims"]
