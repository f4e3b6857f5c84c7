"""Long answers: JSON in pieces, their bound, and that others run while they are made."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.api.openai import chat, completions, generation
from frontend.api.openai.generation import AnswerSize, JsonArray, LongJSONResponse
from frontend.bounds import MAX_LOGPROBS_PER_MESSAGE
from frontend.service.service import Service
from tests.frontend.fakes import MODEL, FakeEngine, backend, group
from tests.frontend.http_fakes import running_http

SAMPLES, TOKENS, TOP = 4, 300, 20

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def in_pieces(value: Any, cuts: list[int]) -> Any:
    """The value; its lists of no containers are JsonArrays, cut in pieces."""
    if isinstance(value, dict):
        return {key: in_pieces(each, cuts) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    if any(isinstance(each, dict) for each in value):
        return [in_pieces(each, cuts) for each in value]
    array, start = JsonArray(AnswerSize()), 0
    for cut in [*cuts, len(value)]:
        array.extend(value[start:cut])
        start = max(start, cut)
    return array


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=3), VALUES), st.lists(st.integers(0, 4)).map(sorted))
def test_json_in_pieces_is_json(value: dict[str, Any], cuts: list[int]) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(LongJSONResponse(in_pieces(value, cuts))({}, receive, send))
    body = b"".join(message["body"] for message in sent[1:])
    assert json.loads(body) == value
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body)
    assert [message.get("more_body", False) for message in sent[1:]][-1] is False


def long_service() -> Service:
    service = Service(model=MODEL, version="1")
    info = group(max_model_len=1024, num_blocks=1024)
    service.open(backend(FakeEngine(), info=info))
    return service


@pytest.mark.slow
@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_others_run_while_a_long_answer_is_made(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, entries = 0, Counter[int]()

    def counted(values: Any) -> str:
        if isinstance(values, list) and isinstance(values[0], dict):
            entries[turn] += len(values) * (1 + TOP)
        return str(encode(values))

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    encode = generation._encode
    monkeypatch.setattr(generation, "_encode", counted)
    async with running_http(long_service()) as http:
        turns = asyncio.create_task(count_turns())
        options: dict[str, Any] = {"model": MODEL, "n": SAMPLES, "max_tokens": TOKENS}
        choices: Any
        if api == "chat":
            messages: Any = [{"role": "user", "content": "abc"}]
            made = await http.client.chat.completions.create(
                messages=messages, logprobs=True, top_logprobs=TOP, **options
            )
            choices = [choice.logprobs.content for choice in made.choices if choice.logprobs]
        else:
            scored = await http.client.completions.create(prompt="abc", logprobs=TOP, **options)
            choices = [choice.logprobs.tokens for choice in scored.choices if choice.logprobs]
        turns.cancel()
    assert [len(tokens) for tokens in choices] == [TOKENS] * SAMPLES
    assert max(entries.values()) <= 2 * MAX_LOGPROBS_PER_MESSAGE


@pytest.mark.parametrize("api", [chat, completions])
async def test_an_answer_has_a_bound(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_ANSWER_BYTES", 50_000)
    async with running_http(long_service()) as http:
        options: dict[str, Any] = {"model": MODEL, "max_tokens": TOKENS}
        messages: Any = [{"role": "user", "content": "abc"}]

        async def ask(top: int) -> Any:
            if api is completions:
                create: Any = http.client.completions.create
                return await create(prompt="abc", logprobs=top, **options)
            return await http.client.chat.completions.create(
                messages=messages, logprobs=True, top_logprobs=top, **options
            )

        assert (await ask(0)).choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="50000 bytes") as caught:
            await ask(TOP)
    assert caught.value.code == "answer_too_large"
