"""LangChain's `ChatOpenAI`."""

from __future__ import annotations

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
from tests.clients.langchain_loop import prompt_tokens_of, run_loop, thoughts_of
from tests.clients.loops import Loop, check_at_once

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


def test_a_tool_is_called_that_has_to_be(url: str) -> None:
    chat = model(url, logit_bias=terse()).bind_tools([Paint])
    (call,) = chat.bind(tool_choice="required").invoke(PAINT).tool_calls
    assert call["name"] == "Paint"
    Paint.model_validate(call["args"])


def test_loops_of_tools(url: str) -> None:
    """Of chat completions, LangChain reads no thoughts."""

    def check(loop: Loop) -> None:
        turns = run_loop(model(url, extra_body=loop.body, stream_usage=True), loop)
        assert prompt_tokens_of(turns) == loop.prompt_tokens(thoughts_are_sent=False)

    check_at_once(check)


def test_output_is_filled_rightly(url: str) -> None:
    for chat in (model(url), model(url, use_responses_api=True)):
        for method in ("json_schema", "function_calling"):
            assert chat.with_structured_output(Person, method=method).invoke(MIA) == MIA_PERSON


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


def test_a_tool_of_responses_is_called_that_has_to_be(terse_responses: Any) -> None:
    chat = terse_responses.bind_tools([Paint])
    (call,) = chat.bind(tool_choice="required").invoke(PAINT).tool_calls
    Paint.model_validate(call["args"])


SUMMARY = {"summary": "auto"}
"""Of the thoughts in a stream of responses, LangChain reads summaries alone."""


def test_loops_of_tools_by_responses(url: str) -> None:
    options = {"use_responses_api": True, "stream_usage": True, "reasoning": SUMMARY}

    def check(loop: Loop) -> None:
        turns = run_loop(model(url, extra_body=loop.body, **options), loop)
        assert thoughts_of(turns) == loop.thoughts
        assert prompt_tokens_of(turns) == loop.prompt_tokens()

    check_at_once(check)


@pytest.mark.parametrize("reasoning", [None, SUMMARY])
def test_thoughts_come_apart_from_the_answer(url: str, reasoning: Any) -> None:
    chat = model(url, use_responses_api=True, reasoning=reasoning)
    thought, said = chat.invoke(CHAIN).content_blocks
    assert (thought["type"], said["text"]) == ("reasoning", CHAIN_ANSWER)
    told = thought["reasoning"] if reasoning else thought["extras"]["content"][0]["text"]
    assert told == CHAIN_THOUGHT
