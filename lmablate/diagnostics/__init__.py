"""Looking into a model while it trains (``diagnostics=standard``): gradients, updates, activations, attention, logits, gains,
the load of experts.

One file a family of measurement; `probe.py` takes them all at the steps asked for, `settings.py` says what was asked for,
`spikes.py` scores a finished history. Nothing here changes a number of the training, and nothing here is hashed. A number
is named by its place, ``diag/layer03/attn/grad_norm``, and stands in history.jsonl beside the loss.
"""
