"""The lecture's claims as data, and verdicts on them from finished runs.

`*.yaml` hold the claims, `claim.py` reads them. `rows.py`, `predicates.py` and `evidence.py` find the runs, `measure.py`
estimates, `verdict.py` judges, and `report_verdicts.py` does so for a results directory.
"""

from lmablate.claims.claim import Claim, load_claims
from lmablate.claims.verdict import judge

__all__ = ["Claim", "judge", "load_claims"]
