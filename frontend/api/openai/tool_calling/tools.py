"""Tools: what the template gets, what the output is held to, and which reader finds the calls.

Owns ``tools``, ``tool_choice``, ``parallel_tool_calls``, and ``functions`` and ``function_call``,
which are their older form. `tool_calls.py` reads the calls.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from frontend.api.openai.parameters.models import AllowedTools, ChatBody, Function, NamedTool
from frontend.api.openai.tool_calling.function_call import OlderForm
from frontend.api.openai.tool_calling.tool_calls import (
    CallsInText,
    ListOfCalls,
    NamedCall,
    PlainText,
    TurnReader,
)
from frontend.bounds import MAX_TOOLS
from frontend.errors import invalid_field
from frontend.processing.constraints.schema_edit import Schema, closed, moved, without_remarks


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How one request uses tools.

    Attributes:
        tools_json: the tools, for the template; empty without tools.
        schema_json: JSON schema of the whole output, when the model must call; empty otherwise.
        schema_field: the parameter that this schema comes from.
        reader: makes the reader of one choice's text.
        is_legacy: the request has ``functions``, and its answer ``function_call``.
    """

    tools_json: str = ""
    schema_json: str = ""
    schema_field: str = ""
    reader: Callable[[], TurnReader] = PlainText
    is_legacy: bool = False


