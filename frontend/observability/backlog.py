"""Records that wait for a thread, so that what is done with them stops nobody in the event loop.

Owns the bound on how many wait, and the count of those that found no place. Knows nothing of what
is done with them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from frontend.records import RequestRecord

MAX_WAITING = 4096


class Backlog:
    """Hands records to ``work``, one after the other, in a thread of its own.

    Args:
        name: of the thread.
        work: may take its time, and may not raise.
        most: records that may wait.

    Attributes:
        dropped: records that found no place.
    """

    def __init__(
        self, name: str, work: Callable[[RequestRecord], None], most: int = MAX_WAITING
    ) -> None:
        self.dropped = 0
        self._work = work
        self._most = most
        self._waiting: queue.SimpleQueue[RequestRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, record: RequestRecord) -> None:
        """Let a record wait, or drop it; takes a microsecond either way."""
        if self._waiting.qsize() >= self._most:
            self.dropped += 1
        else:
            self._waiting.put(record)

    def close(self, seconds: float) -> bool:
        """Finish what waits; false when that takes longer than ``seconds``."""
        self._waiting.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._work(record)
