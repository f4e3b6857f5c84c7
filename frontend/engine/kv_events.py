"""Readers of the prefix cache's changes: routers that place requests by prefix.

Owns who reads, how far, and that recording begins with the first reader. A reader is a number in
the log's history and waits for no other: one that falls behind the history is told so. Knows no
protocol; `scheduler/prefix_log.py` has the changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from frontend.bounds import MAX_KV_EVENT_READERS
from frontend.errors import Code, RequestError
from frontend.prefixes import CacheBatch
from frontend.scheduler.prefix_log import PrefixLog


class KvEvents:
    """The log's readers. Changes of one turn of the event loop become one batch."""

    def __init__(self, log: PrefixLog) -> None:
        self._log = log
        self._news = asyncio.Event()
        self._num_readers = 0
        self._left_at = 0
        self._is_closed = False
        log.on_change = self._seal_soon

    async def read(self, after: int | None = 0) -> AsyncGenerator[CacheBatch, None]:
        """Batches as they come, until `close`.

        Args:
            after: number of the last batch that the reader has; 0: it has none, and what the cache
                holds comes first; None: it has none and wants none but what comes.

        Raises (when iterated):
            RequestError: there are too many readers; the batches after ``after`` are not known any
                more (OUT_OF_RANGE); or the reader is too slow (DATA_LOSS). Of the last two it
                recovers by 0.
        """
        if self._num_readers >= MAX_KV_EVENT_READERS:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._num_readers} readers of KV events are connected, at most "
                f"{MAX_KV_EVENT_READERS} may be",
                reason="TOO_MANY_READERS",
            )
        log = self._log
        if after and not log.can_resume(after):
            raise RequestError(
                Code.OUT_OF_RANGE,
                f"KV events after {after} are not known any more; begin again at 0",
                reason="EVENTS_FORGOTTEN",
            )
        self._num_readers += 1
        try:
            if not log.recording:
                log.begin()
            if after is None:
                log.seal()
                after = log.number
            elif not after:
                for part in log.snapshot():
                    after = part.number
                    yield part
            while not self._is_closed:
                if not log.continues(after):
                    raise RequestError(
                        Code.DATA_LOSS,
                        f"KV events after {after} were dropped, as they were not read in time; "
                        "begin again at 0",
                        reason="READER_TOO_SLOW",
                    )
                news, batch = self._news, log.after(after)
                if batch is None:
                    await news.wait()
                else:
                    after = batch.number
                    yield batch
        finally:
            self._num_readers -= 1
            self._left_at = log.number

    def close(self) -> None:
        """End every reader's batches."""
        self._is_closed = True
        self._tell()

    def _seal_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._seal)

    def _seal(self) -> None:
        """Close a batch. Without readers the log goes on until it has forgotten what the last one
        read, in case that one comes back."""
        self._log.seal()
        if not self._num_readers and not self._log.continues(self._left_at):
            self._log.end()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
