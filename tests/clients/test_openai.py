"""OpenAI's own package, by its helpers: `tests/frontend/api/openai/` asks for the rest."""

from __future__ import annotations

from collections.abc import Iterator
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
    Paint,
    Person,
    needs,
    terse,
)
from tests.clients.loops import CALCULATED, Toolbox, check_at_once
from tests.clients.openai_loop import run_chat, run_responses

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


def test_a_custom_tool_is_called_that_has_to_be(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "custom", "name": "say"}]
    answer = client.responses.create(
        model=MODEL,
        input=PAINT,
        tools=tools,
        tool_choice={"type": "custom", "name": "say"},
        max_output_tokens=64,
        **TERSE,
    )
    call: Any = answer.output[0]
    assert (call.type, call.name) == ("custom_tool_call", "say")


def test_a_custom_tool_is_called_and_its_result_taken(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "custom", "name": "calculator"}]
    items: list[Any] = [{"role": "user", "content": CALCULATED.question}]
    answer = client.responses.create(model=MODEL, input=items, tools=tools)
    (call,) = answer.output
    assert call.type == "custom_tool_call"
    result = Toolbox().calculator(call.input)
    items += [call, {"type": "custom_tool_call_output", "call_id": call.call_id, "output": result}]
    end = client.responses.create(model=MODEL, input=items, tools=tools)
    assert end.output_text == CALCULATED.answer


def test_loops_of_tools(client: openai.OpenAI) -> None:
    check_at_once(lambda loop: run_chat(client, loop, loop.body).check(loop))


def test_loops_of_tools_by_responses(client: openai.OpenAI) -> None:
    check_at_once(lambda loop: run_responses(client, loop, loop.body).check(loop))


def test_thoughts_come_apart_from_the_answer(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": CHAIN}]
    whole = client.chat.completions.create(model=MODEL, messages=question)
    with client.chat.completions.stream(model=MODEL, messages=question) as stream:
        streamed = stream.get_final_completion()
    for completion in (whole, streamed):
        message: Any = completion.choices[0].message
        assert (message.reasoning_content, message.content) == (CHAIN_THOUGHT, CHAIN_ANSWER)
    answer = client.responses.create(model=MODEL, input=CHAIN)
    thought, said = answer.output
    assert thought.type == "reasoning"
    assert [part.text for part in thought.content or []] == [CHAIN_THOUGHT]
    assert said.type == "message"
    assert answer.output_text == CHAIN_ANSWER


def test_output_is_filled_rightly(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": MIA}]
    completion = client.chat.completions.parse(
        model=MODEL, messages=question, response_format=Person
    )
    assert completion.choices[0].message.parsed == MIA_PERSON
    answer = client.responses.parse(model=MODEL, input=MIA, text_format=Person)
    assert answer.output_parsed == MIA_PERSON


def test_errors_of_responses_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=SUM, top_p=NO_TOP_P)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model=MODEL, input=SUM, previous_response_id="resp_1")
