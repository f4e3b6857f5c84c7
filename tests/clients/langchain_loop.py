"""A loop of tools by LangChain's models, whichever API they ask."""

from __future__ import annotations

import functools
import operator
from typing import Any

from tests.clients.loops import Loop, Toolbox


def run_loop(chat: Any, loop: Loop) -> list[Any]:
    """What the model said, turn by turn, after its calls and its answer were right."""
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool

    toolbox = Toolbox()
    tools = {function.__name__: tool(function) for function in toolbox.functions(loop)}
    bound = chat.bind_tools(list(tools.values()))
    messages: list[Any] = [HumanMessage(loop.question)]
    turns = []
    while not turns or turns[-1].tool_calls:
        if loop.streams:
            turn = functools.reduce(operator.add, bound.stream(messages))
        else:
            turn = bound.invoke(messages)
        turns.append(turn)
        messages += [turn, *(tools[call["name"]].invoke(call) for call in turn.tool_calls)]
    assert turns[-1].text == loop.answer
    assert toolbox.made == loop.calls
    return turns


def prompt_tokens_of(turns: list[Any]) -> list[int]:
    """Of each turn."""
    return [turn.usage_metadata["input_tokens"] for turn in turns]


def thoughts_of(turns: list[Any]) -> list[str]:
    """Those of each turn that has any."""
    blocks = (block for turn in turns for block in turn.content_blocks)
    return [block["reasoning"] for block in blocks if block["type"] == "reasoning"]
