"""Long answers: their bound, and that others run while they are made."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import openai
import pytest

from frontend.api.http import long_json
from frontend.api.openai import chat, completions
from frontend.bounds import MAX_LOGPROBS_PER_MESSAGE
from frontend.service.service import Service
from tests.frontend.fakes import MODEL, FakeEngine, backend, group
from tests.frontend.http_fakes import running_http

SAMPLES, TOKENS, TOP = 4, 300, 20


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

    encode = long_json.encode
    monkeypatch.setattr(long_json, "encode", counted)
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
    monkeypatch.setattr(long_json, "MAX_ANSWER_BYTES", 50_000)
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
