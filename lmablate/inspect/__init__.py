"""Inspect a model without an ablation: at initialisation, the time of a training step, and decoding."""
