"""Ends a process in which a thread holds the GIL and never returns.

Knows nothing of what the thread does, and cannot see a thread that waits without the GIL.
"""

from __future__ import annotations

import faulthandler
import threading
import time

PERIOD_SECONDS = 0.5


def start(timeout: float) -> None:
    """End this process once no thread has got the GIL for ``timeout`` seconds.

    The exit status is then 1, and every thread's stack is on stderr.
    """

    def rearm() -> None:
        while True:
            # Its own thread needs no GIL.
            faulthandler.dump_traceback_later(timeout, exit=True)
            time.sleep(PERIOD_SECONDS)

    threading.Thread(target=rearm, name="GIL watchdog", daemon=True).start()
