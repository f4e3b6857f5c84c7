"""A request that goes on from any place is, from there on, the request that was not cut."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest

from frontend.engine.output_processor import take_token
from frontend.errors import Code, RequestError
from frontend.processing import continuation
from frontend.processing.tokenizer import Tokenizer
from frontend.requests.output import Delta, FinishReason
from frontend.requests.request import Request
from frontend.scheduler.sequence import Sequence
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.builders import LIMITS, make_request, taken
from tests.frontend.processing.constraints.languages import matcher

MAX_NEW_TOKENS = 24


def resume(request: Request, tokens: list[int]) -> None:
    continuation.resume([request], [pb.GeneratedTokens(token_ids=tokens)])


def run(request: Request, tokens: list[int]) -> Delta:
    """All that comes of a request which draws these tokens until it ends."""
    sequence = Sequence(request, 0, 1 << 20)
    tokens = tokens[len(request.generated) :]
    while request.finish_reason is None:
        take_token(sequence, tokens.pop(0), None, 1.0)
    return taken(request)


def assert_any_cut_is_healed(fresh: Callable[[], Request], tokens: list[int]) -> Delta:
    """Resumes after each number of tokens that the whole request takes; returns what that gives."""
    whole = run(fresh(), list(tokens))
    for cut in range(1, len(whole.token_ids) + 1):
        request = fresh()
        resume(request, whole.token_ids[:cut])
        rest = run(request, list(tokens))
        expected = dataclasses.replace(whole, token_ids=whole.token_ids[cut:])
        assert rest == expected, f"after {cut} tokens"
        assert request.num_generated == len(whole.token_ids)
    return whole


@pytest.mark.parametrize("seed", range(30))
def test_text_stops_and_ends_are_the_same(seed: int, tokenizer: Tokenizer) -> None:
    """Random bytes end in the middle of characters; texts end in the middle of stop strings."""
    rng = random.Random(seed)
    plain = tokenizer.encode("東京 naïve 🙂🙂 the lazy dog " * 2)
    tokens = rng.choices(plain + rng.choices(range(256), k=8), k=MAX_NEW_TOKENS)
    text = tokenizer.decode(tokens)
    start = rng.randrange(len(text) - 3)
    stop = (text[start : start + 3], "zzz") if rng.random() < 0.6 else ()
    min_new_tokens, include_stop = rng.choice([0, 0, 5]), rng.random() < 0.5

    def fresh() -> Request:
        return make_request(
            max_new_tokens=MAX_NEW_TOKENS,
            min_new_tokens=min_new_tokens,
            eos={tokens[9]} if seed % 3 == 0 else set(),
            stop_ids={tokens[12]} if seed % 3 == 1 else set(),
            stop=stop,
            include_stop=include_stop,
            decoder=tokenizer.decoder(stop, include_stop, False, min_new_tokens),
        )

    assert_any_cut_is_healed(fresh, tokens)


async def test_grammars_go_on_where_they_were() -> None:
    begun = await matcher(regex="(ab|ac)d?e*f")
    tokens = list(b"acdeeef")

    def fresh() -> Request:
        request = make_request(max_new_tokens=20)
        request.matcher = begun.copy()
        return request

    whole = assert_any_cut_is_healed(fresh, tokens)
    assert (whole.token_ids, whole.finish_reason) == (tokens, FinishReason.STOP)
    direct, resumed = fresh(), fresh()
    assert direct.matcher is not None
    assert resumed.matcher is not None
    for token in b"acd":
        direct.matcher.accept(token)
    resume(resumed, list(b"acd"))
    assert resumed.matcher.mask() == direct.matcher.mask()


def refusal(request: Request, tokens: list[int]) -> str:
    with pytest.raises(RequestError) as caught:
        resume(request, tokens)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


async def test_tokens_after_an_end_are_refused() -> None:
    after = "generated[0].token_ids[{}] comes after the end of its sample"
    assert refusal(make_request(max_new_tokens=2), [1, 2, 3]) == after.format(2)
    assert refusal(make_request(eos={7}), [1, 7, 2]) == after.format(2)
    assert refusal(make_request(stop_ids={7}), [7, 2]) == after.format(1)
    resume(make_request(eos={7}, min_new_tokens=2), [1, 7, 2])


async def test_tokens_outside_the_constraint_are_refused() -> None:
    request = make_request(max_new_tokens=20)
    request.matcher = await matcher(regex="(ab|ac)d?")
    outside = "generated[0].token_ids[2] is not what constraint allows there"
    assert refusal(request, list(b"acx")) == outside
    request.matcher = await matcher(regex="ab")  # at whose end nothing can follow
    assert refusal(request, list(b"abb")) == outside


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([(2, [1])], "generated[0].index is 2, must be below n 2"),
        ([(1, [1]), (1, [2])], "generated[1].index is 1, as that of an entry before"),
        (
            [(0, []), (1, [1, 50])],
            "generated[1].token_ids[1] is 50, must be below the vocabulary's size 50",
        ),
    ],
)
def test_entries_that_cannot_be_are_refused(
    given: list[tuple[int, list[int]]], complaint: str
) -> None:
    entries = [pb.GeneratedTokens(index=index, token_ids=ids) for index, ids in given]
    with pytest.raises(RequestError) as caught:
        continuation.check_generated(pb.GenerateRequest(generated=entries), 2, 50)
    assert caught.value.message == complaint


def test_more_tokens_than_a_context_are_refused() -> None:
    """By the length that the request may have, which the context bounds."""
    request = make_request(max_new_tokens=LIMITS.max_model_len - 3)
    assert "comes after the end" in refusal(request, [1] * LIMITS.max_model_len)
