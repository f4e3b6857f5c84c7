"""Calls of a response's output as they grow, and the events that tell of them."""

from __future__ import annotations

from frontend.api.openai.responses.custom_input import CustomInput
from frontend.api.openai.responses.item_events import Events, added, done, event, new_id
from frontend.api.openai.responses.objects import (
    ItemStatus,
    OutputCustomCall,
    OutputFunctionCall,
)
from frontend.api.openai.responses.tools import ClientTool
from frontend.processing.tool_calls.json_objects import is_json_object


class FunctionCall:
    """A call of a function."""

    def __init__(self, index: int, tool: ClientTool, call_id: str) -> None:
        self.index = index
        self._id = new_id("fc")
        self._tool, self._call_id = tool, call_id
        self._arguments: list[str] = []

    def begin(self) -> Events:
        """The item without arguments."""
        return [added(self.index, self.item("in_progress"))]

    def add(self, arguments: str) -> Events:
        """New text of the arguments."""
        self._arguments.append(arguments)
        kind = "response.function_call_arguments.delta"
        return [event(kind, self.index, self._id, delta=arguments)]

    def end(self, is_cut: bool) -> Events:
        """All arguments, and the item; it is complete where they are a whole JSON object."""
        arguments = "".join(self._arguments)
        kind = "response.function_call_arguments.done"
        told = event(kind, self.index, self._id, name=self._tool.name, arguments=arguments)
        return [told, done(self, is_cut and not is_json_object(arguments))]

    def item(self, status: ItemStatus) -> OutputFunctionCall:
        """The item as it is."""
        item: OutputFunctionCall = {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._tool.name,
            "arguments": "".join(self._arguments),
        }
        if self._tool.namespace is not None:
            item["namespace"] = self._tool.namespace
        return item


class CustomCall:
    """A call of a custom tool, read from the arguments that the model writes."""

    def __init__(self, index: int, tool: ClientTool, call_id: str) -> None:
        self.index = index
        self._id = new_id("ctc")
        self._tool, self._call_id = tool, call_id
        self._reader = CustomInput()
        self._input: list[str] = []

    def begin(self) -> Events:
        """The item without input."""
        return [added(self.index, self.item("in_progress"))]

    def add(self, arguments: str) -> Events:
        """New text of the arguments."""
        return self._told(self._reader.push(arguments))

    def end(self, is_cut: bool) -> Events:
        """The whole input, and the item."""
        events = self._told(self._reader.flush())
        kind = "response.custom_tool_call_input.done"
        events.append(event(kind, self.index, self._id, input="".join(self._input)))
        return [*events, done(self, is_cut and not self._reader.is_done)]

    def item(self, status: ItemStatus) -> OutputCustomCall:
        """The item as it is."""
        item: OutputCustomCall = {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._tool.name,
            "input": "".join(self._input),
        }
        if self._tool.namespace is not None:
            item["namespace"] = self._tool.namespace
        return item

    def _told(self, text: str) -> Events:
        if not text:
            return []
        self._input.append(text)
        kind = "response.custom_tool_call_input.delta"
        return [event(kind, self.index, self._id, delta=text)]
