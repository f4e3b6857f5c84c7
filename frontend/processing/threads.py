"""Threads for what takes long: inputs of many characters or tokens.

Knows nothing of what is done in them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# Longer inputs (characters to encode, tokens to decode) are worked on in a thread: 2 µs a token.
THREAD_LENGTH = 2000
# Half of the cores: callers with large inputs wait for each other, and not the loop for them.
_threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "processing")

_P = ParamSpec("_P")
_R = TypeVar("_R")


async def offloaded(
    length: int, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    """Calls ``function``, in a thread when ``length`` says it takes long.

    The tokenizers library lets other threads run meanwhile; a chat template is Python, which gives
    way every few milliseconds.
    """
    if length <= THREAD_LENGTH:
        return function(*args, **kwargs)
    return await in_thread(function, *args, **kwargs)


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Calls ``function`` in a thread."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: function(*args, **kwargs))
