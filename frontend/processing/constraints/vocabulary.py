"""A tokenizer as llguidance has it: the bytes of each token, and how a forced text is cut.

Owns which tokens can write a language's text. A special token cannot, since output leaves it out,
and an end token ends the output: their spelling is written with other tokens. An added token that
is not special can, as Qwen3's <think> and <tool_call>. Knows nothing of grammars. V is the model's
vocabulary, which may be larger than its tokenizer's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from llguidance import TokenizerWrapper

from frontend.processing.respelled import RespelledTokenizer
from frontend.processing.text_decoders import byte_level_bytes

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Vocabulary(TokenizerWrapper):
    """What `llguidance.LLTokenizer` is made of.

    Args:
        library: the tokenizer.
        vocab_size: V.
        eos_token_ids: the model's end tokens, one at least.

    Attributes:
        added_ids: ids of the added tokens, by their text.

    Raises:
        ValueError: the tokenizer has tokens beyond V, or tokens whose bytes are not known.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        ids = library.get_vocab(with_added_tokens=True)
        num_tokens = max(ids.values()) + 1
        if num_tokens > vocab_size:
            raise ValueError(
                f"has a tokenizer of {num_tokens} tokens, and a vocabulary of {vocab_size}"
            )
        bytes_of = _bytes_of(_parts(library.decoder))
        self.tokens = [b""] * vocab_size
        for token, token_id in ids.items():
            self.tokens[token_id] = bytes_of(token)
        added = library.get_added_tokens_decoder()
        self.added_ids = {token.content: token_id for token_id, token in added.items()}
        special = {token_id for token_id, token in added.items() if token.special}
        self.special_token_ids = sorted(special | set(eos_token_ids))
        for token_id in special:
            self.tokens[token_id] = added[token_id].content.encode()
        self.bos_token_id = None
        self.eos_token_id = eos_token_ids[0]
        self.is_tokenizer_wrapper = True
        writing = [
            (token_id, token)
            for token_id, token in added.items()
            if token_id not in self.special_token_ids
            and self.tokens[token_id] == token.content.encode()
        ]
        self._cutter = RespelledTokenizer(library, writing, _plain_layout(library))

    def __call__(self, text: str) -> list[int]:
        """Tokens that write a text."""
        return self._cutter.encode(text)


def _parts(part: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer in JSON; the parts of a sequence."""
    if part is None:
        return []
    return _listed(json.loads(part.__getstate__()))


def _listed(part: dict[str, Any]) -> list[dict[str, Any]]:
    if part["type"] != "Sequence":
        return [part]
    [inner] = (value for value in part.values() if isinstance(value, list))
    return [each for listed in inner for each in _listed(listed)]


def _bytes_of(decoders: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """The bytes of a token, as a function of how the tokenizer spells it."""
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return byte_level_bytes
    if "ByteFallback" not in kinds:
        raise ValueError("has a tokenizer that is neither of bytes nor falls back to them")
    spaces = [each["pattern"].get("String") for each in decoders if _writes_space(each)]

    def bytes_of(token: str) -> bytes:
        if byte := _BYTE.fullmatch(token):
            return bytes.fromhex(byte[1])
        for space in spaces:
            token = token.replace(space, " ")
        return token.encode()

    return bytes_of


def _writes_space(decoder: Mapping[str, Any]) -> bool:
    return (decoder["type"], decoder.get("content")) == ("Replace", " ")


def _plain_layout(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer that cuts a text as it stands, wherever it stands: nothing is put before it, and
    no character becomes another but a space.
    """
    normalizers = [
        each
        for each in _parts(library.normalizer)
        if each["type"] == "Replace" and each["pattern"].get("String") == " "
    ]
    pre_tokenizers = _parts(library.pre_tokenizer)
    for each in pre_tokenizers:
        if each["type"] == "Metaspace":
            each["prepend_scheme"] = "never"
        elif each["type"] == "ByteLevel":
            each["add_prefix_space"] = False
    plain = {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "added_tokens": [],
    }
    return tokenizers.Tokenizer.from_str(json.dumps(plain))
