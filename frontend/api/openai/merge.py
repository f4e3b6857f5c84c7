"""Streams of the service, put together: several as one, and one under an id that is free.

Knows nothing of what they carry.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from frontend.errors import RequestError
from switchyard.v1 import inference_pb2 as pb

_T = TypeVar("_T")

# Items that may wait for the reader; past that the streams wait, and gather what they have.
_MAX_WAITING = 32


async def merged(streams: Sequence[AsyncGenerator[_T, None]]) -> AsyncGenerator[tuple[int, _T]]:
    """Items of all streams as they come, each with its stream's number. Closing it closes them.

    Raises:
        Exception: the first that one of them raises; the others are closed.
    """
    queue: asyncio.Queue[tuple[int, _T | BaseException | None]] = asyncio.Queue(_MAX_WAITING)

    async def pump(index: int, stream: AsyncGenerator[_T, None]) -> None:
        end: Exception | None = None
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    await queue.put((index, item))
        except Exception as error:
            end = error
        await queue.put((index, end))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    num_open = len(pumps)
    try:
        while num_open:
            index, item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def with_free_id(
    begin: Callable[[], AsyncGenerator[_T, None]], asked: pb.GenerateRequest
) -> AsyncGenerator[_T]:
    """The stream that ``begin`` makes of ``asked``; under a new id when the client's is live.

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
    asked.request_id = uuid.uuid4().hex
    async with contextlib.aclosing(begin()) as stream:
        async for item in stream:
            yield item
