"""Keys that are pressed while a view fills the terminal. Knows nothing of the view."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

_LEAVE = (b"q", b"Q", b"")  # nothing to read: the terminal is gone


class Keyboard:
    """Keys of a terminal that gives them one by one; none without its descriptor."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptors = [] if descriptor is None else [descriptor]

    def asks_to_leave(self, seconds: float) -> bool:
        """Wait; true as soon as q is pressed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for each in select.select(self._descriptors, [], [], left)[0]:
                if os.read(each, 1) in _LEAVE:
                    return True
        return False


@contextlib.contextmanager
def keyboard() -> Iterator[Keyboard]:
    """The keyboard at stdin, which shows nothing of what is typed for as long as this lasts."""
    if not sys.stdin or not sys.stdin.isatty():
        yield Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
