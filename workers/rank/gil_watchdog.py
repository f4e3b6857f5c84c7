"""Ends a process whose interpreter stands still: a thread that holds the GIL and never returns.

Knows nothing of what stands still, and cannot see one that waits without the GIL.
"""

from __future__ import annotations

import faulthandler
import threading
import time

PERIOD_SECONDS = 0.5


def start(timeout: float) -> None:
    """From now on, end this process with status 1, every thread's stack on stderr, once no thread
    has got the GIL for ``timeout`` seconds."""

    def rearm() -> None:
        while True:
            # Its own thread needs no GIL.
            faulthandler.dump_traceback_later(timeout, exit=True)
            time.sleep(PERIOD_SECONDS)

    threading.Thread(target=rearm, name="deadman", daemon=True).start()
