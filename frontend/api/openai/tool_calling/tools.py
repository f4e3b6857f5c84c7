"""``tools``, ``tool_choice`` and ``parallel_tool_calls`` of OpenAI, and their older form, which is
``functions`` and ``function_call``, as tools and a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from frontend.api.openai.parameters.models import AllowedTools, ChatBody, Function, NamedTool
from frontend.bounds import MAX_TOOLS
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import NO_TOOLS, ToolUse, tool_use
from frontend.processing.tool_calls.tools import Mode, Tool, ToolChoice

TOOL_PARAMETERS = {"tools", "tool_choice", "functions", "function_call"}
"""A body without these has no tools."""


def chat_tools(
    body: ChatBody, values: Mapping[str, Any], tool_format: ToolFormat
) -> tuple[ToolUse, bool]:
    """How a request uses its tools, and whether it has ``functions``.

    Args:
        values: the parameters as they were sent; the template gets every key of a tool.

    Raises:
        RequestError: a tool has no name, the choice is none of the tools, or a schema cannot stand
            beside others.
    """
    of_tools = (body.tools, body.tool_choice, body.functions, body.function_call)
    if all(value is None for value in of_tools):
        return NO_TOOLS, False
    if not body.tools and body.functions is not None:
        tools = _older_tools(body, values)
        choice = _older_choice(body.function_call, tools)
        return tool_use([*tools.values()], choice, tool_format, parallel=False), True
    tools = _tools(body, values)
    choice, parallel = _choice(body, tools), body.parallel_tool_calls is not False
    return tool_use([*tools.values()], choice, tool_format, parallel=parallel), False


def _tools(body: ChatBody, values: Mapping[str, Any]) -> dict[str, Tool]:
    """The functions of ``tools``, by name."""
    tools = {}
    for index, tool in enumerate(body.tools or ()):
        path = f"tools[{index}].function"
        named = _named(tool.function, path, values["tools"][index])
        tools[named.name] = named
    return counted("tools", tools, len(body.tools or ()))


def _older_tools(body: ChatBody, values: Mapping[str, Any]) -> dict[str, Tool]:
    """The functions of ``functions``, by name."""
    tools = {}
    for index, function in enumerate(body.functions or ()):
        path = f"functions[{index}]"
        sent = {"type": "function", "function": values["functions"][index]}
        named = _named(function, path, sent)
        tools[named.name] = named
    return counted("functions", tools, len(body.functions or ()))


def _named(function: Function | None, path: str, sent: Any) -> Tool:
    if function is None or not function.name:
        raise invalid_field(path, "has no name; send {name, parameters}")
    return Tool(
        name=function.name,
        parameters=function.parameters or {"type": "object"},
        strict=bool(function.strict),
        sent=sent,
        field=f"{path}.parameters",
    )


def counted(field: str, tools: dict[str, Tool], count: int) -> dict[str, Tool]:
    """The tools.

    Raises:
        RequestError: more than may be were sent.
    """
    if count > MAX_TOOLS:
        raise invalid_field(field, f"has {count} tools, at most {MAX_TOOLS} are taken")
    return tools


def _choice(body: ChatBody, tools: Mapping[str, object]) -> ToolChoice:
    match body.tool_choice:
        case dict(chosen):
            return _object_choice(chosen, tools)
        case None | "none" | "auto" | "required" as word:
            return chosen_by_word(word, tools)
        case _:
            raise invalid_field(
                "tool_choice", "must be none, auto, required, a function of tools or allowed_tools"
            )


def chosen_by_word(
    word: Literal["none", "auto", "required"] | None, tools: Mapping[str, object]
) -> ToolChoice:
    """A choice among all tools; None is auto.

    Raises:
        RequestError: a tool is required, and there is none.
    """
    if word == "required" and not tools:
        raise invalid_field("tool_choice", "is required, and there are no tools")
    return ToolChoice(mode=word or "auto", names=tuple(tools))


def _object_choice(chosen: dict[str, Any], tools: Mapping[str, object]) -> ToolChoice:
    """A function by name, or some of the tools."""
    mode: Mode
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
    return ToolChoice(mode=mode, names=among(wanted, tools, "tool_choice", "tools"))


def _older_choice(chosen: Any, tools: Mapping[str, object]) -> ToolChoice:
    if chosen in (None, "none", "auto"):
        return ToolChoice(mode=chosen or "auto", names=tuple(tools))
    name = chosen.get("name") if isinstance(chosen, dict) else None
    if not isinstance(name, str):
        raise invalid_field("function_call", 'must be none, auto or {"name": …}')
    return ToolChoice(mode="named", names=among([name], tools, "function_call", "functions"))


def among(
    wanted: list[str], tools: Mapping[str, object], field: str, where: str
) -> tuple[str, ...]:
    """The names that a choice has, in the order of the tools.

    Raises:
        RequestError: a name is none of the tools', or there is none.
    """
    if not wanted or not set(wanted) <= tools.keys():
        raise invalid_field(
            field,
            f"names no function of {where}"
            if len(wanted) < 2
            else f"names a function that is none of {where}",
        )
    return tuple(name for name in tools if name in wanted)
