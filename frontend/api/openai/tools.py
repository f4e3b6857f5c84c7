"""Tools: what the template gets, what the output is held to, and which reader finds the calls.

Owns ``tools``, ``tool_choice`` and ``parallel_tool_calls``. `tool_calls.py` reads the calls.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontend.api.openai.request_models import ChatBody, Tool
from frontend.api.openai.tool_calls import (
    CallsInText,
    ListOfCalls,
    NamedCall,
    PlainText,
    TurnReader,
)
from frontend.bounds import MAX_TOOLS
from frontend.errors import invalid_field


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How one request uses tools.

    Attributes:
        tools_json: the tools, for the template; empty without tools.
        schema_json: JSON schema of the whole output, when the model must call; empty otherwise.
        reader: makes the reader of one choice's text.
    """

    tools_json: str = ""
    schema_json: str = ""
    reader: Callable[[], TurnReader] = PlainText


def tool_use(body: ChatBody, tools: Any) -> ToolUse:
    """How a request uses its tools.

    Args:
        tools: the parameter as it was sent; the template gets every key of it.

    Raises:
        RequestError: a tool has no name, or the choice is none of the tools.
    """
    functions = _functions(body.tools or ())
    name = _choice(body.tool_choice, functions)
    if not functions or name == "none":
        return ToolUse()
    tools_json = json.dumps(tools)
    if name == "auto":
        return ToolUse(tools_json=tools_json, reader=CallsInText)
    if name == "required":
        schema = _calls_schema(functions, is_parallel=body.parallel_tool_calls is not False)
        return ToolUse(tools_json=tools_json, schema_json=json.dumps(schema), reader=ListOfCalls)
    named = name.removeprefix("function:")
    return ToolUse(
        tools_json=tools_json,
        schema_json=json.dumps(functions[named]),
        reader=lambda: NamedCall(named),
    )


def _functions(tools: Sequence[Tool]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each function's arguments, by name."""
    if len(tools) > MAX_TOOLS:
        raise invalid_field("tools", f"has {len(tools)} tools, at most {MAX_TOOLS} are taken")
    functions = {}
    for index, tool in enumerate(tools):
        function = tool.function
        if function is None or not function.name:
            raise invalid_field(f"tools[{index}].function", "has no name; send {name, parameters}")
        functions[function.name] = function.parameters or {"type": "object"}
    return functions


def _choice(chosen: Any, functions: Mapping[str, object]) -> str:
    """none, auto, required, or ``function:`` and a name."""
    if chosen is None:
        return "auto"
    if isinstance(chosen, dict):
        function = chosen.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in functions:
            raise invalid_field("tool_choice", "names no function of tools")
        return f"function:{name}"
    if chosen not in ("none", "auto", "required"):
        raise invalid_field("tool_choice", "must be none, auto, required or a function of tools")
    if chosen == "required" and not functions:
        raise invalid_field("tool_choice", "is required, and there are no tools")
    return str(chosen)


def _calls_schema(functions: Mapping[str, object], *, is_parallel: bool) -> dict[str, Any]:
    """Schema of a list of at least one call, each with a name and that function's arguments."""
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
    return schema if is_parallel else {**schema, "maxItems": 1}
