"""LangChain's `ChatOpenAI`."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Paint, needs, terse

pytestmark = needs("langchain_openai")


def model(url: str, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=url, api_key=KEY, model=MODEL, max_retries=0, **options)


def test_it_answers_with_scores_whole_and_streamed(url: str) -> None:
    chat = model(url, logprobs=True, stream_usage=True)
    answer = chat.invoke(SUM)
    assert answer.content == ANSWER
    assert answer.usage_metadata["output_tokens"] == 3
    assert answer.response_metadata["logprobs"]["content"][0]["token"] == ANSWER[0]
    pieces = list(chat.stream(SUM))
    assert "".join(piece.content for piece in pieces) == ANSWER
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == 3


def test_several_choices(url: str) -> None:
    from langchain_core.messages import HumanMessage

    [choices] = model(url, n=2).generate([[HumanMessage(SUM)]]).generations
    assert [choice.text for choice in choices] == [ANSWER] * 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_output_is_a_model_of_pydantic(url: str, method: str) -> None:
    chat = model(url, logit_bias=terse())
    assert isinstance(chat.with_structured_output(Paint, method=method).invoke(PAINT), Paint)


def test_a_tool_is_called_and_its_result_taken(url: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = model(url, logit_bias=terse()).bind_tools([Paint])
    called = chat.bind(tool_choice="required").invoke(PAINT)
    (call,) = called.tool_calls
    assert call["name"] == "Paint"
    Paint.model_validate(call["args"])
    result = ToolMessage("done", tool_call_id=call["id"])
    end = chat.bind(max_tokens=4, logit_bias={}).invoke([HumanMessage(PAINT), called, result])
    assert end.usage_metadata["output_tokens"] <= 4


def test_an_error_has_its_class(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        model(url, top_p=NO_TOP_P).invoke(SUM)


@pytest.fixture
def responses(url: str) -> Any:
    return model(url, use_responses_api=True, stream_usage=True)


@pytest.fixture
def terse_responses(url: str) -> Any:
    return model(url, use_responses_api=True, extra_body={"logit_bias": terse()})


def test_responses_are_whole_and_streamed(responses: Any) -> None:
    answer = responses.invoke(SUM)
    assert answer.text == ANSWER
    assert answer.usage_metadata["output_tokens"] == 3
    pieces = list(responses.stream(SUM))
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == 3


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_output_of_responses_is_a_model_of_pydantic(terse_responses: Any, method: str) -> None:
    chat = terse_responses.with_structured_output(Paint, method=method)
    assert isinstance(chat.invoke(PAINT), Paint)


def test_a_tool_of_responses_is_called_and_its_result_taken(terse_responses: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = terse_responses.bind_tools([Paint])
    called = chat.bind(tool_choice="required").invoke(PAINT)
    (call,) = called.tool_calls
    Paint.model_validate(call["args"])
    result = ToolMessage("done", tool_call_id=call["id"])
    end = chat.bind(max_output_tokens=4, extra_body={}).invoke(
        [HumanMessage(PAINT), called, result]
    )
    assert end.usage_metadata["output_tokens"] <= 4
