"""A loop of tools by Anthropic's package."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.clients.cases import MODEL
from tests.clients.loops import THINKING_BLOCKS, Loop, Run


def run_messages(client: anthropic.Anthropic, loop: Loop) -> Run:
    """By messages, whose thoughts are blocks."""
    run = Run()
    turns: list[Any] = [{"role": "user", "content": loop.question}]
    while True:
        message = _message(client, loop, turns)
        usage = message.usage
        run.prompt_tokens.append(usage.input_tokens + (usage.cache_read_input_tokens or 0))
        thoughts = (block for block in message.content if block.type == "thinking")
        run.thoughts += [block.thinking for block in thoughts]
        turns.append({"role": "assistant", "content": message.content})
        if message.stop_reason != "tool_use":
            break
        calls = (block for block in message.content if block.type == "tool_use")
        results = [_result(call, run) for call in calls]
        turns.append({"role": "user", "content": results})
    assert message.stop_reason == "end_turn"
    run.answer = "".join(block.text for block in message.content if block.type == "text")
    return run


def _message(client: anthropic.Anthropic, loop: Loop, turns: list[Any]) -> Any:
    tools = [
        {"name": function["name"], "input_schema": function["parameters"]}
        for function in loop.functions()
    ]
    asked: Any = {"model": MODEL, "max_tokens": 400, "messages": turns, "tools": tools}
    asked |= {"thinking": THINKING_BLOCKS} if loop.thinks else {}
    if not loop.streams:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


def _result(call: Any, run: Run) -> dict[str, Any]:
    content = run.toolbox.call(call.name, call.input)
    return {"type": "tool_result", "tool_use_id": call.id, "content": content}
