"""One response as it grows: its items, the events of its stream with their numbers, and its end.

Owns which event of a turn belongs to which item, and the order of events. A whole answer is the
same without the events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.openai.errors import ApiError
from frontend.api.openai.generation import FINISH_REASONS
from frontend.api.openai.response_models import TokenLogprob
from frontend.api.openai.responses.item_events import Events
from frontend.api.openai.responses.objects import (
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
)
from frontend.api.openai.responses.output_calls import CustomCall, FunctionCall
from frontend.api.openai.responses.output_texts import Message, Reasoning
from frontend.api.openai.responses.tools import ClientTool
from frontend.api.openai.tool_calling.turn_parts import new_call_id
from frontend.processing.tool_calls.events import Arguments, CallBegun, Text
from frontend.service.turns import Ended, TurnDelta
from frontend.service.turns import Reasoning as Thoughts
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How a request wants its output.

    Attributes:
        tools: as the client knows them, by the names that the model is shown.
        has_logprobs: messages have those of their tokens.
        in_summary, is_sealed: see `Reasoning`.
    """

    tools: Mapping[str, ClientTool] = dataclasses.field(default_factory=dict)
    has_logprobs: bool = False
    in_summary: bool = False
    is_sealed: bool = False


class ResponseStream:
    """A response that grows.

    Args:
        response: without output; it is changed.
        size: counts what the response's end repeats.

    Attributes:
        response: as far as it has come.
    """

    def __init__(self, response: Response, options: OutputOptions, size: AnswerSize) -> None:
        self.response = response
        self._options = options
        self._size = size
        self._open: Message | Reasoning | FunctionCall | CustomCall | None = None
        self._blanks = ""  # content, unless a call comes next
        self._logprobs: list[TokenLogprob] = []  # of text that was not told yet
        self._num_events = 0

    def begin(self) -> Events:
        """The first events."""
        return self._numbered(
            [
                self._lifecycle("response.created"),
                self._lifecycle("response.in_progress"),
            ]
        )

    def add(self, delta: TurnDelta, logprobs: list[TokenLogprob]) -> Events:
        """Go on with what one message of the service adds.

        Raises:
            RequestError: the answer has become too large.
        """
        self._size.count(len(delta.message.text) + len(delta.message.reasoning))
        if not isinstance(self._open, Reasoning) or delta.message.text:
            self._logprobs += logprobs
        events: Events = []
        for event in delta.events:
            match event:
                case Thoughts(text):
                    self._logprobs = []
                    events += self._think(text)
                case Text(text):
                    events += self._say(text)
                case CallBegun():
                    self._logprobs = []
                    events += self._call(event)
                case Arguments(_, text):
                    assert isinstance(self._open, FunctionCall | CustomCall), "its call begins it"
                    events += self._open.add(text)
        if delta.ended is not None:
            events += self._end_turn(delta.ended)
        return self._numbered(events)

    def end(self, usage: pb.Usage) -> Events:
        """The last event."""
        self.response["usage"] = _usage(usage)
        return self._numbered([self._lifecycle(f"response.{self.response['status']}")])

    def fail(self, error: ApiError) -> Events:
        """The last events of a stream that failed: the error, and the response with it."""
        detail = error.body["error"]
        told: ResponseEvent = {
            "type": "error",
            "code": detail["code"],
            "message": detail["message"],
            "param": detail["param"],
            "error": detail,  # where OpenAI's own package seeks it
        }
        self.response["status"] = "failed"
        self.response["error"] = _failure(error)
        return self._numbered([told, self._lifecycle("response.failed")])

    def _think(self, text: str) -> Events:
        events: Events = []
        if not isinstance(self._open, Reasoning):
            in_summary, is_sealed = self._options.in_summary, self._options.is_sealed
            events += self._close()
            item = Reasoning(self._index, in_summary=in_summary, is_sealed=is_sealed)
            self._open = item
            events += item.begin()
        assert isinstance(self._open, Reasoning)
        return events + self._open.add(text)

    def _say(self, text: str) -> Events:
        if isinstance(self._open, Message):
            return self._add_text(self._open, text)
        text, self._blanks = self._blanks + text, ""
        if not text.strip():
            self._blanks = text
            return []
        return self._begin_message(text)

    def _begin_message(self, text: str) -> Events:
        events = self._close()
        kept = JsonArray(self._size) if self._options.has_logprobs else None
        self._open = message = Message(self._index, kept)
        return events + message.begin() + (self._add_text(message, text) if text else [])

    def _add_text(self, message: Message, text: str) -> Events:
        logprobs, self._logprobs = self._logprobs, []
        return message.add(text, logprobs)

    def _call(self, begun: CallBegun) -> Events:
        self._blanks = ""
        events = self._close()
        tool = self._options.tools[begun.name]
        kind = CustomCall if tool.is_custom else FunctionCall
        self._open = call = kind(self._index, tool, begun.id or new_call_id())
        return events + call.begin()

    def _end_turn(self, ended: Ended) -> Events:
        """The end of the open item, and the response's status."""
        is_cut = FINISH_REASONS[ended.reason] == "length"
        events: Events = []
        if isinstance(self._open, Message):
            if self._logprobs:  # of tokens without text
                events += self._add_text(self._open, "")
        elif not ended.num_calls and (self._blanks or not is_cut):
            events += self._begin_message(self._blanks)
        events += self._close(is_cut)
        self.response["status"] = "incomplete" if is_cut else "completed"
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return events

    @property
    def _index(self) -> int:
        """Of an item that begins when no other is open."""
        return len(self.response["output"])

    def _close(self, is_cut: bool = False) -> Events:
        """The end of the open item."""
        if self._open is None:
            return []
        events, self._open = self._open.end(is_cut), None
        self.response["output"].append(events[-1]["item"])
        return events

    def _lifecycle(self, kind: str) -> ResponseEvent:
        told = {**self.response, "output": [*self.response["output"]]}
        return {"type": kind, "response": cast(Response, told)}

    def _numbered(self, events: Events) -> Events:
        for number, event in enumerate(events, start=self._num_events):
            event["sequence_number"] = number
        self._num_events += len(events)
        return events


def _usage(usage: pb.Usage) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_prompt_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _failure(error: ApiError) -> ResponseError:
    """The error in the few words that a response has for it."""
    message = error.body["error"]["message"]
    if error.status_code >= 500:
        return {"code": "server_error", "message": message}
    is_busy = error.status_code == 429
    return {"code": "rate_limit_exceeded" if is_busy else "invalid_prompt", "message": message}
