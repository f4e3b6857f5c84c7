"""LangChain's `ChatAnthropic`, and pydantic-ai's `AnthropicModel` with an agent's loop."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, PAINT, SUM, Paint, missing

pytestmark = pytest.mark.processes


@missing("langchain_anthropic")
def test_langchain_answers_calls_and_parses(url: str) -> None:
    from langchain_anthropic import ChatAnthropic

    base_url = url.removesuffix("/v1")
    chat: Any = ChatAnthropic(
        model=MODEL, base_url=base_url, api_key=KEY, max_tokens=400, max_retries=0
    )
    answer = chat.invoke(SUM)
    assert answer.text == ANSWER
    assert answer.usage_metadata["output_tokens"] == 3
    pieces = list(chat.stream(SUM))
    assert "".join(piece.text for piece in pieces) == ANSWER
    called = chat.bind_tools([Paint], tool_choice="any").invoke(PAINT)
    assert {call["name"] for call in called.tool_calls} == {"Paint"}
    for method in ("function_calling", "json_schema"):
        parsed = chat.with_structured_output(Paint, method=method).invoke(PAINT)
        assert isinstance(parsed, Paint)


@missing("pydantic_ai")
async def test_an_agent_of_pydantic_ai_calls_for_its_output(url: str) -> None:
    from anthropic import AsyncAnthropic
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=KEY, max_retries=0)
    model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))
    settings: Any = {"max_tokens": 400}
    async with client:
        plain: Any = Agent(model, model_settings=settings)
        answer = await plain.run(SUM)
        assert answer.output == ANSWER
        async with plain.run_stream(SUM) as stream:
            assert await stream.get_output() == ANSWER
        agent: Any = Agent(model, output_type=Paint, model_settings=settings)
        assert isinstance((await agent.run(PAINT)).output, Paint)
