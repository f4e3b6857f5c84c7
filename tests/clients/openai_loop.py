"""A loop of tools by OpenAI's package, over chat completions and over responses."""

from __future__ import annotations

import json
from typing import Any

import openai

from tests.clients.cases import MODEL
from tests.clients.loops import Loop, Run


def run_chat(client: openai.OpenAI, loop: Loop, body: dict[str, Any]) -> Run:
    """By chat completions; ``body`` is of each request."""
    run = Run()
    messages: list[Any] = [{"role": "user", "content": loop.question}]
    while True:
        answer = _completion(client, loop, messages, body)
        (choice,) = answer.choices
        message = choice.message
        run.prompt_tokens.append(answer.usage.prompt_tokens)
        if thought := getattr(message, "reasoning_content", None):
            run.thoughts.append(thought)
        if not message.tool_calls:
            break
        assert choice.finish_reason == "tool_calls"
        assert not (message.content or "").strip()
        messages.append(message.to_dict())
        for call in message.tool_calls:
            result = run.toolbox.call(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert choice.finish_reason == "stop"
    run.answer = message.content
    return run


def _completion(
    client: openai.OpenAI, loop: Loop, messages: list[Any], body: dict[str, Any]
) -> Any:
    asked: Any = {"model": MODEL, "messages": messages, "tools": loop.schemas()}
    asked["extra_body"] = body
    if not loop.streams:
        return client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        return stream.get_final_completion()


def run_responses(client: openai.OpenAI, loop: Loop, body: dict[str, Any]) -> Run:
    """By responses, of which none is stored."""
    run = Run()
    items: list[Any] = [{"role": "user", "content": loop.question}]
    while True:
        answer = _response(client, loop, items, body)
        run.prompt_tokens.append(answer.usage.input_tokens)
        thoughts = (item for item in answer.output if item.type == "reasoning")
        run.thoughts += [thought.content[0].text for thought in thoughts]
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        assert answer.output_text == ""
        items += answer.output
        for call in calls:
            output = run.toolbox.call(call.name, json.loads(call.arguments))
            given = {"type": "function_call_output", "call_id": call.call_id, "output": output}
            items.append(given)
    assert answer.status == "completed"
    run.answer = answer.output_text
    return run


def _response(client: openai.OpenAI, loop: Loop, items: list[Any], body: dict[str, Any]) -> Any:
    tools = [{"type": "function", **function} for function in loop.functions()]
    asked: Any = {"model": MODEL, "input": items, "tools": tools, "store": False}
    asked["extra_body"] = body
    if not loop.streams:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        return stream.get_final_response()
