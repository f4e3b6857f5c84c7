"""OpenAI's agents, by responses, which is their default, and by chat completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
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
    Coat,
    Paint,
    Person,
    needs,
    terse,
)
from tests.clients.loops import Loop, Toolbox, await_at_once

pytestmark = needs("agents")


Make = Callable[..., Any]


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def agent(url: str, request: pytest.FixtureRequest) -> Make:
    """Makes an agent of settings and options."""
    import agents

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Any:
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
        model = getattr(agents, request.param)(model=MODEL, openai_client=client)
        if request.param == "OpenAIChatCompletionsModel":
            model.should_replay_reasoning_content = lambda context: True
        given = agents.ModelSettings(**settings or {})
        return agents.Agent(name="demo", model=model, model_settings=given, **options)

    return make


@pytest.fixture
def runner() -> Any:
    from agents import Runner, set_tracing_disabled

    set_tracing_disabled(True)
    return Runner


async def test_it_answers_whole_and_streamed(agent: Make, runner: Any) -> None:
    plain = agent({"include_usage": True})
    answer = await runner.run(plain, SUM)
    assert answer.final_output == ANSWER
    assert answer.context_wrapper.usage.output_tokens == 3
    stream = runner.run_streamed(plain, SUM)
    kinds = [event.type async for event in stream.stream_events()]
    assert "raw_response_event" in kinds
    assert stream.final_output == ANSWER
    assert stream.context_wrapper.usage.output_tokens == 3


async def test_output_is_a_model_of_pydantic(agent: Make, runner: Any) -> None:
    painter = agent({"extra_body": {"logit_bias": terse()}}, output_type=Paint)
    assert isinstance((await runner.run(painter, PAINT)).final_output, Paint)


async def test_a_tool_is_called_with_models_of_pydantic(agent: Make, runner: Any) -> None:
    from agents import function_tool

    coats: list[Coat] = []

    @function_tool
    def paint(first: Coat, second: Coat) -> str:
        """Paint the wall twice."""
        coats.extend((first, second))
        return "done"

    settings = {"tool_choice": "required", "extra_body": {"logit_bias": terse()}}
    painter = agent(settings, tools=[paint], tool_use_behavior="stop_on_first_tool")
    answer = await runner.run(painter, PAINT)
    assert answer.final_output == "done"
    assert [type(coat) for coat in coats] == [Coat, Coat]


async def test_an_error_has_its_class(agent: Make, runner: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        await runner.run(agent({"top_p": NO_TOP_P}), SUM)


async def test_loops_of_tools(agent: Make, runner: Any) -> None:
    from agents import function_tool

    async def check(loop: Loop) -> None:
        toolbox = Toolbox()
        tools = [function_tool(function) for function in toolbox.functions(loop)]
        caller = agent({"extra_body": loop.body, "include_usage": True}, tools=tools)
        if loop.streams:
            answer = runner.run_streamed(caller, loop.question)
            assert [event async for event in answer.stream_events()]
        else:
            answer = await runner.run(caller, loop.question)
        assert answer.final_output == loop.answer
        assert toolbox.made == loop.calls
        assert thoughts_of(answer) == loop.thoughts
        lengths = [response.usage.input_tokens for response in answer.raw_responses]
        assert lengths == loop.prompt_tokens()

    await await_at_once(check)


def thoughts_of(answer: Any) -> list[str]:
    """Of chat completions, the package makes summaries of them."""
    items = [item.raw_item for item in answer.new_items if item.type == "reasoning_item"]
    return [part.text for item in items for part in item.content or item.summary]


async def test_thoughts_come_apart_from_the_answer(agent: Make, runner: Any) -> None:
    answer = await runner.run(agent(), CHAIN)
    assert answer.final_output == CHAIN_ANSWER
    assert thoughts_of(answer) == [CHAIN_THOUGHT]


async def test_output_is_filled_rightly(agent: Make, runner: Any) -> None:
    assert (await runner.run(agent(output_type=Person), MIA)).final_output == MIA_PERSON
