"""The parameters of thoughts, and thoughts over HTTP with a model that says what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.api.openai.chat import read_chat
from frontend.api.openai.logprobs import TokenTexts
from frontend.errors import RequestError
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.records import UNKNOWN_CALLER
from tests.frontend.played_service import played_service
from tests.frontend.processing.thoughts.test_outputs import THOUGHTS, TOKENIZER, Model

BASE: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def test_budgets_have_three_names() -> None:
    for name in ("max_thinking_tokens", "thinking_budget", "thinking_token_budget"):
        job = read_chat(BASE | {name: 7, "reasoning_effort": "low"}, "", "m", HERMES)
        assert job.request.reasoning.max_tokens == 7
        assert job.request.reasoning.effort == "low"
        assert job.names["reasoning.max_tokens"] == name
    twice = BASE | {"max_thinking_tokens": 1, "thinking_budget": 1}
    with pytest.raises(RequestError, match="and thinking_budget are the same") as caught:
        read_chat(twice, "", "m", HERMES)
    assert caught.value.field == "max_thinking_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_thinking_tokens", -1), ("thinking_budget", 1.5), ("reasoning_effort", "huge")],
)
def test_values_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(BASE | {name: value}, "", "m", HERMES)
    assert caught.value.field == name


@pytest.mark.parametrize("include", [True, False])
async def test_whole_and_streamed_agree(include: bool) -> None:
    values = BASE | {"include_reasoning": include, "n": 2, "max_thinking_tokens": 4}
    reasoning = TOKENIZER.decode(THOUGHTS[:4]).strip("\n") if include else None
    async with played_service(TOKENIZER, Model(begun=False)) as (service, _):
        texts = TokenTexts(service)
        whole = await read_chat(values, "", "m", HERMES).answer(service, texts, UNKNOWN_CALLER)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = read_chat(values | options, "", "m", HERMES).chunks(service, texts, UNKNOWN_CALLER)
        streamed = [chunk async for several in chunks for chunk in several]
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
    assert streamed[-1]["usage"] == whole["usage"] | {
        "prompt_tokens_details": streamed[-1]["usage"]["prompt_tokens_details"]
    }
    for index, choice in enumerate(whole["choices"]):
        assert choice["message"].get("reasoning_content") == reasoning
        assert choice["message"]["content"] == "yes, stop here"
        deltas = [
            each["delta"]
            for chunk in streamed
            for each in chunk["choices"]
            if each["index"] == index
        ]
        kinds = [
            key for delta in deltas for key in ("reasoning_content", "content") if delta.get(key)
        ]
        assert kinds == sorted(kinds, reverse=True), "thoughts come first"
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (reasoning or "")
        assert "".join(delta.get("content") or "" for delta in deltas) == "yes, stop here"
