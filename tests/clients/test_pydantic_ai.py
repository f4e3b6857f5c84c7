"""pydantic-ai's agents, whose output is a tool that the model has to call, or keeps to a schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.cases import (
    ANSWER,
    CHAIN,
    CHAIN_ANSWER,
    CHAIN_THOUGHT,
    KEY,
    MIA,
    MIA_PERSON,
    MODEL,
    NO_TOP_P,
    PAINT,
    SUM,
    Paint,
    Person,
    needs,
    terse,
)
from tests.clients.loops import Loop, Toolbox, await_at_once
from tests.clients.pydantic_ai_loop import prompt_tokens_of, run_loop, thoughts_of

pytestmark = needs("pydantic_ai")


Make = Callable[..., Any]


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatModel"])
def agent(url: str, request: pytest.FixtureRequest) -> Make:
    """Makes an agent of its output's type, tools and settings."""
    from pydantic_ai import Agent
    from pydantic_ai.models import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    def make(output: Any = str, tools: Any = (), **settings: Any) -> Any:
        provider = OpenAIProvider(base_url=url, api_key=KEY)
        model = getattr(openai, request.param)(MODEL, provider=provider)
        return Agent(model, output_type=output, tools=tools, model_settings=settings)

    return make


async def test_it_answers_whole_and_streamed(agent: Make) -> None:
    plain = agent()
    answer = await plain.run(SUM)
    assert answer.output == ANSWER
    assert answer.usage.output_tokens == 3
    async with plain.run_stream(SUM) as stream:
        assert await stream.get_output() == ANSWER
        assert stream.usage.output_tokens == 3


async def test_output_is_a_model_of_pydantic(agent: Make) -> None:
    from pydantic_ai import NativeOutput

    for output in (Paint, NativeOutput(Paint)):
        answer = await agent(output, extra_body={"logit_bias": terse()}).run(PAINT)
        assert isinstance(answer.output, Paint)


async def test_loops_of_tools(agent: Make) -> None:
    async def check(loop: Loop) -> None:
        toolbox = Toolbox()
        caller = agent(tools=toolbox.functions(loop), extra_body=loop.body)
        run = await run_loop(caller, loop)
        assert toolbox.made == loop.calls
        assert thoughts_of(run) == loop.thoughts
        assert prompt_tokens_of(run) == loop.prompt_tokens()

    await await_at_once(check)


async def test_thoughts_come_apart_from_the_answer(agent: Make) -> None:
    run = await agent().run(CHAIN)
    assert run.output == CHAIN_ANSWER
    assert thoughts_of(run) == [CHAIN_THOUGHT]


async def test_output_is_filled_rightly(agent: Make) -> None:
    from pydantic_ai import NativeOutput

    for output in (Person, NativeOutput(Person)):
        assert (await agent(output).run(MIA)).output == MIA_PERSON


async def test_an_error_has_its_class(agent: Make) -> None:
    from pydantic_ai.exceptions import ModelHTTPError

    with pytest.raises(ModelHTTPError, match="top_p") as caught:
        await agent(top_p=NO_TOP_P).run(SUM)
    assert caught.value.status_code == 400
