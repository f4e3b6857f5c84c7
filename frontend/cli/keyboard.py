"""Keys that are pressed while a view fills the terminal. Knows nothing of the view."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Self

_LEAVE = (b"q", b"Q", b"")  # nothing to read: the terminal is gone


class Keyboard:
    """Reads single keys, without an echo, inside its context; none where stdin is no terminal."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def asks_to_leave(self, seconds: float) -> bool:
        """Wait; true as soon as q is pressed."""
        keys = [] if self._descriptor is None else [self._descriptor]
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select(keys, [], [], left)[0] and os.read(keys[0], 1) in _LEAVE:
                return True
        return False