NO_TOOLS = ToolUse()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """One function.

    Attributes:
        sent: what the template is given.
        parameters: JSON schema of the arguments.
        field: names the schema in errors.
    """

    sent: Any
    parameters: Schema
    field: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What may be called, and whether something must be.

    Attributes:
        mode: none, auto, required or named.
        names: functions that may be called.
    """

    mode: str
    names: tuple[str, ...]


def tool_use(body: ChatBody, values: Mapping[str, Any]) -> ToolUse:
    """How a request uses its tools.

    Args:
        values: the parameters as they were sent; the template gets every key of a tool.

    Raises:
        RequestError: a tool has no name, the choice is none of the tools, or a schema cannot stand
            beside others.
    """
    is_legacy = not body.tools and body.functions is not None
    tools = _older_tools(body, values) if is_legacy else _tools(body, values)
    choice = _older_choice(body.function_call, tools) if is_legacy else _choice(body, tools)
    if not choice.names or choice.mode == "none":
        return NO_TOOLS
    schema, field, reader = _language(body, choice, tools, is_legacy)
    # By name, the others are shown too, as they are in the model's other turns.
    shown = tools if choice.mode == "named" else choice.names
    return ToolUse(
        tools_json=json.dumps([tools[name].sent for name in shown]),
        schema_json="" if schema is None else json.dumps(without_remarks(schema)),
        schema_field=field,
        reader=reader,
        is_legacy=is_legacy,
    )


def _language(
    body: ChatBody, choice: _Choice, tools: Mapping[str, _Tool], is_legacy: bool
) -> tuple[Schema | None, str, Callable[[], TurnReader]]:
    """The schema that the output is held to, the parameter it comes from, and its reader."""
    names = choice.names
    match choice.mode:
        case "named":
            tool = tools[names[0]]
            named = functools.partial(NamedCall, names[0])
            return tool.parameters, tool.field, _older(named) if is_legacy else named
        case "required":
            schema = _calls_schema(
                {name: tools[name] for name in names},
                max_calls=1 if body.parallel_tool_calls is False else None,
            )
            return schema, "tools", functools.partial(ListOfCalls, names)
        case _ if is_legacy:
            return None, "", _older(functools.partial(CallsInText, names, max_calls=1))
        case _:
            return None, "", functools.partial(CallsInText, names)


def _older(reader: Callable[[], TurnReader]) -> Callable[[], TurnReader]:
    return functools.partial(OlderForm, reader)


def _tools(body: ChatBody, values: Mapping[str, Any]) -> dict[str, _Tool]:
    """The functions of ``tools``, by name."""
    tools = {}
    for index, tool in enumerate(body.tools or ()):
        path = f"tools[{index}].function"
        name, parameters = _named(tool.function, path)
        sent = values["tools"][index]
        tools[name] = _Tool(sent=sent, parameters=parameters, field=f"{path}.parameters")
    return _counted("tools", tools, len(body.tools or ()))


def _older_tools(body: ChatBody, values: Mapping[str, Any]) -> dict[str, _Tool]:
    """The functions of ``functions``, by name."""
    tools = {}
    for index, function in enumerate(body.functions or ()):
        path = f"functions[{index}]"
        name, parameters = _named(function, path)
        sent = {"type": "function", "function": values["functions"][index]}
        tools[name] = _Tool(sent=sent, parameters=parameters, field=f"{path}.parameters")
    return _counted("functions", tools, len(body.functions or ()))


def _named(function: Function | None, path: str) -> tuple[str, Schema]:
    if function is None or not function.name:
        raise invalid_field(path, "has no name; send {name, parameters}")
    parameters = function.parameters or {"type": "object"}
    return function.name, closed(parameters) if function.strict else parameters


def _counted(field: str, tools: dict[str, _Tool], count: int) -> dict[str, _Tool]:
    if count > MAX_TOOLS:
        raise invalid_field(field, f"has {count} tools, at most {MAX_TOOLS} are taken")
    return tools


def _choice(body: ChatBody, tools: Mapping[str, object]) -> _Choice:
    chosen = "auto" if body.tool_choice is None else body.tool_choice
    if isinstance(chosen, dict):
        return _object_choice(chosen, tools)
    if chosen not in ("none", "auto", "required"):
        raise invalid_field(
            "tool_choice", "must be none, auto, required, a function of tools or allowed_tools"
        )
    if chosen == "required" and not tools:
        raise invalid_field("tool_choice", "is required, and there are no tools")
    return _Choice(mode=str(chosen), names=tuple(tools))


def _object_choice(chosen: dict[str, Any], tools: Mapping[str, object]) -> _Choice:
    """A function by name, or some of the tools."""
    try:
        if chosen.get("type") != "allowed_tools":
            named = NamedTool.model_validate({"type": "function", **chosen})
            mode, wanted = "named", [named.function.name]
        else:
            allowed = AllowedTools.model_validate(chosen).allowed_tools
            mode, wanted = allowed.mode, [tool.function.name for tool in allowed.tools]
    except ValidationError as error:
        raise invalid_field(
            "tool_choice",
            'must be {"type": "function", "function": {"name": …}} or {"type": "allowed_tools", '
            '"allowed_tools": {"mode": "auto" or "required", "tools": […]}}',
        ) from error
    return _Choice(mode=mode, names=_among(wanted, tools, "tool_choice", "tools"))


def _older_choice(chosen: Any, tools: Mapping[str, object]) -> _Choice:
    if chosen in (None, "none", "auto"):
        return _Choice(mode=chosen or "auto", names=tuple(tools))
    name = chosen.get("name") if isinstance(chosen, dict) else None
    if not isinstance(name, str):
        raise invalid_field("function_call", 'must be none, auto or {"name": …}')
    return _Choice(mode="named", names=_among([name], tools, "function_call", "functions"))


def _among(
    wanted: list[str], tools: Mapping[str, object], field: str, among: str
) -> tuple[str, ...]:
    if not wanted or not set(wanted) <= tools.keys():
        raise invalid_field(
            field,
            f"names no function of {among}"
            if len(wanted) < 2
            else f"names a function that is none of {among}",
        )
    return tuple(name for name in tools if name in wanted)


def _calls_schema(tools: Mapping[str, _Tool], max_calls: int | None) -> Schema:
    """Schema of a list of at least one call, each with a name and that function's arguments.

    Each tool's own schema stands whole among the definitions, so that equal names in two of them
    stay apart.
    """
    definitions, calls = {}, []
    for index, (name, tool) in enumerate(tools.items()):
        pointer = f"#/$defs/{index}"
        definitions[str(index)] = moved(tool.parameters, pointer, tool.field)
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
