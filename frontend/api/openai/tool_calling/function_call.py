"""The older form of tool calls, ``function_call``: one call a turn, without an id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from frontend.api.openai.response_models import ChatDelta, ChatMessage
from frontend.api.openai.tool_calling.tool_calls import TurnReader


class OlderForm:
    """A reader whose calls are told as ``function_call``. It finds one call at most.

    Args:
        inner: makes the reader.
    """

    def __init__(self, inner: Callable[[], TurnReader]) -> None:
        self.num_calls = 0
        self._inner = inner()

    def push(self, text: str) -> list[ChatDelta]:
        """The inner reader's deltas, in the older form."""
        return self._told(self._inner.push(text))

    def flush(self) -> list[ChatDelta]:
        """The inner reader's last deltas, in the older form."""
        return self._told(self._inner.flush())

    def _told(self, deltas: list[ChatDelta]) -> list[ChatDelta]:
        self.num_calls = self._inner.num_calls
        return [_older(delta) for delta in deltas]


def _older(delta: ChatDelta) -> ChatDelta:
    for call in delta.get("tool_calls", ()):
        return {"function_call": call["function"]}
    return delta


def with_function_call(message: ChatMessage, parts: Sequence[ChatDelta]) -> ChatMessage:
    """The assistant's turn with the call that some deltas hold, if any."""
    calls = [delta["function_call"] for delta in parts if "function_call" in delta]
    if not calls:
        return message
    arguments = "".join(call["arguments"] for call in calls)
    content = message["content"] or None
    call = {"name": calls[0]["name"], "arguments": arguments}
    return {**message, "content": content, "function_call": call}  # type: ignore[typeddict-item]
