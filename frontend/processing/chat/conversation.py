"""Turns a ChatRequest into what a chat template takes: turns, tools and the template's arguments.

Owns the checks of `switchyard.v1.ChatRequest`. Knows no template and no tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from frontend.bounds import (
    MAX_MESSAGES,
    MAX_NAME_CHARS,
    MAX_TEMPLATE_KWARGS_CHARS,
    MAX_TOOL_CALLS,
    MAX_TOOLS,
    MAX_TOOLS_CHARS,
)
from frontend.errors import invalid_field, too_many
from frontend.processing.thoughts.tags import BUDGETS
from switchyard.v1 import inference_pb2 as pb

Turn = dict[str, Any]

# Characters that a template adds to a turn's content, about.
TURN_CHARS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        turns: each with ``role`` and ``content``, and thoughts and tool calls in the form that
            templates share.
        tools: functions that the model may call; None: none.
        template_kwargs: the template's own arguments, by name.
        optional_kwargs: those of them that a template need not take.
        parses_special_tokens: text that spells a control token is that token.
        continues: the prompt ends within the last turn, which is an assistant's.
        asks: the prompt ends with what an assistant's turn begins with.
    """

    turns: list[Turn]
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    optional_kwargs: tuple[str, ...] = ()
    parses_special_tokens: bool = False
    continues: bool = False
    asks: bool = True

    @property
    def num_chars(self) -> int:
        """About how long its text is, but for calls, tools and arguments."""
        return sum(
            TURN_CHARS + len(turn["content"]) + len(turn.get("reasoning_content", ""))
            for turn in self.turns
        )

    @property
    def has_later_system(self) -> bool:
        """Whether a system turn stands behind another turn."""
        return any(turn["role"] == "system" for turn in self.turns[1:])

    def with_objects(self) -> Conversation:
        """The same with {} for arguments of calls that are no JSON object."""
        turns = [
            {**turn, "tool_calls": [_with_object(call) for call in turn["tool_calls"]]}
            if "tool_calls" in turn
            else turn
            for turn in self.turns
        ]
        return dataclasses.replace(self, turns=turns)

    def without_optional_kwargs(self) -> Conversation:
        """The same without arguments that the template need not take."""
        kwargs = self.template_kwargs.items()
        taken = {name: value for name, value in kwargs if name not in self.optional_kwargs}
        return dataclasses.replace(self, template_kwargs=taken, optional_kwargs=())


# Arguments of transformers' apply_chat_template that a caller may not set: another template would
# be code, and the rest changes what is returned.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)

# What templates call it.
_NO_THOUGHTS = {"enable_thinking": False, "thinking": False}

_ROLES: Mapping[int, str] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}


def conversation(chat: pb.ChatRequest) -> Conversation:
    """What the template is given for a ChatRequest.

    Raises:
        RequestError: INVALID_ARGUMENT when there is no turn, a role is not known, a turn has what
            its role cannot have, a JSON text is none, too long, or of another shape, or there is
            nothing to go on with.
    """
    continues = chat.continue_final_message
    asks = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues
    if continues:
        _check_final(chat.messages[-1:], asks)
    own, effort = template_kwargs(chat.template_kwargs_json), chat.reasoning.effort
    if effort not in BUDGETS:
        known = ", ".join(filter(None, BUDGETS))
        raise invalid_field("reasoning.effort", f"is {effort!r:.40}, must be one of {known}")
    told = {"reasoning_effort": effort} if effort else {}
    return Conversation(
        turns=_turns(chat),
        tools=_tools(chat.tools_json),
        template_kwargs={**told, **(_NO_THOUGHTS if effort == "none" else {}), **own},
        optional_kwargs=tuple(told.keys() - own.keys()),
        parses_special_tokens=chat.parse_special_tokens,
        continues=continues,
        asks=asks,
    )


def _check_final(final: Sequence[pb.ChatMessage], asks: bool) -> None:
    """Refuses a last message that output cannot go on with."""
    field = "continue_final_message"
    if asks:
        raise invalid_field(
            field,
            "goes on with a turn, and add_generation_prompt asks for another; leave one out",
            mentions={"add_generation_prompt": "add_generation_prompt"},
        )
    for message in final:
        if message.role != pb.ROLE_ASSISTANT:
            raise invalid_field(field, "needs a last message of the assistant")
        if message.tool_calls:
            raise invalid_field(field, "needs a last message without tool calls")


