"""Axis ``ffn``: the feed-forward branch of a layer, one network for every token or a mixture of experts.

An option is built from its YAML and returns the branch of each layer and its cost (base.py). `dense.py` has the networks, `routing.py`
selects the experts of a token, `experts.py` and `grouped.py` compute them, `balance.py` balances their load, `mixture.py` combines
these, and ``conf/ffn`` names classes of `token_choice.py` and `options.py`.

A new option needs no entry here: its YAML names its module. The names below serve imports, and stored configurations, which name this
package.
"""

from lmablate.model.ffn.base import FeedForward, FFNOption, FFNShape
from lmablate.model.ffn.dense import Dense, GatedFFN, PlainFFN, network
from lmablate.model.ffn.mixture import ChosenByExperts, ChosenByTokens, Mixture
from lmablate.model.ffn.options import ExpertChoice, HashRouting
from lmablate.model.ffn.token_choice import TokenChoice

__all__ = [
    "ChosenByExperts",
    "ChosenByTokens",
    "Dense",
    "ExpertChoice",
    "FFNOption",
    "FFNShape",
    "FeedForward",
    "GatedFFN",
    "HashRouting",
    "Mixture",
    "PlainFFN",
    "TokenChoice",
    "network",
]
