"""Languages over the texts of added tokens: whole generations, each token drawn from the mask."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Library

from frontend.processing.constraints.grammars import choice_grammar
from frontend.processing.constraints.structured_output import Compiler
from frontend.processing.constraints.vocabulary import Vocabulary
from tests.frontend.conftest import CORPUS, byte_level_backend
from tests.frontend.processing import qwen_like
from tests.frontend.processing.constraints.languages import allowed, matcher

LIBRARY = qwen_like.library_tokenizer()
ENDS = [LIBRARY.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
COMPILER = Compiler(LIBRARY, vocab_size=LIBRARY.get_vocab_size() + 7, eos_token_ids=ENDS)
TEXTS = ["<think>", "</think>\n", "a<|im_end|>b", "<|im_start|>", "<tool_call>{", "e\u0301é", "<th"]


async def drawn(seed: int, **language: object) -> list[int]:
    """Tokens of a generation, each drawn from the mask, without the end token."""
    each, choose, tokens = await matcher(COMPILER, **language), random.Random(seed), []
    while not each.is_stopped:
        token = choose.choice(sorted(allowed(each)))
        if token in ENDS:
            break
        tokens.append(token)
        each.accept(token)
    return tokens


def text_of(tokens: list[int]) -> str:
    """As a caller gets it."""
    return str(LIBRARY.decode(tokens, skip_special_tokens=True))


LANGUAGES: list[tuple[dict[str, object], Callable[[str], object]]] = [
    ({"grammar": choice_grammar(TEXTS)}, TEXTS.__contains__),
    (
        {"regex": r"<think>\n[a-z ]{1,9}\n</think>\n\n(yes|<\|im_end\|>)"},
        re.compile(r"<think>\n[a-z ]{1,9}\n</think>\n\n(yes|<\|im_end\|>)").fullmatch,
    ),
    (
        {"grammar": 'start: "<tool_call>" /[a-c]{1,3}/ "</tool_call>" END?\nEND: "<|im_end|>"'},
        re.compile(r"<tool_call>[a-c]{1,3}</tool_call>(<\|im_end\|>)?").fullmatch,
    ),
    (
        {"json_schema": json.dumps({"enum": TEXTS}, ensure_ascii=False)},
        lambda text: json.loads(text) in TEXTS,
    ),
    (
        {"json_schema": json.dumps({"type": "object", "required": ["<think>"],
                                    "properties": {"<think>": {"const": "<|im_end|>"}},
                                    "additionalProperties": False})},
        lambda text: json.loads(text) == {"<think>": "<|im_end|>"},
    ),
    (
        {"json_schema": json.dumps({"type": "string", "pattern": "^<tool_call>[ab]<.im_end.>$"})},
        lambda text: re.fullmatch(r'"<tool_call>[ab]<.im_end.>"', text),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("language", "has"), LANGUAGES)
@pytest.mark.parametrize("seed", range(12))
async def test_texts_of_added_tokens_are_texts_like_others(
    language: dict[str, object], has: Callable[[str], object], seed: int
) -> None:
    text = text_of(await drawn(seed, **language))
    assert has(text), text


async def test_a_model_s_own_token_writes_its_text_and_a_special_one_writes_none() -> None:
    first = allowed(await matcher(COMPILER, grammar='start: "<think>" | "<|im_start|>"'))
    assert LIBRARY.token_to_id("<think>") in first
    assert LIBRARY.token_to_id("<|im_start|>") not in first
    forced = allowed(await matcher(COMPILER, regex="<think>\n"))
    assert forced == {LIBRARY.token_to_id("<think>")}


@pytest.mark.parametrize("name", ["<tool_call>", "<|im_start|>"])
async def test_a_grammar_names_any_added_token(name: str) -> None:
    grammar = f'start: {name} "{name}" // {name}\n | "x" {name} /{name[0]}/'
    tokens = [await drawn(seed, grammar=grammar) for seed in range(8)]
    token = LIBRARY.token_to_id(name)
    assert {each.count(token) for each in tokens} <= {1, 2}
    assert {each[0] == token for each in tokens} == {True, False}


def byte_fallback_tokenizer() -> Library:
    """As SentencePiece's are: a word begins with ▁, and unknown characters are bytes."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "a",
        "<",
        ">",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    library = Library(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_tokens([AddedToken("</s>", special=True), AddedToken("<t>", normalized=False)])
    return library


@pytest.mark.parametrize("make", [qwen_like.library_tokenizer, byte_fallback_tokenizer])
def test_a_token_s_bytes_are_what_it_decodes_to(make: Callable[[], Library]) -> None:
    library = make()
    read = Vocabulary(library, library.get_vocab_size(), [library.get_vocab_size() - 1])
    for text in [*CORPUS, *TEXTS]:
        ids = library.encode(text, add_special_tokens=False).ids
        written = b"".join(read.tokens[token] for token in ids).decode()
        assert written == library.decode(ids, skip_special_tokens=False)


async def test_spaces_of_another_kind_of_tokenizer() -> None:
    library = byte_fallback_tokenizer()
    compiler = Compiler(library, vocab_size=library.get_vocab_size(), eos_token_ids=[1])
    each = await matcher(compiler, grammar='start: "<t> a</s>"')
    written = []
    while not each.is_stopped:
        [token] = allowed(each)
        written.append(library.id_to_token(token))
        each.accept(token)
    assert written == ["<t>", "▁a", "<", "<0x2F>", "<0x73>", ">"]


async def test_an_added_token_that_decodes_to_something_else_writes_nothing() -> None:
    """é is a byte's character in GPT-2's table: the token é! decodes to that byte."""
    compiler = Compiler(byte_level_backend(), vocab_size=500, eos_token_ids=[0])
    each = await matcher(compiler, regex="é!x")
    while not each.is_stopped:
        [token] = allowed(each)
        each.accept(token)
