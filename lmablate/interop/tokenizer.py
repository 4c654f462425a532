"""The tokenizer of a run as transformers loads it: the same ids for the same text, and the end token as its bos and eos."""

from __future__ import annotations

import json
from typing import Any

from lmablate.data.tokenizer import END, ByteTokenizer, Tokenizer


def byte_characters() -> list[str]:
    """A printable character for each byte, as byte-level BPE writes them (Radford et al. 2019): the byte's own where Latin-1
    has a visible one, otherwise the next of U+0100 onwards."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def as_json(tokenizer: Tokenizer) -> tuple[str, str]:
    """The text of a tokenizer.json, and the end token."""
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes_json(tokenizer), END
    content = json.loads(tokenizer.dumps())
    # what a saved tokenizer puts around a text was not there in training
    content |= {"post_processor": None, "padding": None, "truncation": None}
    from tokenizers import Tokenizer as Inner

    end = Inner.from_str(json.dumps(content)).id_to_token(tokenizer.eot_id)
    assert end is not None
    return json.dumps(content, ensure_ascii=False), end


def _bytes_json(tokenizer: ByteTokenizer) -> str:
    """Byte-level BPE with 256 tokens and no merge: a byte is its own id."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    inner = Inner(models.BPE(vocab={**vocabulary, END: tokenizer.eot_id}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return inner.to_str()


def as_hf(tokenizer: Tokenizer, context_length: int) -> Any:
    """The tokenizer as an object of transformers. Like ours, it reads the words of the end token as ordinary text."""
    from tokenizers import Tokenizer as Inner

    from lmablate.interop.convert import library

    text, end = as_json(tokenizer)
    return library().PreTrainedTokenizerFast(
        tokenizer_object=Inner.from_str(text),
        bos_token=end,
        eos_token=end,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context_length,
    )
