"""How one request uses tools: what the template gets, what the output is held to, and which reader
finds the calls.

Knows no API.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

from frontend.errors import invalid_field
from frontend.processing.constraints.schema_edit import Schema, moved, without_remarks
from frontend.processing.tool_calls.format import PlainText, ToolFormat, TurnReader
from frontend.processing.tool_calls.held_output import ListOfCalls, NamedCall
from frontend.processing.tool_calls.tools import Tool, ToolChoice
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How one request uses tools.

    Attributes:
        tools_json: the tools, for `switchyard.v1.ChatRequest`; empty without tools.
        constraint: of the whole output, when the model must call.
        strict: what calls keep to, when the model may call and a tool is strict.
        fields: of the constraint's fields, OpenAI's names: of what they come from.
        reader: makes the reader of one turn's text.
        kept_tokens: special tokens that the reader needs to see.
    """

    tools_json: str = ""
    constraint: pb.Constraint | None = None
    strict: pb.Constraint | None = None
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reader: Callable[[], TurnReader] = PlainText
    kept_tokens: Sequence[str] = ()

    def apply(self, chat: pb.ChatRequest) -> None:
        """Sets what a chat needs for these tools. It may have no constraint where the model must
        call.
        """
        chat.tools_json = self.tools_json
        chat.request.output.kept_tokens.extend(self.kept_tokens)
        if self.constraint is not None:
            chat.request.constraint.CopyFrom(self.constraint)
        elif self.strict is not None and _is_free(chat.request):
            chat.request.constraint.CopyFrom(self.strict)


NO_TOOLS = ToolUse()


def tool_use(
    tools: Sequence[Tool], choice: ToolChoice, tool_format: ToolFormat, *, parallel: bool = True
) -> ToolUse:
    """How a request uses its tools.

    Args:
        tools: of different names.
        parallel: a turn may have several calls.

    Raises:
        RequestError: a schema cannot stand beside others.
    """
    if not choice.names or choice.mode == "none":
        return NO_TOOLS
    callable_tools = {tool.name: tool for tool in tools if tool.name in choice.names}
    # By name, the others are shown too, as they are in the model's other turns.
    shown = tools if choice.mode == "named" else callable_tools.values()
    tools_json = json.dumps([tool.sent for tool in shown])
    max_calls = None if parallel else 1
    use = ToolUse(
        tools_json=tools_json,
        reader=functools.partial(tool_format.reader, callable_tools, max_calls),
        kept_tokens=tool_format.kept_tokens,
    )
    if choice.mode == "auto":
        begun = None
        if any(tool.strict for tool in callable_tools.values()):
            begun = tool_format.held_where_begun([*callable_tools.values()], parallel=parallel)
        if begun is None:
            return use
        return dataclasses.replace(use, strict=begun.constraint, fields=begun.fields)
    is_named = choice.mode == "named"
    held = tool_format.held([*callable_tools.values()], parallel=parallel and not is_named)
    if held is None:
        return _json_use(tools_json, callable_tools, max_calls, is_named=is_named)
    return dataclasses.replace(
        use,
        reader=functools.partial(tool_format.reader, callable_tools, is_held=True),
        constraint=held.constraint,
        fields=held.fields,
    )


def _is_free(request: pb.GenerateRequest) -> bool:
    """Whether nothing else narrows the output, which could leave no token of a call. Its last one
    may be an end token.
    """
    sampling, stops = request.sampling, request.stop_conditions
    others = (sampling.allowed_token_ids, sampling.bad_token_ids, sampling.bad_words)
    return not request.HasField("constraint") and not any((*others, stops.min_new_tokens))


def _json_use(
    tools_json: str, tools: Mapping[str, Tool], max_calls: int | None, *, is_named: bool
) -> ToolUse:
    """Calls as JSON, of a model in whose own form they cannot be asked for."""
    if is_named:
        [tool] = tools.values()
        schema, field = tool.schema, tool.field
        reader: Callable[[], TurnReader] = functools.partial(NamedCall, tool.name)
    else:
        schema, field = _calls_schema(tools, max_calls), "tools"
        reader = functools.partial(ListOfCalls, tools)
    return ToolUse(
        tools_json=tools_json,
        constraint=pb.Constraint(json_schema=json.dumps(without_remarks(schema))),
        fields={"constraint": field, "constraint.json_schema": field},
        reader=reader,
    )


def _calls_schema(tools: Mapping[str, Tool], max_calls: int | None) -> Schema:
    """Schema of a list of at least one call, each with a name and that function's arguments.

    Each tool's own schema stands whole among the definitions, so that equal names in two of them
    stay apart.
    """
    definitions, calls = {}, []
    for index, (name, tool) in enumerate(tools.items()):
        pointer = f"#/$defs/{index}"
        definitions[str(index)] = moved(tool.schema, pointer, tool.field)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": pointer}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: Schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if max_calls is not None:
        schema["maxItems"] = max_calls
    dialects = {json.dumps(tool.parameters.get("$schema")) for tool in tools.values()} - {"null"}
    if len(dialects) > 1:
        raise invalid_field("tools", "have different values of $schema; send one")
    if dialects:
        schema["$schema"] = json.loads(dialects.pop())
    return {**schema, "$defs": definitions}
