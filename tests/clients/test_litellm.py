"""litellm, by its provider of servers that speak OpenAI's API."""

from __future__ import annotations

import json
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
from tests.clients.loops import Loop, Run, check_at_once

pytestmark = needs("litellm")


@pytest.fixture
def complete(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``litellm.completion`` of this server."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for one
    import litellm

    def completion(text: str | list[Any], **options: Any) -> Any:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return litellm.completion(
            model=f"openai/{MODEL}",
            api_base=url,
            api_key=KEY,
            messages=messages,
            num_retries=0,
            **options,
        )

    return completion


def test_it_answers_whole_and_streamed(complete: Any) -> None:
    answer = complete(SUM, n=2, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 2
    assert answer.choices[0].logprobs.content[0].token == ANSWER[0]
    pieces = list(complete(SUM, stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER
    )
    assert pieces[-1].usage.completion_tokens == 3


def test_a_tool_is_called(complete: Any) -> None:
    function = {"name": "paint", "parameters": Paint.model_json_schema(), "strict": True}
    tools = [{"type": "function", "function": function}]
    answer = complete(PAINT, tools=tools, tool_choice="required", logit_bias=terse())
    (call,) = answer.choices[0].message.tool_calls
    Paint.model_validate_json(call.function.arguments)


def test_loops_of_tools(complete: Any) -> None:
    import litellm

    def check(loop: Loop) -> None:
        run = Run()
        messages: list[Any] = [{"role": "user", "content": loop.question}]
        asked: Any = {"tools": loop.schemas(), "extra_body": loop.body}
        asked |= {"stream": True, "stream_options": {"include_usage": True}} if loop.streams else {}
        while True:
            answer = complete(messages, **asked)
            if loop.streams:
                answer = litellm.stream_chunk_builder(list(answer))
            message = answer.choices[0].message
            run.prompt_tokens.append(answer.usage.prompt_tokens)
            run.thoughts += [message.reasoning_content] if loop.thinks else []
            messages.append(message)
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                result = run.toolbox.call(call.function.name, json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        run.answer = message.content
        run.check(loop)

    check_at_once(check)


def test_thoughts_come_apart_from_the_answer(complete: Any) -> None:
    message = complete(CHAIN).choices[0].message
    assert (message.reasoning_content, message.content) == (CHAIN_THOUGHT, CHAIN_ANSWER)


def test_output_is_filled_rightly(complete: Any) -> None:
    answer = complete(MIA, response_format=Person).choices[0].message.content
    assert Person.model_validate_json(answer) == MIA_PERSON


def test_output_keeps_to_a_model_of_pydantic(complete: Any) -> None:
    answer = complete(PAINT, response_format=Paint, logit_bias=terse())
    Paint.model_validate(json.loads(answer.choices[0].message.content))


def test_an_error_has_its_class(complete: Any) -> None:
    import litellm

    with pytest.raises(litellm.BadRequestError, match="top_p"):
        complete(SUM, top_p=NO_TOP_P)
