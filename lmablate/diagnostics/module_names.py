"""Where things stand in a model, in the words of the numbers' names: ``embed``, ``layer03/attn``, ``head``.

Told by what a module is, never by how a parameter is called.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lmablate.model.attention import Attention
from lmablate.model.ffn import FeedForward
from lmablate.model.primitives import Bias, Gain
from lmablate.model.transformer import TransformerLM

Found = dict[str, Tensor]  # a name without its prefix, and a number that may still be on its way from the device


def layers(model: TransformerLM) -> Iterator[tuple[str, nn.Module]]:
    """``layer00`` and its block, and so on; the names sort by depth."""
    digits = max(2, len(str(len(model.blocks) - 1)))
    for i, block in enumerate(model.blocks):
        yield f"layer{i:0{digits}}", block


def branches(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``attn`` and ``ffn`` of a block, whatever wraps them."""
    inside: set[int] = set()  # of a branch, which may hold networks of its own
    for module in block.modules():
        if isinstance(module, Attention):
            yield "attn", module
        elif isinstance(module, FeedForward) and id(module) not in inside:
            inside |= {id(part) for part in module.modules()}
            yield "ffn", module


def beside(model: TransformerLM) -> dict[str, nn.Module | None]:
    """What stands beside the layers of the model, each as one place."""
    return {
        "segments": model.segments,
        "embed_map": model.embedding_map,
        "encoder": model.encoder,
        "generator": model.generator,
        "readout": model.readout,
    }


def groups(model: TransformerLM) -> dict[str, list[nn.Parameter]]:
    """Every parameter once, by its place: ``embed``, ``posemb``, ``layer03/attn``, ``layer03/ffn``, ``layer03/norm`` (the gains
    and biases of the block's norms), ``final_norm``, ``head``. A tied head's table is ``embed``. Empty places are left out."""
    places: list[tuple[str, list[nn.Parameter]]] = [
        ("embed", list(model.embedding.parameters())),
        ("embed_norm", [] if model.embedding_norm is None else list(model.embedding_norm.parameters())),
        ("posemb", list(model.posemb.parameters())),
        *((name, [] if part is None else list(part.parameters())) for name, part in beside(model).items()),
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
