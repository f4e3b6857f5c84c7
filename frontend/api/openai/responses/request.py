"""From the body of POST /v1/responses to `switchyard.v1.ChatRequest`, and what its answer repeats.

Owns what the parameters mean together. Nothing is stored: each request has the whole conversation.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from frontend.api.http.values import validated
from frontend.api.openai.parameters.common import (
    Languages,
    refuse_rows,
    sampled_request,
    schema_text,
    set_language,
)
from frontend.api.openai.responses.input_items import InputTurns
from frontend.api.openai.responses.models import ReasoningParameters, ResponsesBody
from frontend.api.openai.responses.objects import Response
from frontend.api.openai.responses.stream import OutputOptions
from frontend.api.openai.responses.tools import response_tools
from frontend.api.openai.responses.unsupported import RESPONSES_TABLE
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import ToolUse
from switchyard.v1 import inference_pb2 as pb

_NAMES = {
    "stop_conditions.max_new_tokens": "max_output_tokens",
    "reasoning.effort": "reasoning.effort",
    "reasoning.max_tokens": "reasoning.effort",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRequest:
    """One request.

    Attributes:
        turns: what ``request`` has as messages.
        num_top: alternatives of a token of the output.
        names: the client's names of fields of `switchyard.v1`.
        response: what the answer begins with.
    """

    request: pb.ChatRequest
    turns: InputTurns
    tools: ToolUse
    options: OutputOptions
    num_top: int
    stream: bool
    names: Mapping[str, str]
    response: Response


def read_response(
    values: Mapping[str, Any], request_id: str, model: str, tool_format: ToolFormat
) -> ResponseRequest:
    """The request of a body.

    Args:
        values: the body's JSON object.
        model: served name.
        tool_format: of the model's calls.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    refuse_rows(values, RESPONSES_TABLE)
    body = validated(ResponsesBody, values)
    turns = InputTurns(body.instructions or "", body.input)
    tools, known_tools = response_tools(body, tool_format)
    request = sampled_request(body, body.max_output_tokens)
    request.request_id = request_id
    include, num_top = body.include or (), body.top_logprobs or 0
    has_logprobs = num_top > 0 or "message.output_text.logprobs" in include
    request.output.logprobs, request.output.top_logprobs = has_logprobs, num_top
    names = _NAMES | _set_language(body, tools, request)
    reasoning = body.reasoning or ReasoningParameters()
    kwargs = body.chat_template_kwargs
    chat = pb.ChatRequest(
        messages=turns.messages(),
        request=request,
        template_kwargs_json="" if kwargs is None else json.dumps(kwargs),
        parse_special_tokens=bool(body.parse_special_tokens),
        reasoning=pb.ReasoningOptions(effort=reasoning.effort or ""),
    )
    tools.apply(chat)
    return ResponseRequest(
        request=chat,
        turns=turns,
        tools=tools,
        options=OutputOptions(
            tools=known_tools,
            has_logprobs=has_logprobs,
            in_summary=(reasoning.summary or reasoning.generate_summary) is not None,
            is_sealed="reasoning.encrypted_content" in include,
        ),
        num_top=num_top,
        stream=bool(body.stream),
        names=names,
        response=_response(body, values, f"resp_{request_id}", model),
    )


def _set_language(
    body: ResponsesBody, tools: ToolUse, request: pb.GenerateRequest
) -> dict[str, str]:
    """Sets the language that text.format names; returns names of its fields, or of the tools'."""
    names = set_language(request, _languages(body))
    if names and tools.constraint is not None:
        raise invalid_field("tool_choice", "forces a call, and text.format names a language")
    return {**tools.fields, **names}


def _languages(body: ResponsesBody) -> Languages:
    wanted = None if body.text is None else body.text.format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [("text.format", "json_object", True)]
    if wanted.schema_ is None:
        raise invalid_field("text.format", "has no schema; send {type, name, schema}")
    text = schema_text(wanted.schema_, bool(wanted.strict))
    return [("text.format.schema", "json_schema", text)]


def _response(
    body: ResponsesBody, values: Mapping[str, Any], response_id: str, model: str
) -> Response:
    """A response without output; what was not sent is as the server has it."""
    reasoning = body.reasoning or ReasoningParameters()
    text = values.get("text") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": _sent(values, "max_tool_calls", int),
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": _sent(values, "prompt_cache_key", str),
        "reasoning": {
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        "safety_identifier": _sent(values, "safety_identifier", str),
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_tool(tool) for tool in values.get("tools") or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": _sent(values, "user", str),
    }


def _tool(sent: dict[str, Any]) -> dict[str, Any]:
    """A tool as it was sent; a function has its keys also where they were not."""
    return {"parameters": None, "strict": None, **sent} if sent["type"] == "function" else sent


def _sent(values: Mapping[str, Any], name: str, kind: type) -> Any:
    """A parameter that is ignored but for its repetition; None of another type."""
    value = values.get(name)
    return value if isinstance(value, kind) else None
