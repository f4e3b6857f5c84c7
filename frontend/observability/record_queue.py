"""A bounded queue of request records, on `logging.handlers`, and the thread that works them off.

Owns the bound, the count of records that were dropped, and a stop that takes seconds at most. Knows
nothing of what is done with a record.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue

from frontend.records import RequestRecord

MAX_WAITING = 4096

_Queue = queue.SimpleQueue[logging.LogRecord | None]


class RecordQueue:
    """Hands request records to a handler in a thread of its own, one after the other.

    Args:
        handler: works a record off, and may take its time. It gets a log record with the record
            as ``request``, and as ``num_dropped`` how many were dropped before it.
        max_waiting: records that may wait.
    """

    def __init__(self, handler: logging.Handler, max_waiting: int = MAX_WAITING) -> None:
        waiting: _Queue = queue.SimpleQueue()
        self._handler = _DroppingHandler(waiting, max_waiting)
        self._listener = _Listener(waiting, handler)
        self._listener.start()

    def put(self, record: RequestRecord) -> None:
        """Queue a record, or drop it; takes microseconds either way."""
        self._handler.handle(logging.makeLogRecord({"request": record}))

    def close(self, seconds: float) -> bool:
        """Work off what waits; False when that takes longer than ``seconds``."""
        return self._listener.stop_within(seconds)


class _DroppingHandler(logging.handlers.QueueHandler):
    """Drops and counts records while the queue is full."""

    def __init__(self, waiting: _Queue, max_waiting: int) -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self._max_waiting = max_waiting
        self._num_dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record as it is: the listener's thread formats it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it as dropped."""
        if self._waiting.qsize() >= self._max_waiting:
            self._num_dropped += 1
        else:
            record.num_dropped = self._num_dropped
            self._waiting.put(record)


class _Listener(logging.handlers.QueueListener):
    """Can be stopped while its handler is stuck."""

    def stop_within(self, seconds: float) -> bool:
        """Work off what waits, and end; False when that takes longer than ``seconds``."""
        thread = self._thread
        assert thread is not None, "it runs from the start, and is stopped once"
        self.enqueue_sentinel()
        thread.join(seconds)
        return not thread.is_alive()
