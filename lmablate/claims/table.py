"""Write verdicts as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("study", "scope", "claim", "verdict", "joint_verdict", "test", "test_verdict", "test_joint_verdict", "where"),
    *("effect", "low", "high", "unit", "margin", "n", "correlation", "p_holm", "p_claim_holm", "diverged_plus"),
    *("diverged_minus", "unpaired", "more_seeds", "tokens_per_param", "short_run", "published_effect", "reason"),
)


def verdict_table(claims: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per test of each claim (one row without tests), with the first published effect."""
    import pandas as pd

    rows = []
    for claim in claims:
        published = next((entry["effect"] for entry in claim["published"] if entry["effect"] is not None), None)
        about = {"claim": claim["id"], "published_effect": published, "joint_verdict": _joint(claim)}
        about |= {key: claim[key] for key in ("study", "scope", "verdict")}
        for test in claim["tests"]:
            low, high = test["interval_95"] or (None, None)
            same = (
                *("effect", "unit", "margin", "n", "correlation", "p_holm", "p_claim_holm", "unpaired", "more_seeds"),
                *("tokens_per_param", "short_run"),
            )
            rows.append(
                about | {key: test[key] for key in same}
                | {"test": test["says"], "test_verdict": test["verdict"], "test_joint_verdict": _joint(test), "low": low, "high": high}
                | {"where": " ".join(f"{key}={value}" for key, value in test["where"].items())}
                | {f"diverged_{side}": count[0] for side, count in test["diverged"].items()}
                | {"reason": "; ".join([test["reason"], *test["notes"]])}
            )  # fmt: skip
        if not claim["tests"]:
            rows.append({**about, "reason": claim["reason"]})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _joint(row: dict[str, Any]) -> str | None:
    return row["joint"] and row["joint"]["verdict"]