def _turns(chat: pb.ChatRequest) -> list[Turn]:
    if not chat.messages:
        raise invalid_field("messages", "is empty; send at least one message")
    if len(chat.messages) > MAX_MESSAGES:
        raise too_many("messages", len(chat.messages), MAX_MESSAGES, "turns")
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(chat.messages)]


def _turn(message: pb.ChatMessage, turn_field: str) -> Turn:
    role = _ROLES.get(message.role)
    if role is None:
        known = ", ".join(pb.Role.Name(number) for number in _ROLES)
        raise invalid_field(f"{turn_field}.role", f"is {message.role}, must be one of {known}")
    turn: Turn = {"role": role, "content": message.content}
    if message.reasoning:
        if role != "assistant":
            raise invalid_field(
                f"{turn_field}.reasoning", f"is set in a turn of the {role}, must be an assistant's"
            )
        turn["reasoning_content"] = message.reasoning
    if message.tool_call_id:
        if len(message.tool_call_id) > MAX_NAME_CHARS:
            raise too_many(
                f"{turn_field}.tool_call_id",
                len(message.tool_call_id),
                MAX_NAME_CHARS,
                "characters",
            )
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        field = f"{turn_field}.tool_calls"
        if role != "assistant":
            raise invalid_field(field, f"is set in a turn of the {role}, must be an assistant's")
        if len(message.tool_calls) > MAX_TOOL_CALLS:
            raise too_many(field, len(message.tool_calls), MAX_TOOL_CALLS, "calls")
        turn["tool_calls"] = [
            _tool_call(call, f"{field}[{index}]") for index, call in enumerate(message.tool_calls)
        ]
    return turn


def _tool_call(call: pb.ToolCall, call_field: str) -> Turn:
    if not call.name:
        raise invalid_field(f"{call_field}.name", "is empty; send the function's name")
    if len(call.name) > MAX_NAME_CHARS:
        raise too_many(f"{call_field}.name", len(call.name), MAX_NAME_CHARS, "characters")
    if len(call.id) > MAX_NAME_CHARS:
        raise too_many(f"{call_field}.id", len(call.id), MAX_NAME_CHARS, "characters")
    if len(call.arguments_json) > MAX_TOOLS_CHARS:
        raise too_many(
            f"{call_field}.arguments_json", len(call.arguments_json), MAX_TOOLS_CHARS, "characters"
        )
    function = {"name": call.name, "arguments": _arguments(call.arguments_json)}
    turn: Turn = {"type": "function", "function": function}
    if call.id:
        turn["id"] = call.id
    return turn


def _arguments(text: str) -> dict[str, Any] | str:
    """A call's arguments; what is no JSON object, as a call that was cut off has it, as it is."""
    if not text.strip() or text.strip() == "null":
        return {}
    try:
        value = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no number that JSON can hold again")


def _with_object(call: Turn) -> Turn:
    function = call["function"]
    if isinstance(function["arguments"], dict):
        return call
    return {**call, "function": {**function, "arguments": {}}}


def _tools(text: str) -> list[dict[str, Any]] | None:
    """The functions that the model may call, from a JSON array of objects; None without a text."""
    field = "tools_json"
    if not text:
        return None
    listed = _parsed(text, field, MAX_TOOLS_CHARS)
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise invalid_field(field, "is not a JSON array of objects")
    if len(listed) > MAX_TOOLS:
        raise too_many(field, len(listed), MAX_TOOLS, "tools")
    return listed or None


def template_kwargs(text: str) -> dict[str, Any]:
    """The template's arguments, from a JSON object; none without a text.

    Raises:
        RequestError: INVALID_ARGUMENT when it is anything else, too long, or sets a name that a
            caller may not set.
    """
    field = "template_kwargs_json"
    if not text:
        return {}
    kwargs = _parsed(text, field, MAX_TEMPLATE_KWARGS_CHARS)
    if not isinstance(kwargs, dict):
        raise invalid_field(field, "is not a JSON object")
    reserved = sorted(_RESERVED_TEMPLATE_KWARGS & kwargs.keys())
    if reserved:
        raise invalid_field(field, f"may not set {', '.join(reserved)}")
    return kwargs


def _parsed(text: str, field: str, max_chars: int) -> Any:
    if len(text) > max_chars:
        raise too_many(field, len(text), max_chars, "characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, "is not JSON") from error
