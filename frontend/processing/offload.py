"""Runs what takes long beside the event loop: encoding, decoding, chat templates.

The tokenizers library lets other threads run meanwhile; a chat template is Python, which gives way
every few milliseconds. Owns how many threads there are: half of the cores, so that callers with
large inputs wait for each other, and not the loop for them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# Longer inputs (characters to encode, tokens to decode) are worked on in a thread: 2 µs a token.
THREAD_LENGTH = 2000

_P = ParamSpec("_P")
_R = TypeVar("_R")

_threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "processing")


async def offloaded(
    length: int, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    """Calls ``function``, in a thread when ``length`` says it takes long."""
    if length <= THREAD_LENGTH:
        return function(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: function(*args, **kwargs))
