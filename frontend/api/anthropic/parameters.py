"""From a body's parameters to a `switchyard.v1.ChatRequest`.

Owns what Anthropic's parameters mean, and which are refused. The service checks ranges.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from frontend.api.anthropic.conversation import turns
from frontend.api.anthropic.request_models import MessagesBody, PromptBody
from frontend.api.anthropic.tools import messages_tools
from frontend.api.http.values import set_numbers, validated
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import ToolUse
from switchyard.v1 import inference_pb2 as pb

# What changes the answer and is not built: the parameter, a value that asks for nothing, a remedy.
_REFUSED: Sequence[tuple[str, Any, str]] = (
    ("container", None, "run code in the client, as a tool"),
    ("mcp_servers", [], "call them in the client, and send what they offer as tools"),
    ("speed", "standard", "the server has one"),
)
_NO_THOUGHTS = "none"
# What templates call it.
_THOUGHTS = {"enable_thinking": True, "thinking": True}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a body asks for.

    Attributes:
        names: Anthropic's names of fields of ``chat``, where they are not the usual ones.
    """

    chat: pb.ChatRequest
    tools: ToolUse
    stream: bool
    names: Mapping[str, str]


def read_messages(values: Mapping[str, Any], request_id: str, tool_format: ToolFormat) -> Asked:
    """What the body of /v1/messages asks for.

    Args:
        values: the body's JSON object.
        tool_format: of the model's calls.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    _refuse(values)
    body = validated(MessagesBody, values)
    chat, tools, names = _prompt(body, tool_format)
    request = chat.request
    request.request_id = request_id
    set_numbers(body, ("temperature", "top_p"), request.sampling)
    if body.top_k is not None:
        request.sampling.top_k = max(0, body.top_k)  # -1 is off
    request.stop_conditions.max_new_tokens = body.max_tokens
    request.stop_conditions.up_to_context = True
    request.stop_conditions.stop.extend(body.stop_sequences or ())
    return Asked(chat=chat, tools=tools, stream=bool(body.stream), names=names)


def read_prompt(values: Mapping[str, Any], tool_format: ToolFormat) -> pb.ChatRequest:
    """The chat of a body of /v1/messages/count_tokens.

    Raises:
        RequestError: as `read_messages`.
    """
    _refuse(values)
    return _prompt(validated(PromptBody, values), tool_format)[0]


def _refuse(values: Mapping[str, Any]) -> None:
    for name, neutral, remedy in _REFUSED:
        if values.get(name) not in (None, neutral):
            raise invalid_field(name, f"is not supported; {remedy}, and leave it out")


def _prompt(
    body: PromptBody, tool_format: ToolFormat
) -> tuple[pb.ChatRequest, ToolUse, dict[str, str]]:
    """What makes the prompt, and what the output is held to."""
    chat = pb.ChatRequest(
        messages=turns(body.system, body.messages),
        request=pb.GenerateRequest(model=body.model or ""),
    )
    _set_prefill(chat)
    _set_thinking(body, chat)
    tools = messages_tools(body.tools, body.tool_choice, tool_format)
    names = _set_format(body, chat.request)
    if tools.constraint is not None:
        if names:
            raise invalid_field(
                "tool_choice", f"forces a call, and {names['constraint']} names a language"
            )
        names = dict(tools.fields)
    tools.apply(chat)
    return chat, tools, names


def _set_prefill(chat: pb.ChatRequest) -> None:
    """An assistant's last turn is the beginning of the answer."""
    if not chat.messages or chat.messages[-1].role != pb.ROLE_ASSISTANT:
        return
    last = chat.messages[-1]
    if last.tool_calls:
        raise invalid_field(
            "messages", "end with a tool_use; send a user's turn with its tool_result"
        )
    if last.content or last.reasoning:
        chat.continue_final_message = True
    else:
        del chat.messages[-1]


def _set_thinking(body: PromptBody, chat: pb.ChatRequest) -> None:
    thinking, reasoning = body.thinking, chat.reasoning
    if body.output_config is not None:
        reasoning.effort = body.output_config.effort or ""
    if thinking is None or thinking.display == "omitted":
        reasoning.leave_out = True
    if thinking is None:
        return
    if thinking.type == "disabled":
        reasoning.effort = _NO_THOUGHTS
        reasoning.leave_out = True
    elif thinking.type == "enabled":
        chat.template_kwargs_json = json.dumps(_THOUGHTS)
        if thinking.budget_tokens is not None:
            reasoning.max_tokens = thinking.budget_tokens


def _set_format(body: PromptBody, request: pb.GenerateRequest) -> dict[str, str]:
    """The output's schema, and Anthropic's names of its fields."""
    wanted, name = body.output_format, "output_format"
    if body.output_config is not None and body.output_config.format is not None:
        if wanted is not None:
            raise invalid_field(name, "and output_config.format are the same; send the second")
        wanted, name = body.output_config.format, "output_config.format"
    if wanted is None:
        return {}
    request.constraint.json_schema = json.dumps(wanted.schema_)
    return dict.fromkeys(("constraint", "constraint.json_schema"), f"{name}.schema")
