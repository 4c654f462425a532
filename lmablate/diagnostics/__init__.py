"""Diagnostics of a model in training (``diagnostics=standard``): gradients, updates, activations, attention, logits, gains, and the
load of experts.

Each module has one kind of measurement; `probe.py` runs them at the chosen steps, `schema/diagnostics.py` has the settings, and
`spikes.py` scores a finished history. Diagnostics change no number of the training and are not hashed. A number is named by its place,
``diag/layer03/attn/grad_norm``, and is stored in history.jsonl next to the loss.
"""
