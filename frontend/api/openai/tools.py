"""Tools: what the template is given, what the output is held to, and who reads the calls from it.

Owns ``tools`` and ``tool_choice``. `tool_calls.py` reads the calls themselves.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from frontend.api.openai.json_fields import Fields
from frontend.api.openai.tool_calls import (
    CallsInText,
    ListOfCalls,
    NamedCall,
    PlainText,
    TurnReader,
)
from frontend.bounds import MAX_TOOLS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How one request uses tools.

    Attributes:
        tools_json: for the template; empty without tools.
        schema_json: JSON schema of the whole output, when the model must call; empty otherwise.
        reader: makes what reads one choice's text.
    """

    tools_json: str = ""
    schema_json: str = ""
    reader: Callable[[], TurnReader] = PlainText


def tool_use(fields: Fields) -> ToolUse:
    """Read ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    Raises:
        RequestError: a tool is no function, or the choice is none of them.
    """
    functions = _functions(fields)
    name = _choice(fields, functions)
    if not functions or name == "none":
        return ToolUse()
    tools_json = json.dumps(fields.raw("tools"))
    if name == "auto":
        return ToolUse(tools_json=tools_json, reader=CallsInText)
    if name == "required":
        schema = _calls_schema(functions, fields.flag("parallel_tool_calls", default=True))
        return ToolUse(tools_json=tools_json, schema_json=json.dumps(schema), reader=ListOfCalls)
    named = name.removeprefix("function:")
    return ToolUse(
        tools_json=tools_json,
        schema_json=json.dumps(functions[named]),
        reader=lambda: NamedCall(named),
    )


def _functions(fields: Fields) -> dict[str, dict[str, Any]]:
    """The JSON schema of each function's arguments, by name."""
    tools = fields.children("tools")
    if len(tools) > MAX_TOOLS:
        raise fields.wrong("tools", f"has {len(tools)} tools, at most {MAX_TOOLS} are taken")
    functions = {}
    for tool in tools:
        if tool.text("type") != "function":
            raise tool.wrong("type", "must be function")
        function = tool.child("function")
        name = function.text("name") if function else None
        if not function or not name:
            raise tool.wrong("function", "has no name; send {name, parameters}")
        function.child("parameters")
        functions[name] = function.raw("parameters") or {"type": "object"}
    return functions


def _choice(fields: Fields, functions: dict[str, dict[str, Any]]) -> str:
    """none, auto, required, or ``function:`` and a name."""
    chosen = fields.raw("tool_choice")
    if chosen is None:
        return "auto"
    if isinstance(chosen, dict):
        function = Fields(chosen, "tool_choice.").child("function")
        name = function.text("name") if function else None
        if name is None or name not in functions:
            raise fields.wrong("tool_choice", "names no function of tools")
        return f"function:{name}"
    if chosen not in ("none", "auto", "required"):
        raise fields.wrong("tool_choice", "must be none, auto, required or a function of tools")
    if chosen == "required" and not functions:
        raise fields.wrong("tool_choice", "is required, and there are no tools")
    return str(chosen)


def _calls_schema(functions: dict[str, dict[str, Any]], parallel: bool) -> dict[str, Any]:
    """A list of at least one call, each of a name and the arguments that go with it."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, parameters in functions.items()
    ]
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    return schema if parallel else {**schema, "maxItems": 1}
