"""pydantic-ai's agents, whose output is a tool that the model has to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Paint, needs, terse

pytestmark = needs("pydantic_ai")


Make = Callable[..., Any]


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatModel"])
def agent(url: str, request: pytest.FixtureRequest) -> Make:
    """Makes an agent of its output's type and settings."""
    from pydantic_ai import Agent
    from pydantic_ai.models import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    def make(output: Any = str, **settings: Any) -> Any:
        provider = OpenAIProvider(base_url=url, api_key=KEY)
        model = getattr(openai, request.param)(MODEL, provider=provider)
        return Agent(model, output_type=output, model_settings=settings)

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


async def test_an_error_has_its_class(agent: Make) -> None:
    from pydantic_ai.exceptions import ModelHTTPError

    with pytest.raises(ModelHTTPError, match="top_p") as caught:
        await agent(top_p=NO_TOP_P).run(SUM)
    assert caught.value.status_code == 400
