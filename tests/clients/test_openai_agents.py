"""OpenAI's agents, by responses, which is their default, and by chat completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Coat, Paint, needs, terse

pytestmark = needs("agents")


Make = Callable[..., Any]


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def agent(url: str, request: pytest.FixtureRequest) -> Make:
    """Makes an agent of settings and options."""
    import agents

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Any:
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
        model = getattr(agents, request.param)(model=MODEL, openai_client=client)
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
