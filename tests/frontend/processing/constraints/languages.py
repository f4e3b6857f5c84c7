"""Matchers of a tokenizer whose tokens are bytes."""

from __future__ import annotations

from frontend.processing.constraints.structured_output import Compiler, GrammarMatcher
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import EOS, VOCAB_SIZE, FakeTokenizer


def byte_compiler(vocab_size: int = VOCAB_SIZE, eos: tuple[int, ...] = (EOS,)) -> Compiler:
    """Of a tokenizer whose tokens are bytes."""
    return Compiler(FakeTokenizer().library_tokenizer, vocab_size=vocab_size, eos_token_ids=eos)


async def matcher(compiler: Compiler | None = None, **language: object) -> GrammarMatcher:
    asked = pb.Constraint(**language)
    [made] = await (compiler or byte_compiler()).matchers(asked, 1)
    return made


def allowed(each: GrammarMatcher) -> set[int]:
    mask = each.mask()
    return {token for token in range(8 * len(mask)) if mask[token >> 3] >> (token & 7) & 1}


def takes(each: GrammarMatcher, text: str) -> bool:
    """Whether a text is one of the language; the matcher has moved on then."""
    for byte in text.encode():
        if byte not in allowed(each):
            return False
        each.accept(byte)
    return EOS in allowed(each)
