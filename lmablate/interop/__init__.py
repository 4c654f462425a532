"""Exchange models with Hugging Face transformers: ``from_hf(hf_model)`` and ``to_hf(model)``.

ELECTRA is two models there: ``from_electra(generator, discriminator)`` and ``to_electra(model)`` in lmablate.interop.electra.

``lmablate export RUN_DIR --out DIR`` writes a trained run as a folder that ``from_pretrained`` loads.
"""

from lmablate.interop.convert import from_hf, to_hf

__all__ = ["from_hf", "to_hf"]
