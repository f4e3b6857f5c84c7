"""LangChain's `ChatAnthropic`, and pydantic-ai's `AnthropicModel` with an agent's loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.clients import langchain_loop, pydantic_ai_loop
from tests.clients.cases import (
    ANSWER,
    KEY,
    MIA,
    MIA_PERSON,
    MODEL,
    PAINT,
    SUM,
    Paint,
    Person,
    missing,
)
from tests.clients.loops import THINKING_BLOCKS, Loop, Toolbox, await_at_once, check_at_once

pytestmark = pytest.mark.processes


def langchain(url: str, **options: Any) -> Any:
    from langchain_anthropic import ChatAnthropic

    asked = {"base_url": url.removesuffix("/v1"), "api_key": KEY, "max_retries": 0}
    return ChatAnthropic(model=MODEL, max_tokens=400, **asked, **options)


@missing("langchain_anthropic")
def test_langchain_answers_calls_and_parses(url: str) -> None:
    chat = langchain(url)
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
        assert chat.with_structured_output(Person, method=method).invoke(MIA) == MIA_PERSON


@missing("langchain_anthropic")
def test_loops_of_tools_by_langchain(url: str) -> None:
    def check(loop: Loop) -> None:
        turns = langchain_loop.run_loop(langchain(url, **thinking(loop)), loop)
        assert langchain_loop.thoughts_of(turns) == loop.thoughts
        assert langchain_loop.prompt_tokens_of(turns) == loop.prompt_tokens()

    check_at_once(check)


def thinking(loop: Loop) -> dict[str, Any]:
    return {"thinking": THINKING_BLOCKS} if loop.thinks else {}


@pytest.fixture
async def agent(url: str) -> AsyncIterator[Any]:
    """Makes an agent of pydantic-ai of its options and settings."""
    from anthropic import AsyncAnthropic
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    base_url = url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=base_url, api_key=KEY, max_retries=0) as client:
        model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))

        def make(settings: Any = None, **options: Any) -> Any:
            given: Any = {"max_tokens": 400, **(settings or {})}
            return Agent(model, model_settings=given, **options)

        yield make


@missing("pydantic_ai")
async def test_an_agent_of_pydantic_ai_calls_for_its_output(agent: Any) -> None:
    plain = agent()
    answer = await plain.run(SUM)
    assert answer.output == ANSWER
    async with plain.run_stream(SUM) as stream:
        assert await stream.get_output() == ANSWER
    assert isinstance((await agent(output_type=Paint).run(PAINT)).output, Paint)
    assert (await agent(output_type=Person).run(MIA)).output == MIA_PERSON


@missing("pydantic_ai")
async def test_loops_of_tools_by_pydantic_ai(agent: Any) -> None:
    async def check(loop: Loop) -> None:
        toolbox = Toolbox()
        settings = {f"anthropic_{name}": value for name, value in thinking(loop).items()}
        caller = agent(settings, tools=toolbox.functions(loop))
        run = await pydantic_ai_loop.run_loop(caller, loop)
        assert toolbox.made == loop.calls
        assert pydantic_ai_loop.thoughts_of(run) == loop.thoughts
        assert pydantic_ai_loop.prompt_tokens_of(run) == loop.prompt_tokens()

    await await_at_once(check)
