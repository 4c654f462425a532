"""Compare two finished runs on the same tokens: where does one predict better than the other?

``lmablate compare RUN_A RUN_B [--data FILE] [--examples N] [--out DIR]``
"""
