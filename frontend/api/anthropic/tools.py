"""``tools`` and ``tool_choice`` of Anthropic as tools and a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from frontend.api.anthropic.request_models import ToolChoiceParam, ToolParam
from frontend.bounds import MAX_TOOLS
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import NO_TOOLS, ToolUse, tool_use
from frontend.processing.tool_calls.tools import Mode, Tool, ToolChoice

_MODES: Mapping[str, Mode] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}


def messages_tools(
    tools: Sequence[ToolParam] | None, choice: ToolChoiceParam | None, tool_format: ToolFormat
) -> ToolUse:
    """How a request uses its tools.

    Raises:
        RequestError: a tool is Anthropic's own or has no name, the choice is none of the tools, or
            a schema cannot stand beside others.
    """
    if not tools and choice is None:
        return NO_TOOLS
    if len(tools or ()) > MAX_TOOLS:
        raise invalid_field("tools", f"has {len(tools or ())} tools, at most {MAX_TOOLS} are taken")
    named = {}
    for index, tool in enumerate(tools or ()):
        read = _tool(tool, f"tools[{index}]")
        named[read.name] = read
    chosen = choice or ToolChoiceParam(type="auto")
    parallel = not chosen.disable_parallel_tool_use
    return tool_use([*named.values()], _choice(chosen, named), tool_format, parallel=parallel)


def _tool(tool: ToolParam, path: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise invalid_field(
            f"{path}.type",
            f"is {tool.type[:64]}, a tool of Anthropic's own; send {{name, description, "
            "input_schema} of a tool that the client runs",
        )
    if not tool.name:
        raise invalid_field(path, "has no name; send {name, description, input_schema}")
    parameters = tool.input_schema or {"type": "object"}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    if tool.description is None:
        del function["description"]
    return Tool(
        name=tool.name,
        parameters=parameters,
        strict=bool(tool.strict),
        sent={"type": "function", "function": function},
        field=f"{path}.input_schema",
    )


def _choice(choice: ToolChoiceParam, tools: Mapping[str, Tool]) -> ToolChoice:
    if choice.type == "tool":
        if choice.name is None or choice.name not in tools:
            raise invalid_field("tool_choice.name", "is none of tools; send the name of one")
        return ToolChoice(mode="named", names=(choice.name,))
    if choice.type == "any" and not tools:
        raise invalid_field("tool_choice", "is any, and there are no tools")
    return ToolChoice(mode=_MODES[choice.type], names=tuple(tools))
