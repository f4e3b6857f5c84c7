"""What chat completions and completions share: a request, answered as one object or as a stream.

Owns the words for how an answer ended, usage, server-sent events, JSON that is too long to be made
at once, and the end of a request whose client has left. Knows no parameter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from frontend.api.asgi import FILLER
from frontend.api.openai.errors import api_error
from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.response_models import Envelope, FinishReason, Usage
from frontend.bounds import MAX_ANSWER_BYTES
from frontend.errors import RequestError, answer_too_large, internal_error
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)

# An aborted answer is as incomplete as one that ran out of tokens, and clients know no other word.
FINISH_REASONS: Mapping[int, FinishReason] = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "length",
}
_DONE = b"data: [DONE]\n\n"
_COMMENT = b":\n\n"
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PIECE_BYTES = 64 << 10

_T = TypeVar("_T")


class AnswerSize:
    """Bytes of an answer that is no stream."""

    def __init__(self) -> None:
        self._num_bytes = 0

    def count(self, num_bytes: int) -> None:
        """Count some more.

        Raises:
            RequestError: INVALID_ARGUMENT; they are above `MAX_ANSWER_BYTES`.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise answer_too_large(MAX_ANSWER_BYTES)


class JsonArray:
    """A long array of an answer, kept as JSON: it is encoded as it grows, and other tasks of the
    loop can run between. Objects would take ten times the memory.
    """

    def __init__(self, size: AnswerSize) -> None:
        self.pieces: list[bytes] = []
        self._size = size

    def extend(self, values: Sequence[object]) -> None:
        """Add values at the end.

        Raises:
            RequestError: the answer has become too large.
        """
        if values:
            self.add(_encode(values).encode()[1:-1])

    def add(self, piece: bytes) -> None:
        """Add values that are encoded, with commas between them.

        Raises:
            RequestError: the answer has become too large.
        """
        self._size.count(len(piece))
        self.pieces.append(piece)


class LongJSONResponse:
    """Sends an object with JsonArrays in pieces, as the client takes them."""

    def __init__(self, content: Mapping[str, object]) -> None:
        self._parts = [*_parts_of(content)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = sum(map(len, self._parts))
        headers = [
            (b"content-length", b"%d" % length),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = bytearray()
        for part in self._parts:
            piece += part
            if len(piece) > _PIECE_BYTES:
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
                piece.clear()
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": bytes(piece)})


def _parts_of(value: object) -> Iterator[bytes]:
    """JSON of a value that may hold JsonArrays."""
    match value:
        case JsonArray():
            yield b"["
            for number, piece in enumerate(value.pieces):
                if number:
                    yield b","
                yield piece
            yield b"]"
        case Mapping():
            for number, (key, each) in enumerate(value.items()):
                yield b"%b%b:" % (b"," if number else b"{", _encode(key).encode())
                yield from _parts_of(each)
            yield b"}" if value else b"{}"
        case list():
            for number, each in enumerate(value):
                yield b"," if number else b"["
                yield from _parts_of(each)
            yield b"]" if value else b"[]"
        case _:
            yield _encode(value).encode()


class Job(Protocol):
    """One request.

    Attributes:
        stream: the client wants chunks.
        names: the client's names of fields of `switchyard.v1`, where they are not the usual ones.
    """

    @property
    def stream(self) -> bool: ...
    @property
    def names(self) -> Mapping[str, str]: ...

    def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[Sequence[Mapping[str, object]], None]:
        """Chunks as they come, those of one moment together. Closing it aborts the request."""
        ...

    async def answer(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> Mapping[str, object]:
        """The whole answer. Cancelling it aborts the request."""
        ...


class GenerationResponse:
    """Sends what becomes of a job, and ends the job when its client leaves.

    Starlette's StreamingResponse sends the status before the first chunk, so that a refusal could
    have none of its own.
    """

    def __init__(self, job: Job, service: Service, texts: TokenTexts, caller: Caller) -> None:
        self._job = job
        self._service = service
        self._texts = texts
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. The request's body must have been read.

        Raises:
            ApiError: the request is refused, or failed before the response began.
        """
        if self._job.stream:
            scope["state"][FILLER] = _COMMENT
        work = self._stream(send) if self._job.stream else self._whole(scope, receive, send)
        try:
            await _until_disconnect(receive, work)
        except RequestError as error:
            raise api_error(error, self._job.names) from error

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._job.answer(self._service, self._texts, self._caller)
        await LongJSONResponse(answer)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        """Send chunks as they come; an error behind the first chunk is the last event."""
        is_begun, last = False, _DONE
        chunks = self._job.chunks(self._service, self._texts, self._caller)
        try:
            async with contextlib.aclosing(chunks):
                async for several in chunks:
                    if not is_begun:
                        is_begun = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": 200,
                                "headers": [*_EVENT_HEADERS],
                            }
                        )
                    # Returns when the client's buffers have room again.
                    await send(
                        {"type": "http.response.body", "body": _events(several), "more_body": True}
                    )
        except Exception as error:
            if not is_begun:
                raise
            last = _events([self._error(error)])
        await send({"type": "http.response.body", "body": last})

    def _error(self, error: Exception) -> Mapping[str, object]:
        if not isinstance(error, RequestError):
            request_id = uuid.uuid4().hex
            logger.error("request %s failed", request_id, exc_info=error)
            error = internal_error(request_id)
        return api_error(error, self._job.names).body


def _events(chunks: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(b"data: %b\n\n" % _encode(chunk).encode() for chunk in chunks)


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, and cancel it when the client leaves."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def with_free_id(
    begin: Callable[[], AsyncGenerator[_T, None]], request: pb.GenerateRequest
) -> AsyncGenerator[_T, None]:
    """The stream that ``begin`` makes of ``request``; under a new id when the client's is live.

    An x-request-id names a client's request, which it may send again while the first still runs.
    """
    try:
        async with contextlib.aclosing(begin()) as stream:
            async for item in stream:
                yield item
        return
    except RequestError as error:
        if error.reason != "DUPLICATE_REQUEST_ID":
            raise
    request.request_id = uuid.uuid4().hex
    async with contextlib.aclosing(begin()) as stream:
        async for item in stream:
            yield item


def envelope(prefix: str, request_id: str, model: str) -> Envelope:
    """The beginning of an answer whose id is the request's with a prefix."""
    return {
        "id": f"{prefix}-{request_id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def usage_of(usages: Sequence[pb.Usage]) -> Usage:
    """OpenAI's usage of some requests together."""
    prompt = sum(each.prompt_tokens for each in usages)
    completion = sum(each.completion_tokens for each in usages)
    cached = sum(each.cached_prompt_tokens for each in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
