"""A request to /v1/responses with what it works on: a `frontend.api.http.generation.Job`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping

from frontend.api.http.generation import with_free_id
from frontend.api.http.long_json import AnswerSize
from frontend.api.openai.errors import ApiError, api_error
from frontend.api.openai.logprobs import TokenTexts, chat_logprobs, token_ids
from frontend.api.openai.response_models import TokenLogprob
from frontend.api.openai.responses.item_events import Events
from frontend.api.openai.responses.request import ResponseRequest
from frontend.api.openai.responses.stream import ResponseStream
from frontend.errors import RequestError
from frontend.records import Caller
from frontend.service.service import Service
from frontend.service.turns import Finished, TurnDelta, turn_events
from switchyard.v1 import inference_pb2 as pb


class ResponseJob:
    """One request, once."""

    names_events = True
    last_event = b""

    def __init__(
        self, asked: ResponseRequest, service: Service, texts: TokenTexts, caller: Caller
    ) -> None:
        self.stream = asked.stream
        self._asked = asked
        self._service = service
        self._texts = texts
        self._caller = caller
        self._growing = ResponseStream(asked.response, asked.options, AnswerSize())

    async def chunks(self) -> AsyncGenerator[Events, None]:
        """Events as they come. Closing it aborts the request."""
        chat, is_begun = self._asked.request, False
        stream = with_free_id(
            lambda: self._service.chat(chat, self._caller, streams=self.stream), chat.request
        )
        async with contextlib.aclosing(turn_events(stream, self._asked.tools.reader)) as turn:
            async for event in turn:
                match event:
                    case TurnDelta(message=message):
                        first = [] if is_begun else self._growing.begin()
                        is_begun = True
                        told = self._growing.add(event, await self._logprobs(message))
                        if first or told:
                            yield first + told
                    case Finished(usage):
                        yield self._growing.end(usage)

    async def answer(self) -> Mapping[str, object]:
        """The whole response."""
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for _ in chunks:
                pass
        return self._growing.response

    def refusal(self, error: RequestError) -> ApiError:
        """OpenAI's error, with the request's own names."""
        of_input = self._asked.turns.names_of(error.field or "")
        return api_error(error, {**self._asked.names, **of_input})

    def error_events(self, error: RequestError) -> Events:
        """The error, and the response that failed."""
        return self._growing.fail(self.refusal(error))

    async def _logprobs(self, delta: pb.Delta) -> list[TokenLogprob]:
        if not self._asked.options.has_logprobs or not delta.token_ids:
            return []
        await self._texts.load(token_ids(delta.token_ids, delta.top_logprobs))
        found = chat_logprobs(delta, self._asked.num_top, self._texts)
        return [_with_bytes(each) for each in found]


def _with_bytes(entry: TokenLogprob) -> TokenLogprob:
    """With no bytes where chat completions have null, for part of a character."""
    tops = [{**top, "bytes": top["bytes"] or []} for top in entry["top_logprobs"]]
    return {**entry, "bytes": entry["bytes"] or [], "top_logprobs": tops}  # type: ignore[typeddict-item]
