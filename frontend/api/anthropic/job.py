"""POST /v1/messages, once its body is read: the chat's turn as a message or as events."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence

from frontend.api.anthropic.blocks import BlockWriter, blocks
from frontend.api.anthropic.errors import error_body, http_error
from frontend.api.anthropic.parameters import Asked
from frontend.api.anthropic.response_models import (
    AssistantMessage,
    MessageEvent,
    MessagesUsage,
    Stopped,
    StopReason,
)
from frontend.api.http.errors import HttpError
from frontend.api.http.generation import with_free_id
from frontend.api.http.long_json import AnswerSize
from frontend.errors import RequestError
from frontend.records import Caller
from frontend.service.service import Service
from frontend.service.turns import (
    Ended,
    Finished,
    Started,
    TurnDelta,
    TurnEvent,
    WholeTurn,
    turn_events,
)
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MessagesJob:
    """One message; a `frontend.api.http.generation.Job`.

    Attributes:
        model: served name.
    """

    asked: Asked
    request_id: str
    model: str
    service: Service
    caller: Caller

    names_events = True
    last_event = b""

    @property
    def stream(self) -> bool:
        """The client wants events."""
        return self.asked.stream

    async def answer(self) -> AssistantMessage:
        """The whole message."""
        turn, size, usage = WholeTurn(), AnswerSize(), pb.Usage()
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                match event:
                    case TurnDelta(message=delta):
                        size.count(len(delta.text) + len(delta.reasoning))
                        turn.add(event)
                    case Finished(usage):
                        pass
        assert turn.ended is not None, "an answer ends, or fails"
        message = self._message(usage_of(usage))
        message["content"] = blocks(turn)
        return {**message, **self._stopped(turn.ended, usage)}

    async def chunks(self) -> AsyncGenerator[Sequence[MessageEvent], None]:
        """Events as they come; the first with the first token."""
        begun, ended, writer = pb.Usage(), None, BlockWriter()
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                match event:
                    case Started(started):
                        begun.prompt_tokens = started.prompt_tokens
                        begun.cached_prompt_tokens = started.cached_prompt_tokens
                    case TurnDelta(is_first=is_first):
                        new: list[MessageEvent] = [*writer.write(event.events)]
                        if event.ended is not None:
                            ended = event.ended
                            new += writer.end()
                        if is_first:
                            message = self._message(usage_of(begun))
                            new.insert(0, {"type": "message_start", "message": message})
                        if new:
                            yield new
                    case Finished(usage):
                        assert ended is not None, "an answer ends, or fails"
                        yield [
                            {
                                "type": "message_delta",
                                "delta": self._stopped(ended, usage),
                                "usage": usage_of(usage),
                            },
                            {"type": "message_stop"},
                        ]

    def refusal(self, error: RequestError) -> HttpError:
        """The error, with the request's own names."""
        return http_error(error, self.asked.names)

    def error_events(self, error: RequestError) -> Sequence[Mapping[str, object]]:
        """Anthropic's error object."""
        refusal = self.refusal(error)
        return [error_body(refusal.status_code, refusal.detail, self.request_id)]

    def _events(self) -> AsyncGenerator[TurnEvent, None]:
        chat = self.asked.chat
        stream = with_free_id(
            lambda: self.service.chat(chat, self.caller, streams=self.stream), chat.request
        )
        return turn_events(stream, self.asked.tools.reader)

    def _message(self, usage: MessagesUsage) -> AssistantMessage:
        """One that has not ended."""
        return {
            "id": f"msg_{self.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stopped(self, ended: Ended, usage: pb.Usage) -> Stopped:
        return {"stop_reason": self._reason(ended, usage), "stop_sequence": ended.stop_text or None}

    def _reason(self, ended: Ended, usage: pb.Usage) -> StopReason:
        match ended.reason:
            case pb.FINISH_REASON_EOS | pb.FINISH_REASON_STOP if ended.stop_text:
                return "stop_sequence"
            case pb.FINISH_REASON_EOS | pb.FINISH_REASON_STOP if ended.num_calls:
                return "tool_use"
            case pb.FINISH_REASON_EOS | pb.FINISH_REASON_STOP:
                return "end_turn"
            case pb.FINISH_REASON_LENGTH if usage.completion_tokens < self._max_tokens:
                return "model_context_window_exceeded"
            case _:  # an aborted answer is as incomplete
                return "max_tokens"

    @property
    def _max_tokens(self) -> int:
        return self.asked.chat.request.stop_conditions.max_new_tokens


def usage_of(usage: pb.Usage) -> MessagesUsage:
    """Anthropic's usage."""
    told: MessagesUsage = {
        "input_tokens": usage.prompt_tokens - usage.cached_prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_prompt_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told
