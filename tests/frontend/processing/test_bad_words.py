"""Words that never come: which tokens they are, and what masks leave of a random output."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.errors import Code, RequestError
from frontend.processing.bad_words import WordFilter, spellings
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, VOCAB_SIZE, FakeEngine, backend

VOCAB = 70  # no multiple of a mask's words


class WordTokenizer:
    """Letters are tokens, a space is part of the next one, and "ing" is one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        pieces = text.replace("ing", "\x01")
        return [
            ord(piece) + 128 * (place > 0 and pieces[place - 1] == " ")
            for place, piece in enumerate(pieces)
            if piece != " " or place + 1 == len(pieces)
        ]


def spelled(*words: str) -> Any:
    return spellings(WordTokenizer().encode, words, VOCAB_SIZE)


async def test_a_word_is_banned_alone_and_behind_a_space() -> None:
    a, b, ing = ord("a"), ord("b"), 1
    assert await spelled("ab") == [(a, b), (128 + a, b)]
    assert await spelled("a", "ing", " ab") == [
        (a,),
        (128 + a,),
        (ing,),
        (128 + ing,),
        (a, b),
        (128 + a, b),
    ]
    assert await spelled(" ") == [(32,), (128 + 32,)]
    assert await spelled("a", " a", "a") == [(a,), (128 + a,)]
    assert await spelled() == []


async def test_behind_a_space_a_word_may_be_cut_otherwise() -> None:
    cuts = {"turtle": [1, 2, 3], " turtle": [4], "a b": [5, 6], " a b": [7, 5, 6]}
    found = await spellings(lambda text, _: cuts[text], ["turtle", "a b"], VOCAB_SIZE)
    assert found == [(1, 2, 3), (4,), (5, 6)]  # the last word comes in no other way


async def test_tokens_that_the_model_does_not_know_cannot_come() -> None:
    assert await spelled("é") == [(ord("é"),)]  # behind a space it is beyond the vocabulary


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("sampling.bad_words", ["a"] * 1025),
        ("sampling.bad_words[1]", ["a", ""]),
        ("sampling.bad_words[0]", ["a" * 257]),
    ],
)
async def test_a_bad_list_is_refused_by_name(field: str, words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        await spelled(*words)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)


WORDS = st.lists(
    st.lists(st.integers(0, 4), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
)


@given(words=WORDS, drawn=st.lists(st.integers(0, 4), max_size=40))
def test_a_token_is_masked_exactly_where_it_completes_a_word(
    words: list[tuple[int, ...]], drawn: list[int]
) -> None:
    matcher, output = WordFilter(words, VOCAB), []
    for token in drawn:
        mask = matcher.mask()
        assert len(mask) in (0, 12)
        bits = int.from_bytes(mask, "little") if mask else (1 << VOCAB) - 1
        for each in range(VOCAB):
            text = [*output, each]
            completes = any(tuple(text[-len(word) :]) == word for word in words)
            assert bits >> each & 1 == (not completes)
        if bits >> token & 1:
            output.append(token)
            matcher.accept(token)
    assert not matcher.is_stopped
    other = WordFilter(words, VOCAB)
    assert other.advance(output) == len(output)
    assert other.mask() == matcher.mask()


async def asked(**fields: Any) -> pb.CompleteResponse:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine()))
    request = pb.GenerateRequest(prompt={"text": "z"}, **fields)
    return await service.complete(pb.CompleteRequest(request=request))


async def test_a_request_has_its_words_kept_out() -> None:
    """The fake engine draws the lowest token that it may: 0 until a word is banned."""
    words = ["\0\0\0", "\0\x01\0"]
    answer = await asked(
        sampling={"bad_words": words}, stop_conditions={"max_new_tokens": 8, "ignore_eos": True}
    )
    text = answer.outputs[0].text
    assert len(text) == 8
    assert not any(word in text for word in words)
    answer = await asked(sampling={"bad_words": ["a", "b"]}, stop_conditions={"max_new_tokens": 1})
    assert answer.outputs[0].text == "a"  # single tokens are banned by the workers


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"sampling": {"bad_words": ["a"]}, "constraint": {"regex": "a"}}, "beside constraint"),
        ({"sampling": {"bad_words": ["ab"], "allowed_token_ids": [1]}}, "beside allowed_token_ids"),
    ],
)
async def test_what_could_leave_no_token_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        await asked(**fields)
    assert caught.value.field == "sampling.bad_words"
