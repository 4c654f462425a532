"""Scaling: laws of the loss over size, text and compute, the worth of an arm as compute, and forecasts of larger runs.

Everything here works on numbers and frames; `lmablate scaling` is in lmablate/cli/scaling.py.
"""
