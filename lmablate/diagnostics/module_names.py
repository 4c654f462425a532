"""Names of a model's places, as in the names of the numbers: ``embed``, ``layer03/attn``, ``head``.

They follow from the class of a module, never from the name of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lmablate.model.attention import Attention
from lmablate.model.ffn import FeedForward
from lmablate.model.primitives import Bias, Gain
from lmablate.model.transformer import TransformerLM

Measurements = dict[str, Tensor]  # name without prefix -> number, perhaps still on the device


def layers(model: TransformerLM) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``layer00`` and its block, and so on; the names sort by depth."""
    digits = max(2, len(str(len(model.blocks) - 1)))
    for i, block in enumerate(model.blocks):
        yield f"layer{i:0{digits}}", block


def branches(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``attn`` and ``ffn`` of a block, inside any wrappers."""
    inside: set[int] = set()  # modules of a branch, which may contain networks of its own
    for module in block.modules():
        if isinstance(module, Attention):
            yield "attn", module
        elif isinstance(module, FeedForward) and id(module) not in inside:
            inside |= {id(part) for part in module.modules()}
            yield "ffn", module


def other_parts(model: TransformerLM) -> dict[str, nn.Module | None]:
    """Return the parts outside the main stack, each as one place."""
    return {
        "segments": model.segments,
        "embed_map": model.embedding_map,
        "encoder": model.encoder,
        "generator": model.generator,
        "readout": model.readout,
    }


def groups(model: TransformerLM) -> dict[str, list[nn.Parameter]]:
    """Return every parameter once, by its place; empty places are omitted.

    Places are ``embed``, ``posemb``, ``layer03/attn``, ``layer03/ffn``, ``layer03/norm`` (the gains and biases of the block's norms),
    ``final_norm``, ``head``. A tied head's table is ``embed``.
    """
    places: list[tuple[str, list[nn.Parameter]]] = [
        ("embed", list(model.embedding.parameters())),
        ("embed_norm", [] if model.embedding_norm is None else list(model.embedding_norm.parameters())),
        ("posemb", list(model.posemb.parameters())),
        *((name, [] if part is None else list(part.parameters())) for name, part in other_parts(model).items()),
    ]
    for layer, block in layers(model):
        inside = [(f"{layer}/{word}", list(branch.parameters())) for word, branch in branches(block)]
        taken = {id(p) for _, some in inside for p in some}
        of_norms = {id(p) for m in block.modules() if isinstance(m, Gain | Bias) for p in m.parameters()} - taken
        rest = [p for p in block.parameters() if id(p) not in taken]
        places += inside
        places.append((f"{layer}/norm", [p for p in rest if id(p) in of_norms]))
        places.append((f"{layer}/other", [p for p in rest if id(p) not in of_norms]))
    places += [("final_norm", list(model.final_norm.parameters())), ("head", list(model.head.parameters()))]
    return {place: some for place, some in places if some}
