"""Loops of tools by OpenAI's own package, over chat completions and over responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.cases import KEY, MODEL, needs
from tests.clients.loops import CALCULATED, Loop, Toolbox, every_loop

pytestmark = needs("openai")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def completion(client: openai.OpenAI, loop: Loop, messages: list[Any]) -> Any:
    asked: Any = {"model": MODEL, "messages": messages, "tools": loop.schemas()}
    asked["extra_body"] = loop.body
    if not loop.streams:
        return client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        return stream.get_final_completion()


@every_loop
def test_a_loop_of_chat_completions(client: openai.OpenAI, loop: Loop) -> None:
    toolbox, thoughts, lengths = Toolbox(), [], []
    messages: list[Any] = [{"role": "user", "content": loop.question}]
    while True:
        answer = completion(client, loop, messages)
        (choice,) = answer.choices
        message = choice.message
        lengths.append(answer.usage.prompt_tokens)
        thoughts += [message.reasoning_content] if hasattr(message, "reasoning_content") else []
        if not message.tool_calls:
            break
        assert choice.finish_reason == "tool_calls"
        assert not message.content
        messages.append(message.to_dict())
        for call in message.tool_calls:
            result = toolbox.call(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert (choice.finish_reason, message.content) == ("stop", loop.answer)
    assert toolbox.made == loop.calls
    assert thoughts == loop.thoughts
    assert lengths == loop.prompt_tokens()


def response(client: openai.OpenAI, loop: Loop, items: list[Any]) -> Any:
    tools = [{"type": "function", **function} for function in loop.functions()]
    asked: Any = {"model": MODEL, "input": items, "tools": tools, "extra_body": loop.body}
    if not loop.streams:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        return stream.get_final_response()


@every_loop
def test_a_loop_of_responses(client: openai.OpenAI, loop: Loop) -> None:
    toolbox, thoughts, lengths = Toolbox(), [], []
    items: list[Any] = [{"role": "user", "content": loop.question}]
    while True:
        answer = response(client, loop, items)
        lengths.append(answer.usage.input_tokens)
        thoughts += [item.content[0].text for item in answer.output if item.type == "reasoning"]
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        assert answer.output_text == ""
        items += answer.output
        for call in calls:
            result = toolbox.call(call.name, json.loads(call.arguments))
            items.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": result}
            )
    assert (answer.status, answer.output_text) == ("completed", loop.answer)
    assert toolbox.made == loop.calls
    assert thoughts == loop.thoughts
    assert lengths == loop.prompt_tokens()


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
