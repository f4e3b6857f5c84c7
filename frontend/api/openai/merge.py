"""Several streams, or several pieces of work, at once. Knows nothing of what they produce."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

# Items that may wait for the reader; past that the streams wait, and gather what they have.
_MAX_WAITING = 32


async def merged(streams: Sequence[AsyncGenerator[_T, None]]) -> AsyncGenerator[_T, None]:
    """Items of all streams as they come. Closing it closes them.

    Raises:
        Exception: the first that one of them raises; the others are closed.
    """
    queue: asyncio.Queue[_T | Exception | None] = asyncio.Queue(_MAX_WAITING)

    async def pump(stream: AsyncGenerator[_T, None]) -> None:
        end: Exception | None = None
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    await queue.put(item)
        except Exception as error:
            end = error
        await queue.put(end)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await _cancel(pumps)


async def all_of(works: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all works, which run at once.

    Raises:
        Exception: the first that one of them raises; the others are cancelled.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
