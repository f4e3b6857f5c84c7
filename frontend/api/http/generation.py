"""A request, answered as one object or as a stream of server-sent events, and its end when its
client has left.

Owns how chunks become events. Knows neither parameters nor the shape of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from frontend.api.asgi import FILLER
from frontend.api.http.long_json import LongJSONResponse, encoded
from frontend.errors import RequestError, internal_error
from switchyard.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)

_COMMENT = b":\n\n"
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_T = TypeVar("_T")


class Job(Protocol):
    """One request, with all that answers it.

    Attributes:
        stream: the client wants chunks.
        names_events: each event has a name, which is its chunk's ``type``.
        last_event: bytes behind the last chunk of a stream that ended well.
    """

    @property
    def stream(self) -> bool: ...
    @property
    def names_events(self) -> bool: ...
    @property
    def last_event(self) -> bytes: ...

    def chunks(self) -> AsyncGenerator[Sequence[Mapping[str, object]], None]:
        """Chunks as they come, those of one moment together. Closing it aborts the request."""
        ...

    async def answer(self) -> Mapping[str, object]:
        """The whole answer. Cancelling it aborts the request."""
        ...

    def refusal(self, error: RequestError) -> HTTPException:
        """What is raised before a response has begun."""
        ...

    def error_events(self, error: RequestError) -> Sequence[Mapping[str, object]]:
        """The last chunks of a stream that failed."""
        ...


class GenerationResponse:
    """Sends what becomes of a job, and ends the job when its client leaves.

    Starlette's StreamingResponse sends the status before the first chunk, so that a refusal could
    have none of its own.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. The request's body must have been read.

        Raises:
            HTTPException: the request is refused, or failed before the response began.
        """
        if self._job.stream:
            scope["state"][FILLER] = _COMMENT
        work = self._stream(send) if self._job.stream else self._whole(scope, receive, send)
        try:
            await _until_disconnect(receive, work)
        except RequestError as error:
            raise self._job.refusal(error) from error

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._job.answer()
        await LongJSONResponse(answer)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        """Send chunks as they come; an error behind the first chunk is the last event."""
        is_begun, last = False, self._job.last_event
        chunks = self._job.chunks()
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
                        {
                            "type": "http.response.body",
                            "body": self._events(several),
                            "more_body": True,
                        }
                    )
        except Exception as error:
            if not is_begun:
                raise
            last = self._events(self._errors(error))
        await send({"type": "http.response.body", "body": last})

    def _errors(self, error: Exception) -> Sequence[Mapping[str, object]]:
        if not isinstance(error, RequestError):
            request_id = uuid.uuid4().hex
            logger.error("request %s failed", request_id, exc_info=error)
            error = internal_error(request_id)
        return self._job.error_events(error)

    def _events(self, chunks: Sequence[Mapping[str, object]]) -> bytes:
        events = []
        for chunk in chunks:
            if self._job.names_events:
                events.append(b"event: %b\n" % str(chunk["type"]).encode())
            events.append(b"data: %b\n\n" % encoded(chunk))
        return b"".join(events)


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
