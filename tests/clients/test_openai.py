"""OpenAI's own package, by its helpers: `tests/frontend/api/openai/` asks for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Paint, needs, terse

pytestmark = needs("openai")

QUESTION: list[Any] = [{"role": "user", "content": SUM}]
REQUEST: list[Any] = [{"role": "user", "content": PAINT}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_stream_of_several_choices_is_put_together(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"n": 2, "logprobs": True, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, **options) as stream:
        answer = stream.get_final_completion()
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * 3
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert "".join(token.token for token in tokens).startswith(ANSWER)


def test_output_and_arguments_are_models_of_pydantic(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=REQUEST, response_format=Paint, logit_bias=terse()
    )
    assert isinstance(answer.choices[0].message.parsed, Paint)
    tools = [openai.pydantic_function_tool(Paint), openai.pydantic_function_tool(Paint, name="b")]
    called = client.chat.completions.parse(
        model=MODEL, messages=REQUEST, tools=tools, tool_choice="required", logit_bias=terse()
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Paint)
    assert called.choices[0].finish_reason == "tool_calls"


def test_a_streamed_call_is_a_model_of_pydantic(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=REQUEST,
        tools=[openai.pydantic_function_tool(Paint)],
        tool_choice={"type": "function", "function": {"name": "Paint"}},
        logit_bias=terse(),
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Paint)


def test_errors_have_their_classes(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p") as caught:
        client.chat.completions.create(model=MODEL, messages=QUESTION, top_p=NO_TOP_P)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.chat.completions.create(model="none", messages=QUESTION)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()


TERSE: dict[str, Any] = {"extra_body": {"logit_bias": terse()}}


def test_responses_are_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=SUM)
    with client.responses.stream(model=MODEL, input=SUM) as stream:
        told = list(stream)
        streamed = stream.get_final_response()
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert answer.output_text == streamed.output_text == text == ANSWER
    assert answer.usage == streamed.usage
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3


def test_output_and_arguments_of_responses_are_models_of_pydantic(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=PAINT, text_format=Paint, **TERSE)
    assert isinstance(answer.output_parsed, Paint)
    tools: Any = [openai.pydantic_function_tool(Paint, name=name) for name in "ab"]
    called: Any = client.responses.parse(
        model=MODEL, input=PAINT, tools=tools, tool_choice="required", **TERSE
    )
    (call,) = called.output
    assert isinstance(call.parsed_arguments, Paint)


def test_a_result_is_sent_back_with_all_that_was_before(client: openai.OpenAI) -> None:
    tools: Any = [
        {"type": "function", "name": "paint", "parameters": Paint.model_json_schema()},
        {"type": "custom", "name": "say"},
    ]
    items: list[Any] = [{"role": "user", "content": PAINT}]
    for kind, tool in zip(("function_call", "custom_tool_call"), tools, strict=True):
        choice: Any = {"type": tool["type"], "name": tool["name"]}
        answer = client.responses.create(
            model=MODEL, input=items, tools=tools, tool_choice=choice, max_output_tokens=64, **TERSE
        )
        call: Any = answer.output[0]
        assert (call.type, call.name) == (kind, tool["name"])
        items += [call, {"type": f"{kind}_output", "call_id": call.call_id, "output": "done"}]
    end = client.responses.create(model=MODEL, input=items, tools=tools, max_output_tokens=4)
    assert end.usage is not None
    assert end.usage.output_tokens <= 4


def test_errors_of_responses_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=SUM, top_p=NO_TOP_P)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model=MODEL, input=SUM, previous_response_id="resp_1")
