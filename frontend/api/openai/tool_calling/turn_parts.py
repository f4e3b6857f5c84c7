"""Turns in OpenAI's shape: events as deltas of a stream, and whole turns as messages.

Owns ids of calls, and ``function_call``, the older form: one call a turn, without an id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from frontend.api.openai.response_models import (
    ChatDelta,
    ChatMessage,
    FunctionCall,
    FunctionCallDelta,
    ToolCallDelta,
)
from frontend.processing.tool_calls.events import Arguments, CallBegun, Event, Text
from frontend.service.turns import Reasoning, WholeTurn


def deltas(events: Iterable[Reasoning | Event], is_legacy: bool) -> list[ChatDelta]:
    """An event each; a call and the arguments that come with it are one."""
    told: list[ChatDelta] = []
    begun: FunctionCallDelta | None = None  # what the last event began
    for event in events:
        match event:
            case Text(text):
                told.append({"content": text})
            case Reasoning(text):
                told.append({"reasoning_content": text})
            case CallBegun():
                begun = {"name": event.name, "arguments": ""}
                told.append(_call_delta(event, begun, is_legacy))
                continue
            case Arguments(_, text) if begun is not None:
                begun["arguments"] = text
            case Arguments(number, text):
                told.append(_arguments_delta(number, text, is_legacy))
        begun = None
    return told


def _call_delta(event: CallBegun, function: FunctionCallDelta, is_legacy: bool) -> ChatDelta:
    if is_legacy:
        return {"function_call": function}
    call: ToolCallDelta = {
        "index": event.number,
        "id": event.id or new_call_id(),
        "type": "function",
        "function": function,
    }
    return {"tool_calls": [call]}


def _arguments_delta(number: int, text: str, is_legacy: bool) -> ChatDelta:
    if is_legacy:
        return {"function_call": {"arguments": text}}
    return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}


def new_call_id() -> str:
    """An id for a call that its format gave none."""
    return f"call_{uuid.uuid4().hex[:24]}"


def message(turn: WholeTurn, is_legacy: bool) -> ChatMessage:
    """The assistant's turn."""
    calls, content, reasoning = turn.calls, turn.content, turn.reasoning
    functions: list[FunctionCall] = [
        {"name": call.name, "arguments": call.arguments} for call in calls
    ]
    told: ChatMessage = {
        "role": "assistant",
        "content": content or None if calls else content,
        "refusal": None,
    }
    if reasoning:
        told["reasoning_content"] = reasoning
    if calls and is_legacy:
        told["function_call"] = functions[0]
    elif calls:
        told["tool_calls"] = [
            {"id": call.id or new_call_id(), "type": "function", "function": function}
            for call, function in zip(calls, functions, strict=True)
        ]
    return told
