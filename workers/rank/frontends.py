"""Which frontend a rank serves: one at a time, each newer than every one before.

Owns the epochs, and how long the rank waits for its last steps and for the next frontend. Knows
nothing of gRPC or of what a step computes.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

IDLE_SECONDS = 1.0
"""How long steps may go on after their frontend died. If it died after writing to only some ranks,
the step hangs: then the rank exits."""


class _State(enum.Enum):
    FREE = enum.auto()
    SERVING = enum.auto()
    ENDING = enum.auto()  # the stream has ended, its steps may not have


class Frontends:
    """The frontends of one rank, one after the other.

    Args:
        leave: called with a one-line reason when the rank must end; does not return.
        newest_epoch: the newest epoch that a rank of an earlier group has seen.
        saw_epoch: called with each epoch that is served.
        timeout: seconds to wait for the next frontend after one that did not say goodbye.
    """

    def __init__(
        self,
        leave: Callable[[str], None],
        *,
        newest_epoch: int = 0,
        saw_epoch: Callable[[int], None] = lambda epoch: None,
        timeout: float = 60.0,
    ) -> None:
        self.timeout = timeout
        self._leave = leave
        self._newest_epoch = newest_epoch
        self._saw_epoch = saw_epoch
        self._state = _State.FREE
        self._changed = threading.Condition()
        self._timer: threading.Timer | None = None

    def enter(self, epoch: int) -> str | None:
        """Serve a frontend from now on, once the steps of the one before have ended.

        Returns:
            None, or why the frontend is refused.
        """
        with self._changed:
            if epoch > self._newest_epoch:
                self._changed.wait_for(lambda: self._state is not _State.ENDING)
            newest, serving = self._newest_epoch, self._state is _State.SERVING
            if serving or epoch <= newest:
                refusal = f"epoch {epoch} is refused: the rank has seen epoch {newest}"
                return f"{refusal} and serves a frontend" if serving else refusal
            self._set_timer(None)
            self._newest_epoch, self._state = epoch, _State.SERVING
        self._saw_epoch(epoch)
        return None

    def stream_ended(self) -> None:
        """Give the frontend's last steps `IDLE_SECONDS` to end."""
        with self._changed:
            self._state = _State.ENDING
            self._set_timer(IDLE_SECONDS, "the frontend is gone in the middle of a step")

    def steps_ended(self, *, said_goodbye: bool) -> None:
        """Let the next frontend in, and wait for it: as long as it takes, or up to the time-out."""
        with self._changed:
            self._state = _State.FREE
            if said_goodbye:
                self._set_timer(None)
            else:
                reason = f"no frontend came within {self.timeout:g} s of the last one's end"
                self._set_timer(self.timeout, reason)
            self._changed.notify_all()

    def _set_timer(self, seconds: float | None, reason: str = "") -> None:
        """End the rank after so many seconds, unless this is called again; None: never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = threading.Timer(seconds, self._leave, (reason,))
            self._timer.daemon = True
            self._timer.start()
