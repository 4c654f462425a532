"""Export a run's tokenizer to transformers: the same ids for the same text, with the end token as bos and eos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmablate.core.errors import ConfigError
from lmablate.data.tokenizer import END, ByteTokenizer, Tokenizer
from lmablate.interop.hf_models import SpecialTokens
from lmablate.interop.saved import library


def byte_characters() -> list[str]:
    """Return a printable character for each byte, as byte-level BPE writes them (Radford et al. 2019).

    It is the byte's own if Latin-1 has a visible one, otherwise the next from U+0100."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def as_json(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the text of a tokenizer.json, and the end token."""
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes_json(tokenizer), END
    content = json.loads(tokenizer.dumps())
    # training did not add the tokens that a saved tokenizer puts around a text
    content |= {"post_processor": None, "padding": None, "truncation": None}
    from tokenizers import Tokenizer as Inner

    end = Inner.from_str(json.dumps(content)).id_to_token(tokenizer.eot_id)
    assert end is not None
    return json.dumps(content, ensure_ascii=False), end


def _bytes_json(tokenizer: ByteTokenizer) -> str:
    """Return byte-level BPE with 256 tokens and no merges, where a byte is its own id."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    inner = Inner(models.BPE(vocab={**vocabulary, END: tokenizer.eot_id}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return inner.to_str()


def as_hf(tokenizer: Tokenizer, context_length: int, special: SpecialTokens | None = None) -> Any:
    """Return the tokenizer as an object of transformers, with the `special` tokens of an objective.

    Like ours, it reads the text of the end token and of special tokens as ordinary text."""
    from tokenizers import Tokenizer as Inner

    text, end = as_json(tokenizer)
    inner = Inner.from_str(text)
    new = dict(special.new) if special else {}
    _add(inner, new, tokenizer.vocab_size)
    mask = None if special is None or special.mask is None else inner.id_to_token(special.mask)
    return library().PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=end,
        eos_token=end,
        **({} if mask is None else {"mask_token": mask}),
        extra_special_tokens=[name for name in new.values() if name != mask],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )


def _add(inner: Any, new: Mapping[int, str], vocab_size: int) -> None:
    """Add the tokens `new` by id, and unused tokens for the ids between them and the tokenizer's `vocab_size`."""
    from tokenizers import AddedToken

    for number in range(vocab_size, max(new, default=-1) + 1):
        name = new.get(number, f"<|unused_{number}|>")
        inner.add_special_tokens([AddedToken(name, special=True, normalized=False)])
        if inner.token_to_id(name) != number:
            raise ConfigError(
                f"the objective reads token {number}, and the tokenizer would give {name} the id {inner.token_to_id(name)}: a tokenizer "
                "with gaps between its ids, or with this word, cannot be exported with it"
            )
