"""The supported classes of transformers, in the order in which ``to_hf`` tries them."""

from lmablate.interop.families import deepseek, encoders, experts, fused, gpt, gpt_rotary, llama, two_stacks
from lmablate.interop.families.base import Family, differences, idle_weights

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *gpt.FAMILIES,
    *gpt_rotary.FAMILIES,
    *fused.FAMILIES,
    *experts.FAMILIES,
    *deepseek.FAMILIES,
    *encoders.FAMILIES,
    *two_stacks.FAMILIES,
)

__all__ = ["FAMILIES", "Family", "differences", "idle_weights"]
