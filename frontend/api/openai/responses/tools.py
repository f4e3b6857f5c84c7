"""``tools``, ``tool_choice`` and ``parallel_tool_calls`` of /v1/responses, as tools and a choice.

The model is shown functions alone: a custom tool is one of one string, and what is in a namespace
has that before its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from frontend.api.openai.responses.custom_input import PARAMETERS
from frontend.api.openai.responses.models import (
    AllowedResponsesTools,
    ChosenTool,
    ResponsesBody,
    ResponsesTool,
)
from frontend.api.openai.tool_calling.tools import among, chosen_by_word, counted
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import NO_TOOLS, ToolUse, tool_use
from frontend.processing.tool_calls.tools import Mode, Tool, ToolChoice


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientTool:
    """A tool as the client knows it.

    Attributes:
        namespace: None: it is in none.
        is_custom: its input is text.
    """

    name: str
    namespace: str | None = None
    is_custom: bool = False


def shown_name(name: str, namespace: str | None) -> str:
    """The name of a tool that the model is shown, which knows no namespaces."""
    return name if not namespace else f"{namespace.removesuffix('__')}__{name}"


def response_tools(
    body: ResponsesBody, tool_format: ToolFormat
) -> tuple[ToolUse, dict[str, ClientTool]]:
    """How a request uses its tools, and each as the client knows it, by the name that is shown.

    Raises:
        RequestError: a tool is of another type or has no name, the choice is none of the tools, or
            a schema cannot stand beside others.
    """
    if body.tools is None and body.tool_choice is None:
        return NO_TOOLS, {}
    tools: dict[str, Tool] = {}
    known: dict[str, ClientTool] = {}
    count = 0
    for tool, namespace, path in _flat(body.tools or ()):
        named = _tool(tool, namespace, path)
        tools[named.name] = named
        known[named.name] = ClientTool(
            name=tool.name or "", namespace=namespace, is_custom=tool.type == "custom"
        )
        count += 1
    choice = _choice(body.tool_choice, counted("tools", tools, count))
    parallel = body.parallel_tool_calls is not False
    return tool_use([*tools.values()], choice, tool_format, parallel=parallel), known


def _flat(tools: Sequence[ResponsesTool]) -> Iterator[tuple[ResponsesTool, str | None, str]]:
    """Every tool with its namespace and its place."""
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if tool.type != "namespace":
            yield tool, None, path
            continue
        for inner, each in enumerate(tool.tools or ()):
            yield each, tool.name, f"{path}.tools[{inner}]"


def _tool(tool: ResponsesTool, namespace: str | None, path: str) -> Tool:
    if tool.type not in ("function", "custom"):
        raise invalid_field(
            f"{path}.type",
            f"is {tool.type[:32]}, and this server runs no tools; leave it out, or offer a "
            "function or a custom tool that the client runs",
        )
    if not tool.name:
        raise invalid_field(path, "has no name; send {type, name}")
    parameters = tool.parameters or {"type": "object"}
    if tool.type == "custom":
        if tool.format is not None and tool.format.type != "text":
            raise invalid_field(
                f"{path}.format.type",
                f"is {tool.format.type[:32]}, and a custom tool's input is held to no grammar; "
                "send text, and the grammar in the tool's description",
            )
        parameters = PARAMETERS
    name = shown_name(tool.name, namespace)
    shown: dict[str, Any] = {"name": name, "parameters": parameters}
    if tool.description is not None:
        shown["description"] = tool.description
    return Tool(
        name=name,
        parameters=parameters,
        strict=bool(tool.strict),
        sent={"type": "function", "function": shown},
        field=f"{path}.parameters",
    )


def _choice(chosen: Any, tools: Mapping[str, object]) -> ToolChoice:
    match chosen:
        case None | "none" | "auto" | "required" as word:
            return chosen_by_word(word, tools)
    mode, names = _object_choice(chosen)
    return ToolChoice(mode=mode, names=among(names, tools, "tool_choice", "tools"))


def _object_choice(chosen: Any) -> tuple[Mode, list[str]]:
    """A tool by name, or some of the tools."""
    is_allowed = isinstance(chosen, dict) and chosen.get("type") == "allowed_tools"
    try:
        if is_allowed:
            allowed = AllowedResponsesTools.model_validate(chosen)
            return allowed.mode, [tool.name for tool in allowed.tools]
        return "named", [ChosenTool.model_validate(chosen).name]
    except ValidationError as error:
        raise invalid_field(
            "tool_choice",
            'must be none, auto, required, {"type": "function" or "custom", "name": …} or '
            '{"type": "allowed_tools", "mode": "auto" or "required", "tools": […]}',
        ) from error
