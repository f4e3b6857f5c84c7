"""Where long work is done: in threads if it lets the loop run meanwhile, else in turns with it.

Owns from what length on. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# Longer inputs (characters to encode, tokens to decode) are worked on in a thread: 2 µs a token.
THREAD_LENGTH = 2000
# Half of the cores: callers with large inputs wait for each other, and not the loop for them.
_threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "processing")
# Longer bodies (bytes) are parsed in turns: 16 KiB take 1 ms at most.
TURN_LENGTH = 16 << 10
# Values of a list that is worked on in pieces: 1 ms at most.
PIECE_LENGTH = 4096

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Calls ``function`` in a thread."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: function(*args, **kwargs))


async def in_pieces(values: list[_T]) -> AsyncIterator[list[_T]]:
    """The values in order, in lists of `PIECE_LENGTH`; other tasks of the loop run after each.

    Empties the list as it goes: to free half a million numbers at once takes several ms.
    """
    values.reverse()
    while values:
        piece = values[-PIECE_LENGTH:]
        del values[-PIECE_LENGTH:]
        piece.reverse()
        yield piece
        await asyncio.sleep(0)


class Turns:
    """Work that holds up the loop, one piece at a time: after each, others have as long as it took.

    So long inputs take half of the loop's time at most, however many come at once.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Calls ``function`` when it is its turn."""
        async with self._turn:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                await asyncio.sleep(time.perf_counter() - began)
